"""What each part of the application costs: CPU seconds and memory by role, told apart by process title.

Ray names its workers after what they run ("ray::ServeReplica:voice:Ingress"), so a title is enough; HAProxy is a
program of its own.
"""

import os
import platform
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROLES = (
    ("ServeReplica:voice:Ingress", "ingress"),
    ("ServeReplica:voice:SpeechToText", "stt"),
    ("ServeReplica:voice:LanguageModel", "llm"),
    ("ServeReplica:voice:TextToSpeech", "tts"),
    ("ServeController", "controller"),
    ("HAProxyManager", "proxy manager"),
    ("ProxyActor", "proxy"),
    ("loadtest.crowd", "callers"),
    ("loadtest/locustfile", "locust"),
    ("gcs_server", "gcs"),
    ("raylet/raylet", "raylet"),
)
"""What stands in a title or a command line, and the role; the first that fits."""
SESSION_TIER = ("ingress", "haproxy")
SAMPLE_S = 1.0


def role_of(name: str, command: str) -> str:
    """`name`: the executable's; `command`: the title, or the command line."""
    if name == "haproxy" or command.startswith("haproxy"):
        return "haproxy"
    return next((role for mark, role in ROLES if mark in command), "ray, the rest")


@dataclass(slots=True)
class Sample:
    at: float
    """Seconds of the monotonic clock."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """Since each process began, by role."""
    rss_mb: dict[str, float] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    """Open files and sockets, by role."""


def below(root: int) -> Iterator[tuple[psutil.Process, str]]:
    """The processes that `root` has started, and theirs, with their roles."""
    for process in psutil.Process(root).children(recursive=True):
        try:
            yield process, role_of(process.name(), " ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def sample(processes: Iterable[tuple[psutil.Process, str]]) -> Sample:
    taken = Sample(time.monotonic())
    for process, role in processes:
        try:
            with process.oneshot():
                cpu, rss = process.cpu_times(), process.memory_info().rss / 2**20
                files = process.num_fds()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # denied: a zombie's files, to all but root
            continue
        taken.cpu_s[role] = taken.cpu_s.get(role, 0.0) + cpu.user + cpu.system
        taken.rss_mb[role] = taken.rss_mb.get(role, 0.0) + rss
        taken.processes[role] = taken.processes.get(role, 0) + 1
        taken.files[role] = taken.files.get(role, 0) + files
    return taken


@contextmanager
def sampled(root: int, every_s: float = SAMPLE_S) -> Iterator[list[Sample]]:
    """The list fills while the block runs. The tree of processes is looked up anew each time: replicas come and go."""
    samples: list[Sample] = []
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            samples.append(sample(below(root)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def pin(root: int, roles: Collection[str], cores: set[int]) -> None:
    """The processes of these roles to these cores, `root` and all others below it to the remaining ones (Linux).

    With all their threads, and so all that they will start.
    """
    others = os.sched_getaffinity(root) - cores
    for process, role in [(psutil.Process(root), ""), *below(root)]:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores if role in roles else others)


def cpu_name() -> str:
    """As Linux gives it; elsewhere only the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
