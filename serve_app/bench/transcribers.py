"""How well and how fast transcribers hear a set of recordings: words, seconds and memory.

Each model is measured in a process of its own, one call after the other, so that its memory and its time are its own.
Errors are counted on normalised words: lower case, no punctuation, digits as words.
"""

import asyncio
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from deployments.engines import create
from deployments.interfaces import EngineError, Transcriber
from deployments.number_words import in_words
from deployments.options import SttOptions

from .clips import Clip

LENGTHS_S = (2.0, 5.0, 10.0, 20.0)
"""Utterances are told apart by length at these bounds."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One call."""

    seconds: float
    """Of audio."""
    latency_s: float
    reference: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Latency:
    utterances: str
    """Which: "< 2 s"."""
    calls: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Measurement:
    model: str
    calls: tuple[Heard, ...]
    load_s: float
    """Loading and warming up."""
    peak_bytes: int
    """Of the process and of its children's, at their most."""
    error: str = ""
    """Why there is none."""

    @property
    def word_error_rate(self) -> float | None:
        """Over the recordings in which something is said; None without any."""
        import jiwer

        said = [call for call in self.calls if call.reference]
        if not said:
            return None
        references = [normalised(call.reference or "") for call in said]
        heard = [normalised(call.text) for call in said]
        return float(jiwer.wer(references, heard))

    @property
    def invented_words(self) -> int:
        """In the recordings in which nothing is said."""
        return sum(len(call.text.split()) for call in self.calls if call.reference == "")

    @property
    def realtime_factor(self) -> float:
        return sum(call.latency_s for call in self.calls) / sum(call.seconds for call in self.calls)

    def latencies(self) -> list[Latency]:
        """By length of utterance, the shortest first, and last over all."""
        bounds = [0.0, *LENGTHS_S, float("inf")]
        rows = []
        for low, high in pairwise(bounds):
            name = f"< {high:g} s" if high < float("inf") else f">= {low:g} s"
            rows.append((name, [c.latency_s for c in self.calls if low <= c.seconds < high]))
        rows.append(("all", [call.latency_s for call in self.calls]))
        return [
            Latency(name, len(some), percentile(some, 50), percentile(some, 95))
            for name, some in rows
            if some
        ]


def options_of(model: str, *, threads: int, short_windows: bool, language: str | None) -> SttOptions:
    """`pocketsphinx`, or any Whisper as in a config."""
    if model == "pocketsphinx":
        return SttOptions(engine="pocketsphinx", threads=threads)
    path = Path(model).expanduser()
    return SttOptions(
        engine="faster_whisper",
        model=str(path.resolve()) if path.is_dir() else model,
        threads=threads,
        short_windows=short_windows,
        language=language,
    )


def measure(name: str, options: SttOptions, clips: Sequence[Clip], *, repeats: int = 1) -> Measurement:
    """In a process of its own. A model that does not load gives a measurement with an error."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as child:
        return child.submit(measure_here, name, options, clips, repeats).result()


def measure_here(name: str, options: SttOptions, clips: Sequence[Clip], repeats: int) -> Measurement:
    started = time.perf_counter()
    try:
        engine: Transcriber = create(options)
    except EngineError as error:
        return Measurement(name, (), 0.0, 0, error.message)
    load_s = time.perf_counter() - started
    calls = asyncio.run(_hear(engine, clips, repeats))
    return Measurement(name, tuple(calls), load_s, peak_bytes())


async def _hear(engine: Transcriber, clips: Sequence[Clip], repeats: int) -> list[Heard]:
    calls = []
    for clip in [clip for clip in clips for _ in range(repeats)]:
        started = time.perf_counter()
        transcript = await engine.transcribe(clip.pcm, language=None, prompt=None)
        latency_s = time.perf_counter() - started
        calls.append(Heard(clip.seconds, latency_s, clip.text, transcript.text))
    return calls


def normalised(text: str) -> str:
    words = re.sub(r"(?<=\d),(?=\d)", "", text.casefold().replace("’", "'").replace("'", ""))
    words = re.sub(r"\d+", lambda number: f" {in_words(number[0], language='en')} ", words)
    return " ".join("".join(c if c.isalnum() else " " for c in words).split())


def percentile(values: Sequence[float], q: float) -> float:
    return float(np.percentile(np.array(values), q))


def peak_bytes() -> int:
    """Of this process and its children. A parent's memory counts in `getrusage` after a fork, hence /proc first."""
    status = Path("/proc/self/status")
    if not status.is_file():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    children = [
        pid for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()
    ]
    files = [status, *(Path("/proc") / pid / "status" for pid in children)]
    peaks = [re.search(r"VmHWM:\s+(\d+) kB", file.read_text()) for file in files if file.is_file()]
    return sum(int(peak[1]) * 1024 for peak in peaks if peak)
