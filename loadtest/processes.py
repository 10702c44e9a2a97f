"""CPU time and memory of the processes of an application, by what they do (Linux: /proc)."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ROLES = {
    "ServeReplica:voice:Ingress": "ingress",
    "ServeReplica:voice:": "engines",
    "haproxy": "haproxy",
}
"""What the command line of a process has in it, and its role; the first that fits counts. All others are "ray"."""
SESSION_TIER = ("ingress", "haproxy")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    role: str


def below(root: int) -> list[Process]:
    """The processes that `root` has started, and theirs, with their roles."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        try:
            children.setdefault(_parent(pid), []).append(pid)
        except OSError:  # it has ended
            continue
    found, waiting = [], [root]
    while waiting:
        born = children.get(waiting.pop(), [])
        waiting += born
        found += born
    return [Process(pid, role_of(_command(pid))) for pid in found]


def pin(pid: int, cores: set[int]) -> None:
    """All threads of a process, and with them all that it will start."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def cpu_s(processes: list[Process]) -> Mapping[str, float]:
    """User and system seconds so far, by role; those of a process that has ended are gone."""
    total: dict[str, float] = {}
    for process in processes:
        try:
            fields = _stat(process.pid)
        except OSError:
            continue
        total[process.role] = total.get(process.role, 0.0) + (int(fields[11]) + int(fields[12])) * TICK_S
    return total


def rss_mb(processes: list[Process], role: str) -> float:
    held = [Path(f"/proc/{p.pid}/statm").read_text().split()[1] for p in processes if p.role == role]
    return sum(map(int, held)) * PAGE / 2**20


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def role_of(command: str) -> str:
    return next((role for mark, role in ROLES.items() if mark in command), "ray")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended
        return ""


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """The fields of proc(5) stat from the third on: a name may hold anything, so they are read behind it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
