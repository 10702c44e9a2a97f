"""Barge-ins on real recordings while a scripted answer plays with at least two seconds of it unsent.

All times are the caller's, but for the release of the engines: their replicas note when a cancelled call ended, on
the same machine's monotonic clock.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.audio.pcm import Audio

from .application import SCRIPTED, Application, ProxyMode, application
from .caller import Caller, caller, onset_s, percentile

PREFIX_MS = 300.0
FRAME_MS = 32.0
BUSY = {
    "llm": {"scripted": {"first_token_s": 0.1, "tokens_per_s": 8, "answer_words": 120}},
    "tts": {"scripted": {"first_audio_s": 0.1, "word_s": 0.3, "realtime_factor": 0.9}},
}
"""Both engines are still at work whenever the caller breaks in."""


@dataclass(frozen=True, slots=True)
class BargeIn:
    """Milliseconds, unless it says otherwise."""

    onset_to_last_chunk: float
    frame_to_started: float
    """From the arrival of the first frame over the threshold to `speech_started`."""
    stale_chunks: int
    max_ahead: float
    llm_released: float
    tts_released: float
    """From `speech_started` at the caller to the end of the call in its replica; negative: before it arrived."""


async def one_barge_in(
    app: Application, question: Audio, interruption: Audio, after_s: float
) -> BargeIn | None:
    """None where the recording was not taken for speech within its length: no interruption to measure."""
    async with caller(app.realtime) as one:
        one.say(question)
        first = await one.until_type("response.output_audio.delta")
        await asyncio.sleep(after_s)
        old_item, after = first.event["item_id"], len(one.arrivals)
        spoken = one.say(interruption)
        onset = onset_s(interruption)
        try:
            started = await one.until_type(
                "input_audio_buffer.speech_started", after=after, within_s=len(interruption) / 24_000 + 1
            )
        except TimeoutError:
            return None
        done = await one.until_type("response.done", after=after)
        assert done.event["response"]["status"] == "cancelled", done.event
        await asyncio.sleep(0.5)
        llm, tts = await asyncio.gather(app.until_idle("LanguageModel"), app.until_idle("TextToSpeech"))
        assert spoken.began_at is not None
        return _measured(one, old_item, spoken.began_at + onset, started, llm, tts)


def _measured(
    one: Caller,
    old_item: str,
    onset_at: float,
    started: Any,
    llm: Mapping[str, float],
    tts: Mapping[str, float],
) -> BargeIn:
    old = [chunk for chunk in one.player.arrivals if chunk.item_id == old_item]
    first_frame_at = one.sent_at(started.event["audio_start_ms"] + PREFIX_MS + FRAME_MS)
    return BargeIn(
        onset_to_last_chunk=(max(chunk.at for chunk in old) - onset_at) * 1000,
        frame_to_started=(started.at - first_frame_at) * 1000,
        stale_chunks=sum(chunk.is_stale for chunk in old),
        max_ahead=max(chunk.ahead_s for chunk in old) * 1000,
        llm_released=(llm["last_cancel_at"] - started.at) * 1000,
        tts_released=(tts["last_cancel_at"] - started.at) * 1000,
    )


async def all_barge_ins(
    app: Application, clips: dict[str, Audio], trials: int, seed: int = 7
) -> list[BargeIn]:
    dice = random.Random(seed)
    names = dice.sample(sorted(clips), len(clips))
    question = clips[names[0]]
    measured = []
    for trial in range(trials):
        name = names[trial % len(names)]
        result = await one_barge_in(app, question, clips[name], dice.uniform(0.6, 3.0))
        print(f"{trial + 1:3d}/{trials} {name}: {result}", flush=True)
        if result is not None:
            measured.append(result)
    return measured


def run(clips: dict[str, Audio], *, proxy: ProxyMode, trials: int, config: Path = SCRIPTED) -> None:
    with application(config, BUSY, proxy=proxy) as app:
        measured = asyncio.run(all_barge_ins(app, clips, trials))
        counted = {name: asyncio.run(app.stats(name)) for name in ("LanguageModel", "TextToSpeech")}
    print(f"{len(measured)} of {trials} interrupted, proxy {proxy}, one session at a time")
    print(f"{'ms':>22} {'p50':>8} {'p95':>8} {'max':>8}")
    for field in ("onset_to_last_chunk", "frame_to_started", "max_ahead", "llm_released", "tts_released"):
        values = [getattr(result, field) for result in measured]
        print(
            f"{field:>22} {percentile(values, 0.5):8.1f} {percentile(values, 0.95):8.1f} {max(values):8.1f}"
        )
    print(f"old chunks after speech_started: {sum(result.stale_chunks for result in measured)}")
    for name, counts in counted.items():
        print(f"{name}: {counts}")
