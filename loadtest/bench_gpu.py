"""Mouth to ear at true dimensions with random weights, for so many callers at once: what one GPU carries.

Whisper large-v3-turbo (CTranslate2, float16), Llama 3.1 8B (SGLang, `load_format: dummy`) and Kokoro-82M (torch) of
`bench_models`, placed by `cluster/serve.gpu.yaml` beside each other on one GPU. Nothing is fetched. What holds for the
real models: time and memory. What does not: the words, and how many there are. So every turn hears a transcript of
eleven words, and every answer has 20 tokens, each a word, which Kokoro speaks.

`--size tiny` goes the same way on a CPU with small dimensions, and with SmolLM2 in llama.cpp where SGLang is not
installed: that the script runs, not how fast a GPU is.
"""

import argparse
import asyncio
import importlib.util
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from serve_app.audio.pcm import Audio
from serve_app.bench.whisper_shapes import SHAPES

from . import bench_models
from .application import ROOT, Application, application
from .bench_turns import TurnMeasured, one_turn
from .caller import STAGES, caller, percentile
from .command import Commands, add_command, numbers, strings

Size = Literal["full", "tiny"]
ANSWER_TOKENS = 20
ENGINES = ("SpeechToText", "LanguageModel", "TextToSpeech")
_REST_S = (0.2, 1.0)
"""Between the end of an answer and the next question."""


@dataclass(slots=True)
class Round:
    sessions: int
    turns: list[TurnMeasured] = field(default_factory=list)
    missed: int = 0
    """Questions without an answer within 30 s."""


async def one_caller(url: str, questions: list[Audio], turns: int, seed: int, found: Round) -> None:
    dice = random.Random(seed)
    await asyncio.sleep(dice.uniform(0, 2))
    async with caller(url) as one:
        for turn in range(turns):
            try:
                found.turns.append(await one_turn(one, dice.choice(questions)))
            except TimeoutError:
                # An answer that comes yet must not count for the next question.
                found.missed += turns - turn
                return
            rest_s = one.player.ends_at - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, rest_s) + dice.uniform(*_REST_S))


async def one_round(url: str, questions: list[Audio], sessions: int, turns: int) -> Round:
    found = Round(sessions)
    async with asyncio.TaskGroup() as tasks:
        for seed in range(sessions):
            tasks.create_task(one_caller(url, questions, turns, seed, found))
    return found


# --- the models and where they run ----------------------------------------------------------------------------------


def setup(size: Size, folder: Path, most_sessions: int) -> tuple[Path, dict[str, Any]]:
    """Writes the models below `folder`; the Serve config, and what is changed in it."""
    whisper, llama, kokoro = folder / "whisper", folder / "llama", folder / "kokoro"
    whisper.mkdir()
    args: dict[str, Any] = {
        "limits": {"max_sessions_per_replica": most_sessions},
        "turn_taking": {"drafts_per_turn": 0},
    }
    stt = {"engine": "faster_whisper", "model": str(whisper), "language": "en"}
    llm = {"engine": "sglang", "model": str(llama), "max_tokens": ANSWER_TOKENS, "temperature": 1.0}
    tts = {"engine": "kokoro", "model": str(kokoro), "voice": "af_heart"}
    if size == "full":
        bench_models.write_whisper(whisper, SHAPES["large-v3-turbo"], quantization="float16")
        bench_models.write_llama(llama, bench_models.LLAMA_8B)
        bench_models.write_kokoro(kokoro)
        llm["engine_args"] = {"load_format": "dummy", "mem_fraction_static": 0.7}
        return ROOT / "cluster" / "serve.gpu.yaml", args | {"stt": stt, "llm": llm, "tts": tts}
    bench_models.write_whisper(whisper, bench_models.WHISPER_TINY, quantization="int8")
    bench_models.write_kokoro(kokoro, bench_models.KOKORO_TINY)
    if importlib.util.find_spec("sglang") is None:
        llm |= {"engine": "llama_cpp", "model": "embedded:smollm2-135m"}
    else:
        bench_models.write_llama(llama, bench_models.LLAMA_TINY)
        llm["engine_args"] = {"load_format": "dummy", **bench_models.SGLANG_ON_CPU}
    tts["backend"] = "torch"  # as on a GPU
    return ROOT / "config.yaml", args | {"stt": stt, "llm": llm, "tts": tts}


def memory(app: Application) -> str:
    """What the GPU holds by process or, where there is none, the highest resident memory of each engine's replica."""
    if shutil.which("nvidia-smi") is None:
        stages = httpx.get(f"{app.http}/v1/models", timeout=30).json()["data"][0]["stages"]
        peaks = {
            s["stage"]: s["details"]["peak_rss_mb"] for s in stages if "peak_rss_mb" in s.get("details", {})
        }
        return f"no GPU; resident MB of the replicas at most: {peaks}"
    query = ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    rows = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip().splitlines()
    pids = {str(int(asyncio.run(app.stats(name))["pid"])): name for name in ENGINES}
    named = []
    for row in rows:
        pid, process, used = (part.strip() for part in row.split(","))
        named.append(f"{pids.get(pid, process)} {used}")
    total = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader"]
    whole = subprocess.run(total, check=True, capture_output=True, text=True).stdout.strip()
    return f"GPU memory used, in all: {whole}; by process: {'; '.join(named)}"


# --- the run --------------------------------------------------------------------------------------------------------


def add_parser(commands: Commands) -> None:
    command = add_command(commands, "gpu", run, "mouth to ear with true dimensions and random weights")
    command.add_argument("--sessions", type=numbers, default=[1, 8, 32], help="at once (default: 1,8,32)")
    command.add_argument("--turns", type=int, default=5, help="of each session")
    command.add_argument(
        "--size",
        choices=("full", "tiny"),
        default="full",
        help="full: Whisper large-v3-turbo, Llama 3.1 8B and Kokoro on one GPU; tiny: the same way on a CPU",
    )


def run(args: argparse.Namespace) -> None:
    questions = list(strings(args).values())
    with tempfile.TemporaryDirectory(prefix="voice-serve-models-") as folder:
        config, changes = setup(args.size, Path(folder), max(args.sessions))
        with application(config, changes, proxy=args.proxy, start_s=600) as app:
            print(
                f"size {args.size}, llm {changes['llm']['engine']}, ready after {app.ready_s:.0f} s, "
                f"proxy {args.proxy}, no drafts, random weights"
            )
            print(f"before the first call: {memory(app)}")
            for count in args.sessions:
                report(asyncio.run(one_round(app.realtime, questions, count, args.turns)))
            print(f"after the last call: {memory(app)}")
            for name in ENGINES:
                print(f"{name}: {asyncio.run(app.stats(name))}")


def report(found: Round) -> None:
    if not found.turns:
        print(f"{found.sessions} sessions: no turn was answered within 30 s, {found.missed} missed")
        return
    tokens = percentile([float(turn.output_tokens) for turn in found.turns], 0.5)
    print(
        f"{found.sessions} sessions: {len(found.turns)} turns, {found.missed} missed; median answer {tokens:.0f} tokens"
    )
    print(f"{'ms':>22} {'p50':>8} {'p95':>8}")
    rows = {stage: [turn.stages_ms[stage] for turn in found.turns] for stage in STAGES}
    rows["mouth to ear (caller)"] = [turn.client_total_ms for turn in found.turns]
    for name, values in rows.items():
        print(f"{name:>22} {percentile(values, 0.5):8.0f} {percentile(values, 0.95):8.0f}")
