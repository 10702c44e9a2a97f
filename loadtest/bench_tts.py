"""Kokoro's speed on this machine: first audio and real-time factor by length of text, torch against ONNX, 1 and 2 threads.

    python -m loadtest.bench_tts [--model FOLDER] [--torch-threads 1 2] ...

Without `--model` the weights are random, at the true size and with durations as speech has (`bench_models`): time is
valid, sound is not. Each backend
and thread count is a process of its own, as a replica is; the median of `--repeats` runs is printed, with the worst.

`--pieces` shows how long a forward takes by its phonemes, which is what another caller may have to wait for, and how
soon the thread is free after a cancel.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from deployments.engines import create, kokoro_backends
from deployments.engines.kokoro import SAMPLE_RATE, KokoroSynthesizer
from deployments.engines.kokoro_backends import Stop, Stopped
from deployments.options import TtsOptions

from . import bench_models

TEXTS = {
    5: "Sure, I can do that.",
    15: "Sure, I can do that for you, but it may take me a little while today.",
    40: (
        "Sure, I can do that for you, but it may take me a little while today. The lighthouse was built by two "
        "brothers in the year of the great storm, and it has been lit every night since."
    ),
}
PIECES = (25, 50, 100, 150, 250, 500)
"""Phonemes of the forwards that `--pieces` measures."""


# --- one replica ----------------------------------------------------------------------------------------------------


async def one_call(engine: KokoroSynthesizer, text: str) -> tuple[float, float, float]:
    """Seconds to the first audio, of computing in all, of sound."""
    started = time.perf_counter()
    first_s = sound_s = 0.0
    async for chunk in engine.synthesize(text, voice="af_heart", speed=1.0):
        first_s = first_s or time.perf_counter() - started
        sound_s += len(chunk.pcm) / 2 / chunk.sample_rate
    return first_s, time.perf_counter() - started, sound_s


def forward_times(engine: KokoroSynthesizer, repeats: int) -> list[dict[str, float]]:
    rows = []
    for phonemes in PIECES:
        ids = np.array([[0, *[20 + index % 40 for index in range(phonemes)], 0]], np.int64)
        style = engine._voices.style("af_heart", phonemes)
        taken = []
        samples = 0
        for _ in range(repeats):
            started = time.perf_counter()
            audio, _ = engine._backend.forward(ids, style, 1.0, Stop())
            taken.append(time.perf_counter() - started)
            samples = len(audio)
        waits = [time_to_stop(engine, ids, style, part * min(taken)) for part in (0.1, 0.3, 0.5, 0.7, 0.9)]
        rows.append(
            {
                "phonemes": phonemes,
                "sound_s": samples / SAMPLE_RATE,
                "forward_s": statistics.median(taken),
                "stop_median_s": statistics.median(waits),
                "stop_worst_s": max(waits),
            }
        )
    return rows


def time_to_stop(engine: KokoroSynthesizer, ids: Any, style: Any, after_s: float) -> float:
    """From a cancel, so long after the forward began, to the thread being free."""
    stop, stopped_at = Stop(), [0.0]

    def cancel() -> None:
        stopped_at[0] = time.perf_counter()
        stop.set()

    timer = threading.Timer(after_s, cancel)
    timer.start()
    try:
        engine._backend.forward(ids, style, 1.0, stop)
    except Stopped:
        return time.perf_counter() - stopped_at[0]
    finally:
        timer.cancel()
    return 0.0


def measure(folder: Path, backend: Any, threads: int, repeats: int, *, with_pieces: bool) -> dict[str, Any]:
    started = time.perf_counter()
    options = TtsOptions(engine="kokoro", model=str(folder), backend=backend, threads=threads, device="cpu")
    engine: KokoroSynthesizer = create(options)
    start_s = time.perf_counter() - started
    rows = {}
    for words, text in TEXTS.items():
        calls = [asyncio.run(one_call(engine, text)) for _ in range(repeats)]
        rows[words] = {
            "first_s": statistics.median(call[0] for call in calls),
            "first_worst_s": max(call[0] for call in calls),
            "rtf": statistics.median(call[1] / call[2] for call in calls),
            "sound_s": calls[0][2],
        }
    return {
        "start_s": start_s,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "has_torch": "torch" in sys.modules,
        "rows": rows,
        "pieces": forward_times(engine, repeats) if with_pieces else [],
    }


# --- all of them ----------------------------------------------------------------------------------------------------


def in_own_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "loadtest.bench_tts", "--one", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_table(results: dict[tuple[str, int], dict[str, Any]]) -> None:
    print(
        "\nbackend threads  start  memory  torch   "
        + "   ".join(f"{words:>2} words: first (worst)  RTF" for words in TEXTS)
    )
    for (backend, threads), result in results.items():
        cells = "   ".join(
            f"{1000 * row['first_s']:11.0f} ms ({1000 * row['first_worst_s']:5.0f}) {row['rtf']:5.2f}"
            for row in result["rows"].values()
        )
        loaded = "yes" if result["has_torch"] else "no"
        print(
            f"{backend:7} {threads:7} {result['start_s']:5.1f} s {result['memory_mb']:4} MB  {loaded:5}  {cells}"
        )
    lengths = next(iter(results.values()))["rows"]
    print("sound: " + ", ".join(f"{words} words {row['sound_s']:.1f} s" for words, row in lengths.items()))
    for (backend, threads), result in results.items():
        for row in result["pieces"]:
            print(
                f"{backend} {threads}: a forward of {row['phonemes']:3} phonemes, {row['sound_s']:4.1f} s of sound, takes "
                f"{row['forward_s']:5.2f} s; stopped half-way it frees the thread in {1000 * row['stop_median_s']:.0f} ms "
                f"(worst {1000 * row['stop_worst_s']:.0f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_tts", description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of real weights (default: random ones)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--backends", nargs="+", choices=("torch", "onnx"), default=["torch", "onnx"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pieces", action="store_true", help="also single forwards by length")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        (backend,), (threads,) = args.backends, args.threads
        print(json.dumps(measure(args.model, backend, threads, args.repeats, with_pieces=args.pieces)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or Path(temporary)
        if not args.model:
            bench_models.write_kokoro(folder)
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(f"weights: {args.model or 'random, true size'}; {args.repeats} runs each, median")
        if "onnx" in args.backends:
            started = time.perf_counter()
            path = kokoro_backends.exported(folder, next(iter(sorted(folder.glob("*.pth")))))
            print(f"ONNX export: {time.perf_counter() - started:.0f} s, {path.stat().st_size >> 20} MB")
        results = {}
        for backend in args.backends:
            for threads in args.threads:
                arguments = ["--model", str(folder), "--backends", backend, "--threads", str(threads)]
                extra = ["--pieces"] if args.pieces else []
                results[backend, threads] = in_own_process(*arguments, "--repeats", str(args.repeats), *extra)
        print_table(results)


if __name__ == "__main__":
    main()
