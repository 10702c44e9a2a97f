"""Barge-ins on real recordings while a scripted answer plays with at least two seconds of it unsent.

All times are the caller's, but for the release of the engines: their replicas note when a cancelled call ended, on
the same machine's monotonic clock.

Each barge-in is answered, and then the same recording is said again into silence: how much later the answer to the
first comes than that to the second, each from its own end of speech, is what a barge-in costs the turn that it begins.
"""

import argparse
import asyncio
import random
from dataclasses import dataclass, fields
from typing import Any

from serve_app.audio.pcm import Audio

from .application import Application, application
from .bench_turns import PAUSE_MS
from .caller import Caller, caller, has_onset, onset_s, percentile
from .command import Commands, add_command, sentences, strings

PREFIX_MS = 300.0
FRAME_MS = 32.0
REST_S = 0.6
"""Between a cancelled answer and the next turn: what had been sent of it, 300 ms, has been played."""
BUSY = {
    "llm": {"scripted": {"first_token_s": 0.1, "tokens_per_s": 8, "answer_words": 120}},
    "tts": {"scripted": {"first_audio_s": 0.1, "word_s": 0.3, "realtime_factor": 0.9}},
}
"""Both engines are still at work whenever the caller breaks in."""
EVERYTHING = {"turn_taking": {"drafts_per_turn": 3, "interim_ms": 700, "eagerness": "medium"}}
"""Drafts, interim transcripts and semantic_vad."""
ENGINES = ("LanguageModel", "TextToSpeech")
PLAIN = {"turn_taking": {"drafts_per_turn": 0, "interim_ms": 0}}


@dataclass(frozen=True, slots=True)
class BargeIn:
    """Milliseconds, unless it says otherwise."""

    onset_to_last_chunk: float
    frame_to_started: float
    """From the arrival of the first frame over the threshold to `speech_started`."""
    stale_chunks: int
    max_ahead: float
    llm_released: float | None
    tts_released: float | None
    """From `speech_started` at the caller to the end of the call in its replica; negative: before it arrived; None: the
    engine was between two calls."""
    next_answer: float
    """From the end of the speech that broke in to the first sound of its answer."""
    extra_wait: float
    """How much longer that is than the same speech waits when it breaks into nothing."""


async def one_barge_in(
    app: Application, question: Audio, interruption: Audio, after_s: float
) -> BargeIn | None:
    """None where the recording was not taken for speech within its length: no interruption to measure."""
    async with caller(app.realtime) as one:
        one.say(question)
        first = await one.until_type("response.output_audio.delta")
        cancels = {name: (await app.stats(name))["last_cancel_at"] for name in ENGINES}
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
        llm, tts = [await app.until_cancelled(name, after=cancels[name]) for name in ENGINES]
        assert spoken.began_at is not None
        next_answer = await _answer_wait_ms(one, after)
        await asyncio.sleep(REST_S)
        quiet = len(one.arrivals)
        await one.until_said(one.say(interruption))
        extra_wait = next_answer - await _answer_wait_ms(one, quiet)
        onset_at = spoken.began_at + onset
        return _measured(one, old_item, onset_at, started, llm, tts, next_answer, extra_wait)


async def _answer_wait_ms(one: Caller, after: int) -> float:
    """From the end of the speech that began after so many events to the first sound of its answer, which is then
    cancelled."""
    stopped = await one.until_type("input_audio_buffer.speech_stopped", after=after)
    begun = one.arrivals.index(stopped)
    sound = await one.until_type("response.output_audio.delta", after=begun)
    await one.client.send("response.cancel")
    await one.until_type("response.done", after=begun)
    stops = [a for a in one.arrivals[begun : one.arrivals.index(sound)] if a.type == stopped.type]
    return (sound.at - one.sent_at(stops[-1].event["audio_end_ms"] - PAUSE_MS)) * 1000


def _measured(
    one: Caller,
    old_item: str,
    onset_at: float,
    started: Any,
    llm_released_at: float | None,
    tts_released_at: float | None,
    next_answer: float,
    extra_wait: float,
) -> BargeIn:
    old = [chunk for chunk in one.player.arrivals if chunk.item_id == old_item]
    first_frame_at = one.sent_at(started.event["audio_start_ms"] + PREFIX_MS + FRAME_MS)
    return BargeIn(
        onset_to_last_chunk=(max(chunk.at for chunk in old) - onset_at) * 1000,
        frame_to_started=(started.at - first_frame_at) * 1000,
        stale_chunks=sum(chunk.is_stale for chunk in old),
        max_ahead=max(chunk.ahead_s for chunk in old) * 1000,
        llm_released=llm_released_at and (llm_released_at - started.at) * 1000,
        tts_released=tts_released_at and (tts_released_at - started.at) * 1000,
        next_answer=next_answer,
        extra_wait=extra_wait,
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


def add_parser(commands: Commands) -> None:
    command = add_command(commands, "barge-in", run, "from onset to silence")
    command.add_argument("--trials", type=int, default=40)
    command.add_argument("--sentences", action="store_true", help="the sentences, not the strings of digits")
    command.add_argument(
        "--everything", action="store_true", help="with drafts, interim transcripts and semantic_vad"
    )


def run(args: argparse.Namespace) -> None:
    # Only where a recording is cut close to the speech is the onset of energy the onset of speech.
    clear = {n: c for n, c in sentences(args).items() if has_onset(c)} if args.sentences else strings(args)
    with application(args=BUSY | (EVERYTHING if args.everything else PLAIN), proxy=args.proxy) as app:
        measured = asyncio.run(all_barge_ins(app, clear, args.trials))
        counted = {name: asyncio.run(app.stats(name)) for name in ENGINES}
    with_what = "drafts, interims, semantic_vad" if args.everything else "server_vad, no drafts"
    print(
        f"{len(measured)} of {args.trials} interrupted, proxy {args.proxy}, {with_what}, one session at a time"
    )
    print(f"{'ms':>22} {'p50':>8} {'p95':>8} {'max':>8}")
    for field in (field.name for field in fields(BargeIn) if field.name != "stale_chunks"):
        values = [value for result in measured if (value := getattr(result, field)) is not None]
        print(
            f"{field:>22} {percentile(values, 0.5):8.1f} {percentile(values, 0.95):8.1f} {max(values, default=float('nan')):8.1f}"
        )
    print(f"old chunks after speech_started: {sum(result.stale_chunks for result in measured)}")
    for name, counts in counted.items():
        print(f"{name}: {counts}")
