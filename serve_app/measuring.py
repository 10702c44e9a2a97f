"""How fast a stage is on this machine: its engine loaded and asked once, in a process of its own that may be ended.

Speeds are ratios to speech: a real-time factor of 0.2 computes a second of speech in 0.2 s. A language model speaks
along with `_TOKENS_PER_S`. The spoken test text comes from espeak-ng, which is always here; that it is spoken badly
changes the transcript and not the time.
"""

import asyncio
import multiprocessing
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from deployments.engines import create, smart_turn
from deployments.interfaces import (
    TRANSCRIBER_RATE,
    ChatMessage,
    ChatModel,
    EngineError,
    Sampling,
    Synthesizer,
    Transcriber,
)
from deployments.options import LlmOptions, SttOptions, TtsOptions

T = TypeVar("T")
Options = SttOptions | LlmOptions | TtsOptions

LIMIT_S = 60.0
"""Of one stage, loading included."""
_TOKENS_PER_S = 3.5
"""Of speech: 150 words a minute, 1.4 tokens a word."""
_TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it should."
_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Measurement:
    load_s: float = 0.0
    first_s: float = 0.0
    """Until the transcript, the first token, the first audio, the opinion."""
    rtf: float = 0.0
    """Seconds of computing for a second of speech; under 1 keeps up."""
    peak_bytes: int = 0
    """System memory of the process at its largest."""
    problem: str = ""
    """Why nothing was measured; the figures are 0 then."""


Measuring = Callable[[], Coroutine[Any, Any, Measurement]]
"""Runs in a process of its own, so it must be picklable."""


def measure(options: Options, *, limit_s: float = LIMIT_S) -> Measurement:
    """Takes `limit_s` at most."""
    if options.engine == "scripted":
        return Measurement(problem="follows a script")
    if options.engine == "openai_compatible":
        return Measurement(problem="runs elsewhere")
    return _in_own_process(partial(_measured, options), limit_s)


def measure_turn_judge(*, limit_s: float = LIMIT_S) -> Measurement:
    """An opinion on a few seconds of speech; the call before it, which is slower, counts as loading."""
    return _in_own_process(_judging, limit_s)


def _in_own_process(measuring: Measuring, limit_s: float) -> Measurement:
    # `spawn`: the libraries of engines do not survive a fork.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(measuring, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit_s):
            return Measurement(problem=f"not done within {limit_s:g} s")
        measured: Measurement = receiver.recv()
        return measured
    except EOFError:
        process.join()
        return Measurement(problem=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiver.close()


def _report(measuring: Measuring, sender: Connection) -> None:
    try:
        measured = asyncio.run(measuring())
    except EngineError as error:
        measured = Measurement(problem=error.message)
    sender.send(measured)


async def _measured(options: Options) -> Measurement:
    started = time.monotonic()
    engine = create(options)
    load_s = time.monotonic() - started
    first_s, rtf = await _speed(engine, options)
    return Measurement(load_s, first_s, rtf, _peak_bytes())


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def _speed(engine: Any, options: Options) -> tuple[float, float]:
    """`first_s` and `rtf`. Any: the type of `options` says which protocol the engine has."""
    match options:
        case SttOptions():
            return await _transcribing(engine, options)
        case LlmOptions():
            return await _generating(engine, options)
        case TtsOptions():
            return await _synthesizing(engine, options)


async def _transcribing(engine: Transcriber, options: SttOptions) -> tuple[float, float]:
    pcm = await _spoken()
    started = time.monotonic()
    await engine.transcribe(pcm, language=options.language, prompt=None)
    elapsed = time.monotonic() - started
    return elapsed, elapsed / (len(pcm) / 2 / TRANSCRIBER_RATE)


async def _generating(engine: ChatModel, options: LlmOptions) -> tuple[float, float]:
    messages = [ChatMessage("user", "Tell me a long story about a dragon.")]
    if options.system_prompt:
        messages.insert(0, ChatMessage("system", options.system_prompt))
    deltas = engine.generate(messages, sampling=Sampling(max_tokens=_TOKENS, temperature=0.0))
    times, last = await _times(deltas)
    tokens = last.usage.output_tokens if last.usage else len(times)
    seconds_a_token = (times[-1] - times[0]) / max(1, tokens - 1)
    return times[0], seconds_a_token * _TOKENS_PER_S


async def _synthesizing(engine: Synthesizer, options: TtsOptions) -> tuple[float, float]:
    started = time.monotonic()
    first_s, speech_s = 0.0, 0.0
    async for chunk in engine.synthesize(_TEXT, voice=options.voice, speed=options.speed):
        first_s = first_s or time.monotonic() - started
        speech_s += len(chunk.pcm) / 2 / chunk.sample_rate
    return first_s, (time.monotonic() - started) / speech_s


async def _judging() -> Measurement:
    pcm = await _spoken()
    started = time.monotonic()
    judge = smart_turn.load()
    await judge.completeness(pcm)
    loaded = time.monotonic()
    await judge.completeness(pcm)
    elapsed = time.monotonic() - loaded
    speech_s = len(pcm) / 2 / TRANSCRIBER_RATE
    return Measurement(loaded - started, elapsed, elapsed / speech_s, _peak_bytes())


async def _times(stream: AsyncIterator[T]) -> tuple[list[float], T]:
    """When each item came, and the last."""
    started = time.monotonic()
    times, items = [], []
    async for item in stream:
        times.append(time.monotonic() - started)
        items.append(item)
    return times, items[-1]


async def _spoken() -> bytes:
    """Some seconds of speech as a transcriber takes it."""
    voice: Synthesizer = create(TtsOptions(engine="espeak"))
    chunks = [chunk async for chunk in voice.synthesize(_TEXT, voice="en-us", speed=1.0)]
    audio = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), np.int16)
    duration_s = len(audio) / chunks[0].sample_rate
    at = np.arange(int(duration_s * TRANSCRIBER_RATE)) * chunks[0].sample_rate / TRANSCRIBER_RATE
    return np.interp(at, np.arange(len(audio)), audio).astype("<i2").tobytes()
