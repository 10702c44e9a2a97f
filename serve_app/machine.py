"""What this machine has: cores, memory, GPUs, disk. Nothing here judges it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MIB = 1 << 20
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
_NVIDIA_SMI_S = 10.0


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    cores: float
    """That this process may use: a container's share may be a fraction."""
    memory_bytes: int
    free_memory_bytes: int
    """Free now, or held only by caches."""
    disk_free_bytes: int
    disk: str
    """Where models are kept."""
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    """Why there are none."""


def look(models_folder: Path) -> Machine:
    gpus, note = _gpus()
    memory, free = _memory()
    existing = next(folder for folder in (models_folder, *models_folder.parents) if folder.exists())
    disk_free = shutil.disk_usage(existing).free
    return Machine(_cores(), memory, free, disk_free, str(models_folder), gpus, note)


def _cores() -> float:
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def _memory() -> tuple[int, int]:
    """All of it and what is free, within the limit of the container that this is in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    figures = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    free = int(figures["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in figures else total
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdecimal() and used.isdecimal() and int(limit) < total:
        return int(limit), min(free, int(limit) - int(used))
    return total, free


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True)
    except FileNotFoundError:
        return (), "nvidia-smi is not on this machine"
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi gave no answer within {_NVIDIA_SMI_S:g} s"
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip().splitlines()
        return (), f"nvidia-smi failed: {said[0] if said else error.returncode}"
    try:
        gpus = tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip())
    except ValueError:
        return (), f"nvidia-smi said {done.stdout.splitlines()[0]!r}"
    return gpus, "" if gpus else "nvidia-smi lists none"


def _gpu(line: str) -> Gpu:
    name, total, free = line.rsplit(",", 2)
    return Gpu(name.strip(), int(total) * _MIB, int(free) * _MIB)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
