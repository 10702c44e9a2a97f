"""Kokoro's speed on this machine: first audio and real-time factor by length of text, torch against ONNX, 1 and 2 threads.

    python -m loadtest.bench_tts [--model FOLDER] [--torch-threads 1 2] ...

Without `--model` the weights are random, at the true size: time is valid, sound is not. Random durations come out ten
times too long, so the forward is asked for the speed at which it gives `PHONEMES_A_SECOND`, as speech has. Each backend
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

PHONEMES_A_SECOND = 15.0
"""Of the real weights, on English at speed 1."""
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


def full_size_config() -> dict[str, Any]:
    """Kokoro-82M's config.json, with a vocabulary of the right size."""
    symbols = ';:,.!?—…"() “”AIOQSTWYabcdefhijklmnopqrstuvwxyzɑɐɒæɔəɚɛɜɟɡɪŋɹɾʃʊʌʒʤʧˈˌːθðᵊᵻ'
    return {
        "istftnet": {
            "upsample_kernel_sizes": [20, 12],
            "upsample_rates": [10, 6],
            "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20,
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_initial_channel": 512,
        },
        "dim_in": 64,
        "dropout": 0.2,
        "hidden_dim": 512,
        "max_conv_dim": 512,
        "max_dur": 50,
        "multispeaker": True,
        "n_layer": 3,
        "n_mels": 80,
        "n_token": 178,
        "style_dim": 128,
        "text_encoder_kernel_size": 5,
        "plbert": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 2048,
            "max_position_embeddings": 512,
            "num_hidden_layers": 12,
            "dropout": 0.1,
        },
        "vocab": {symbol: index for index, symbol in enumerate(symbols, start=1)},
    }


def write_random_weights(folder: Path) -> None:
    import torch

    (folder / "voices").mkdir()
    (folder / "config.json").write_text(json.dumps(full_size_config()), encoding="utf-8")
    torch.save({}, folder / "random.pth")  # an empty state: all parts keep their random initial weights
    style = torch.randn(510, 1, 256, generator=torch.Generator().manual_seed(7)) * 0.1
    torch.save(style, folder / "voices" / "af_heart.pt")


# --- one replica ----------------------------------------------------------------------------------------------------


def speaking_speed(engine: KokoroSynthesizer) -> float:
    """The speed at which this engine says `PHONEMES_A_SECOND`."""
    piece = engine._pieces(TEXTS[15], "a")[0]
    speed = 1.0
    for _ in range(4):
        audio, _ = engine._forward(piece, "af_heart", speed, Stop())
        speed *= len(audio) / SAMPLE_RATE / (len(piece.phonemes) / PHONEMES_A_SECOND)
    return speed


async def one_call(engine: KokoroSynthesizer, text: str, speed: float) -> tuple[float, float, float]:
    """Seconds to the first audio, of computing in all, of sound."""
    started = time.perf_counter()
    first_s = sound_s = 0.0
    async for chunk in engine.synthesize(text, voice="af_heart", speed=speed):
        first_s = first_s or time.perf_counter() - started
        sound_s += len(chunk.pcm) / 2 / chunk.sample_rate
    return first_s, time.perf_counter() - started, sound_s


def forward_times(engine: KokoroSynthesizer, speed: float, repeats: int) -> list[dict[str, float]]:
    rows = []
    for phonemes in PIECES:
        ids = np.array([[0, *[20 + index % 40 for index in range(phonemes)], 0]], np.int64)
        style = engine._voices.style("af_heart", phonemes)
        taken = []
        samples = 0
        for _ in range(repeats):
            started = time.perf_counter()
            audio, _ = engine._backend.forward(ids, style, speed, Stop())
            taken.append(time.perf_counter() - started)
            samples = len(audio)
        waits = [
            time_to_stop(engine, ids, style, speed, part * min(taken)) for part in (0.1, 0.3, 0.5, 0.7, 0.9)
        ]
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


def time_to_stop(engine: KokoroSynthesizer, ids: Any, style: Any, speed: float, after_s: float) -> float:
    """From a cancel, so long after the forward began, to the thread being free."""
    stop, stopped_at = Stop(), [0.0]

    def cancel() -> None:
        stopped_at[0] = time.perf_counter()
        stop.set()

    timer = threading.Timer(after_s, cancel)
    timer.start()
    try:
        engine._backend.forward(ids, style, speed, stop)
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
    is_random = (folder / "random.pth").exists()
    speed = speaking_speed(engine) if is_random else 1.0
    rows = {}
    for words, text in TEXTS.items():
        calls = [asyncio.run(one_call(engine, text, speed)) for _ in range(repeats)]
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
        "pieces": forward_times(engine, speed, repeats) if with_pieces else [],
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
            write_random_weights(folder)
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
