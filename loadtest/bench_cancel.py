"""How soon an engine takes new work after a cancelled call: its first item then, against its first item at rest.

Through Serve handles, on the engines of config.yaml; one caller.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ray import serve

from deployments.interfaces import ChatMessage, Sampling
from serve_app.audio.pcm import Audio, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.session.engine_clients import RemoteChatModel, RemoteSynthesizer, RemoteTranscriber

from .application import APPLICATION, ROOT, application
from .caller import percentile
from .command import Commands, add_command, sentences

LONG_TEXT = (
    "This is a long sentence that goes on and on, so that the engine is still at work when it is stopped. "
    * 4
)
MESSAGES = [
    ChatMessage("system", "You are a storyteller."),
    ChatMessage("user", "Tell me a long story about the sea."),
]


async def first_item_ms(make: Callable[[], AsyncGenerator[Any, None]]) -> float:
    """Of a stream that is left, and so cancelled, after its first item."""
    began = time.monotonic()
    stream = make()
    await anext(stream)
    took = (time.monotonic() - began) * 1000
    await stream.aclose()
    return took


async def stream_figures(
    make: Callable[[], AsyncGenerator[Any, None]], trials: int
) -> tuple[list[float], list[float]]:
    """(at rest, right after a cancelled call), in ms."""
    at_rest, after_cancel = [], []
    for _ in range(trials):
        await asyncio.sleep(1.0)
        at_rest.append(await first_item_ms(make))
        after_cancel.append(await first_item_ms(make))
    return at_rest, after_cancel


async def call_figures(make: Callable[[], Awaitable[Any]], trials: int) -> tuple[list[float], list[float]]:
    """The same for a call with one answer, cancelled after 50 ms."""
    at_rest, after_cancel = [], []
    for _ in range(trials):
        await asyncio.sleep(1.0)
        at_rest.append(await _timed(make))
        try:
            async with asyncio.timeout(0.05):
                await make()
        except TimeoutError:
            pass
        after_cancel.append(await _timed(make))
    return at_rest, after_cancel


async def _timed(make: Callable[[], Awaitable[Any]]) -> float:
    began = time.monotonic()
    await make()
    return (time.monotonic() - began) * 1000


async def all_figures(question: Audio, trials: int) -> dict[str, tuple[list[float], list[float]]]:
    handles = {
        n: serve.get_deployment_handle(n, APPLICATION)
        for n in ("SpeechToText", "LanguageModel", "TextToSpeech")
    }
    pcm = encode_pcm(StreamingResampler(24_000, 16_000).push(question))
    ears, mind, mouth = (
        RemoteTranscriber(handles["SpeechToText"]),
        RemoteChatModel(handles["LanguageModel"]),
        RemoteSynthesizer(handles["TextToSpeech"]),
    )
    await ears.transcribe(pcm, language="en", prompt=None)
    return {
        "SpeechToText, transcript": await call_figures(
            lambda: ears.transcribe(pcm, language="en", prompt=None), trials
        ),
        "LanguageModel, first token": await stream_figures(
            lambda: mind.generate(MESSAGES, sampling=Sampling(max_tokens=300)), trials
        ),
        "TextToSpeech, first audio": await stream_figures(
            lambda: mouth.synthesize(LONG_TEXT, voice="en-us", speed=1.0), trials
        ),
    }


def add_parser(commands: Commands) -> None:
    what = "how soon engines take new work after a cancelled call"
    command = add_command(commands, "cancel", run, what)
    command.add_argument("--trials", type=int, default=10)


def run(args: argparse.Namespace) -> None:
    embedded = {
        "llm": {"model": "embedded:smollm2-135m"},
        "stt": {"engine": "pocketsphinx"},
        "tts": {"engine": "espeak"},
    }
    question = sentences(args)["LJ002-0020"]
    with application(ROOT / "config.yaml", embedded) as _:
        figures = asyncio.run(all_figures(question, args.trials))
    print(f"embedded engines, {args.trials} trials; ms, p50 / p95")
    for name, (at_rest, after_cancel) in figures.items():
        shares = [percentile(values, share) for values in (at_rest, after_cancel) for share in (0.5, 0.95)]
        print(
            f"{name:28} at rest {shares[0]:7.1f} / {shares[1]:7.1f}   after a cancel {shares[2]:7.1f} / {shares[3]:7.1f}"
        )
