"""Callers who come, talk and go for a long time: memory, tasks and open files of every process must stay flat."""

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from serve_app.audio.pcm import Audio
from serve_app.client import ClientError

from .application import Application, ProxyMode, application
from .caller import caller

SAMPLE_S = 10.0
LONGEST_VISIT_S = 60.0
PROC = Path("/proc")
SERVED = ("ray::ServeReplica:", "ray::ServeController", "ray::HAProxyManager", "ray::ProxyActor")


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    sessions: int
    tasks: int
    rss_mb: dict[str, float]
    """Resident memory by process."""
    files: dict[str, int]
    """Open file handles by process."""


@dataclass(slots=True)
class Soak:
    visits: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)


async def visitor(url: str, questions: list[Audio], dice: random.Random, soak: Soak, until: float) -> None:
    """One visit after the other: a few turns, some of them interrupted; then it leaves."""
    await asyncio.sleep(dice.uniform(0, 5))
    while (left := until - time.monotonic()) > 0:
        stay_s = min(dice.uniform(2, LONGEST_VISIT_S), left)
        soak.visits["visits"] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(stay_s), caller(url) as one:
                    while True:
                        after = len(one.arrivals)
                        await one.until_said(one.say(dice.choice(questions)))
                        await one.until_type("response.output_audio.delta", after=after, within_s=20)
                        soak.visits["answers"] += 1
                        await asyncio.sleep(dice.uniform(0.2, 4))  # often less than the answer: a barge-in
        except* ClientError as errors:
            soak.visits["lost sessions"] += 1
            soak.visits[f"lost: {errors.exceptions[0]}"] += 1


async def watch(app: Application, soak: Soak, began: float, until: float) -> None:
    async with httpx.AsyncClient() as http:
        while time.monotonic() < until:
            health = (await http.get(f"{app.http}/healthz")).json()
            rss, files = processes()
            at = time.monotonic() - began
            soak.samples.append(Sample(at, health["sessions"], health["tasks"], rss, files))
            if len(soak.samples) % 6 == 1:
                print(line(soak.samples[-1], soak.visits), flush=True)
            await asyncio.sleep(SAMPLE_S)


def processes() -> tuple[dict[str, float], dict[str, int]]:
    """Resident MB and open files of the processes of this machine's Serve, by name. Linux."""
    rss: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            program = Path(title.split(" ")[0]).name
            if title.startswith(SERVED) or program == "haproxy":
                name = program.removeprefix("ray::").removeprefix("ServeReplica:").split(".")[0]
                pages = int((entry / "statm").read_text().split()[1])
                rss[name] += pages * os.sysconf("SC_PAGE_SIZE") // 1024
                files[name] += len(os.listdir(entry / "fd"))
    return {name: kb / 1024 for name, kb in rss.items()}, dict(files)


def line(sample: Sample, visits: Counter[str]) -> str:
    each = "  ".join(
        f"{name} {mb:.0f} MB {sample.files[name]} files" for name, mb in sorted(sample.rss_mb.items())
    )
    return (
        f"{sample.at_s / 60:5.1f} min  {sample.sessions:3d} sessions {sample.tasks:4d} tasks "
        f"{visits['visits']:5d} visits {visits['answers']:6d} answers  {each}"
    )


def slope_a_minute(samples: list[Sample], values: list[float]) -> float:
    """Of the least-squares line through `values` over the minutes of `samples`."""
    return float(np.polyfit([sample.at_s / 60 for sample in samples], values, 1)[0])


async def soak_for(app: Application, questions: list[Audio], sessions: int, seconds: float) -> Soak:
    soak, began = Soak(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(app, soak, began, began + seconds))
        for seed in range(sessions):
            tasks.create_task(
                visitor(app.realtime, questions, random.Random(seed), soak, began + seconds + SAMPLE_S)
            )
    return soak


def run(questions: list[Audio], sessions: int, minutes: float, proxy: ProxyMode) -> None:
    with application(proxy=proxy) as app:
        soak = asyncio.run(soak_for(app, questions, sessions, minutes * 60))
    last = [sample for sample in soak.samples if sample.at_s > minutes * 60 * 1 / 3]
    print(f"{sessions} callers at once for {minutes:g} min, proxy {proxy}: {dict(soak.visits)}")
    print(f"over the last {minutes * 2 / 3:.0f} min, a minute:")
    for name in sorted(last[-1].rss_mb):
        rss = slope_a_minute(last, [sample.rss_mb.get(name, 0) for sample in last])
        files = slope_a_minute(last, [sample.files.get(name, 0) for sample in last])
        print(f"  {name:<28} RSS {rss:+.2f} MB   open files {files:+.2f}")
    print(f"  {'tasks of the ingress':<28} {slope_a_minute(last, [s.tasks for s in last]):+.2f}")
