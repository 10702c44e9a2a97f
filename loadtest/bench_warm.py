"""First token with and without the prompt read ahead, on a llama.cpp model of this process.

Three situations, each as the conversation meets it, each trial with a prompt that the engine has never seen:
(a) a session starts with long instructions and the first question is asked a while later; (b) an answer was cut after
its first words and the next question is asked; (c) the first question is asked while the instructions are being read.
With and without take turns, so that a noisy machine troubles both alike.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence

from deployments.engines.llama_cpp import LlamaCppChatModel
from deployments.interfaces import ChatMessage, EngineBusy, Sampling
from deployments.models import EMBEDDED_CHAT_MODEL
from deployments.options import LlmOptions
from deployments.replica import closing

from .caller import percentile
from .command import Commands, add_command

SAMPLING = Sampling(max_tokens=60, temperature=0.0)
QUESTION = ChatMessage("user", "When do I get my tea, please?")
NEXT_QUESTION = ChatMessage("user", "No, wait. Where is the pool?")
CUT_AFTER = 8
"""Tokens."""
SHARE_READ = 0.5
"""Of the instructions, when the question comes in situation (c)."""


def instructions(rules: int, trial: int, kind: str) -> ChatMessage:
    """No two begin alike, so that none finds another's in the cache. A rule has 20 to 22 tokens."""
    texts = (
        f"Rule {n}: the guest in room {n + 7} takes tea at {n % 12 + 1} o'clock and likes it quiet."
        for n in range(rules)
    )
    return ChatMessage("system", f"{kind} {trial}. You speak for a hotel. " + " ".join(texts))


async def first_token(
    engine: LlamaCppChatModel, messages: Sequence[ChatMessage], tokens: int = 1
) -> tuple[float, str]:
    """(ms to the first text, the text of the first `tokens`); the rest is cancelled."""
    began, first_ms, texts = time.monotonic(), 0.0, []
    async with closing(engine.generate(messages, sampling=SAMPLING)) as deltas:
        async for delta in deltas:
            first_ms = first_ms or (time.monotonic() - began) * 1000
            texts.append(delta.text)
            if len(texts) == tokens:
                break
    return first_ms, "".join(texts)


class Bench:
    def __init__(self, model: str, rules: int, threads: int) -> None:
        options = LlmOptions(
            engine="llama_cpp", model=model, parallel=2, context_tokens=4096, threads=threads
        )
        self._engine = LlamaCppChatModel(options)
        self._rules = rules
        self.read_ms: list[float] = []
        """What reading the instructions took, in the background."""

    async def after_start(self, trial: int, *, is_warm: bool) -> float:
        system = instructions(self._rules, trial, f"start {is_warm}")
        if is_warm:
            began = time.monotonic()
            await self._engine.prefill([system], sampling=SAMPLING)
            self.read_ms.append((time.monotonic() - began) * 1000)
        return (await first_token(self._engine, [system, QUESTION]))[0]

    async def after_cut(self, trial: int, *, is_warm: bool) -> float:
        asked = [instructions(self._rules, trial, f"cut {is_warm}"), QUESTION]
        _, said = await first_token(self._engine, asked, CUT_AFTER)
        heard = " ".join(said.split()[: CUT_AFTER // 2]) or "Well"
        told = [*asked, ChatMessage("assistant", heard)]
        if is_warm:
            await self._engine.prefill(told, sampling=SAMPLING)
        return (await first_token(self._engine, [*told, NEXT_QUESTION]))[0]

    async def while_reading(self, trial: int, *, is_warm: bool) -> float:
        system = instructions(self._rules, trial, f"reading {is_warm}")
        if not is_warm:
            return (await first_token(self._engine, [system, QUESTION]))[0]
        reading = asyncio.ensure_future(self._engine.prefill([system], sampling=SAMPLING))  # noqa: TID251 - raced
        await asyncio.sleep(percentile(self.read_ms, 0.5) / 1000 * SHARE_READ)
        first_ms, _ = await first_token(self._engine, [system, QUESTION])
        await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(reading.exception(), EngineBusy), "the question came too late"
        return first_ms


async def measure(bench: Bench, trials: int) -> None:
    situations = {
        "(a) the session has started": bench.after_start,
        "(b) an answer was cut": bench.after_cut,
        "(c) still reading at the question": bench.while_reading,
    }
    for name, situation in situations.items():
        cold, warm = [], []
        for trial in range(trials):
            cold.append(await situation(trial, is_warm=False))
            warm.append(await situation(trial, is_warm=True))
        ratio = percentile(cold, 0.5) / percentile(warm, 0.5)
        shares = "   ".join(
            f"{what} {percentile(values, 0.5):6.0f} / {percentile(values, 0.95):6.0f}"
            for what, values in (("without", cold), ("with", warm))
        )
        print(f"{name:34} {shares}   without : with = {ratio:.1f}", flush=True)


def add_parser(commands: Commands) -> None:
    what = "first token with the prompt read ahead and without, llama.cpp"
    command = add_command(commands, "warm", run, what)
    command.add_argument("--model", default=EMBEDDED_CHAT_MODEL, help="a GGUF (default: %(default)s)")
    command.add_argument("--trials", type=int, default=5, help="of each situation")
    command.add_argument(
        "--rules", type=int, default=70, help="in the instructions; each has about 22 tokens"
    )
    command.add_argument("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> None:
    bench = Bench(args.model, args.rules, args.threads)
    print(
        f"first token in ms, p50 / p95 of {args.trials} trials each; instructions of {args.rules} rules",
        flush=True,
    )
    asyncio.run(measure(bench, args.trials))
    print(
        f"reading the instructions ahead took {percentile(bench.read_ms, 0.5):.0f} ms (p50), in the background"
    )
