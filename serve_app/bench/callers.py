"""What a transcriber does under load: so many callers, each with one utterance after the other, and no pause between.

Batching on and off alternate in one run, since the figures of a shared machine drift from one run to the next.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.interfaces import Transcriber
from deployments.microbatch import MicroBatcher

from .clips import Clip
from .transcribers import percentile


@dataclass(frozen=True, slots=True)
class LoadTime:
    callers: int
    max_batch: int
    calls: int
    calls_per_s: float
    p50_s: float
    p95_s: float
    batch: float
    """Utterances decoded together, on average."""


class Batching(Transcriber, Protocol):
    batches: MicroBatcher[Any, Any]


def measure(
    make: Callable[[int], Batching],
    clips: Sequence[Clip],
    callers: Sequence[int],
    *,
    calls: int,
    max_batch: int,
) -> Iterator[LoadTime]:
    """For each number of callers about so many calls, without batching and with.

    `make` gives an engine for a `max_batch`.
    """
    sizes = (1, max_batch)
    engines = [make(size) for size in sizes]
    with asyncio.Runner() as runner:
        for count in callers:
            for engine, size in zip(engines, sizes, strict=True):
                yield runner.run(_load(engine, size, clips, count, max(1, calls // count)))


async def _load(engine: Batching, max_batch: int, clips: Sequence[Clip], callers: int, each: int) -> LoadTime:
    begun = engine.batches.batches, engine.batches.jobs
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_call(engine, [clips[(first + 7 * i) % len(clips)] for i in range(each)]))
            for first in range(callers)
        ]
    wall_s = time.perf_counter() - started
    latencies = [latency for task in tasks for latency in task.result()]
    batches, jobs = engine.batches.batches - begun[0], engine.batches.jobs - begun[1]
    return LoadTime(
        callers,
        max_batch,
        len(latencies),
        len(latencies) / wall_s,
        percentile(latencies, 50),
        percentile(latencies, 95),
        jobs / max(1, batches),
    )


async def _call(engine: Transcriber, clips: Sequence[Clip]) -> list[float]:
    latencies = []
    for clip in clips:
        started = time.perf_counter()
        await engine.transcribe(clip.pcm, language=None, prompt=None)
        latencies.append(time.perf_counter() - started)
    return latencies
