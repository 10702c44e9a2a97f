"""What people said and what was heard: recognition of live digit strings, words heard at a cut, and noise.

Each is measured through the WebSocket of a running application, as live audio.
"""

import argparse
import asyncio
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer

from deployments.engines.scripted_code import decode_words
from serve_app.audio.pcm import Audio, to_audio

from .application import ROOT, Application, application
from .caller import Caller, caller
from .command import SHARED, Commands, add_command, noises, sentences, strings

RATE = 24_000
WORD_S = 0.3
EDGE_S = 0.03
"""A word that sounds to within this of its end is wholly heard: the decoder finds edges to 4 ms, a chunk's end cuts
at a sample."""


def add_parser(commands: Commands) -> None:
    digits = add_command(commands, "digits", run_digits, "word error rate of live digit strings")
    digits.add_argument("--model", type=Path, default=SHARED / "models" / "whisper-digits-int8")
    digits.add_argument("--sessions", type=int, default=4)
    add_command(commands, "noise", run_noise, "what noise does to the floor")
    heard = add_command(commands, "heard", run_heard, "words kept in the history against words played")
    heard.add_argument("--cuts", type=int, default=40)


# --- digits ---------------------------------------------------------------------------------------------------------


async def one_speaker(
    url: str, clips: list[tuple[str, Audio]], texts: dict[str, str]
) -> dict[str, list[str]]:
    """The transcripts of each clip, said one after the other in one session; no answers are asked for."""
    heard: dict[str, list[str]] = {}
    vad = {"type": "server_vad", "create_response": False}
    async with caller(url, audio={"input": {"turn_detection": vad}}) as one:
        for name, audio in clips:
            after = len(one.arrivals)
            spoken = one.say(audio)
            await one.until_said(spoken)
            await asyncio.sleep(1.5)
            heard[name] = [
                a.event["transcript"]
                for a in one.arrivals[after:]
                if a.type.endswith("transcription.completed")
            ]
            print(f"{name}: {texts[name]!r} -> {heard[name]}", flush=True)
    return heard


async def all_digits(
    url: str, clips: dict[str, Audio], texts: dict[str, str], sessions: int
) -> dict[str, list[str]]:
    named = sorted(clips.items())
    async with asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(one_speaker(url, named[part::sessions], texts)) for part in range(sessions)
        ]
    return {name: heard for call in calls for name, heard in call.result().items()}


def run_digits(args: argparse.Namespace) -> None:
    """`--audio` holds manifest.json with the texts; `--model` is a CTranslate2 folder."""
    manifest = json.loads((args.audio / "manifest.json").read_text())
    files: list[dict[str, Any]] = manifest if isinstance(manifest, list) else manifest["files"]
    texts = {Path(f["path"]).stem: f["text"] for f in files if f["kind"] == "digits"}
    stt = {"engine": "faster_whisper", "model": str(args.model.resolve()), "language": "en"}
    clips = strings(args)
    with application(args={"stt": stt}, proxy=args.proxy) as app:
        heard = asyncio.run(all_digits(app.realtime, clips, texts, args.sessions))
    normal = jiwer.Compose(
        [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.Strip()]  # type: ignore[no-untyped-call]  # untyped there
    )
    names = sorted(heard)
    said, found = [normal(texts[n]) for n in names], [normal(" ".join(heard[n])) for n in names]
    counts = Counter(len(h) for h in heard.values())
    print(f"{len(names)} strings, {args.sessions} sessions, transcripts a string: {dict(counts)}")
    print(f"word error rate {jiwer.wer(said, found):.3f}")


# --- words heard ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    played: int
    """Number of the last word that was wholly played, by the sound itself; -1: none."""
    kept: int
    """Number of the last word in the server's history."""


async def one_cut(url: str, question: Audio, interruption: Audio, after_s: float, *, truncates: bool) -> Cut:
    async with caller(url, truncates=truncates) as one:
        one.say(question)
        first = await one.until_type("response.output_audio.delta")
        await asyncio.sleep(after_s)
        after = len(one.arrivals)
        one.say(interruption)
        started = await one.until_type("input_audio_buffer.speech_started", after=after)
        await one.until_type("response.done", after=after)
        item_id = first.event["item_id"]
        if truncates:
            await one.until_type("conversation.item.truncated", after=after)
        await one.client.send("conversation.item.retrieve", item_id=item_id)
        shown = await one.until_type("conversation.item.retrieved", after=after)
        sound = to_audio(one.player.played(item_id, started.at))
        return Cut(last_whole_word(sound), last_number(shown.event["item"]["content"]))


def last_whole_word(sound: Audio) -> int:
    words = decode_words(sound, RATE, WORD_S)
    whole = [number for number, start, end in words if end - start >= WORD_S - EDGE_S]
    return whole[-1] if whole else -1


def last_number(content: list[dict[str, Any]]) -> int:
    text = " ".join(part.get("transcript") or part.get("text") or "" for part in content)
    numbers = re.findall(r"word(\d+)", text)
    return int(numbers[-1]) if numbers else -1


async def all_cuts(app: Application, clips: dict[str, Audio], cuts: int, *, truncates: bool) -> list[Cut]:
    dice = random.Random(11)
    voices = list(clips.values())
    found = []
    for number in range(cuts):
        cut = await one_cut(
            app.realtime, voices[0], voices[number % len(voices)], dice.uniform(0.1, 8.0), truncates=truncates
        )
        print(f"{number + 1:3d}/{cuts} {cut}", flush=True)
        found.append(cut)
    return found


def run_heard(args: argparse.Namespace) -> None:
    clips = strings(args)
    voice = {"tts": {"scripted": {"first_audio_s": 0.1, "word_s": WORD_S}}}
    with application(args=voice, proxy=args.proxy) as app:
        for truncates in (False, True):
            found = asyncio.run(all_cuts(app, clips, args.cuts, truncates=truncates))
            off = Counter(cut.kept - cut.played for cut in found)
            whose = "the client's truncate" if truncates else "the server's own estimate"
            print(f"{args.cuts} cuts by {whose}: words kept less words played: {dict(sorted(off.items()))}")


# --- noise ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noise:
    turns: int
    transcripts: list[str]
    answers: int
    interrupted: int


async def one_noise(url: str, noise: Audio, question: Audio | None) -> Noise:
    """`question`: said first, so that the noise comes over the agent's answer."""
    async with caller(url) as one:
        if question is not None:
            one.say(question)
            await one.until_type("response.output_audio.delta")
            await asyncio.sleep(0.5)
        after = len(one.arrivals)
        one.say(noise)
        await asyncio.sleep(len(noise) / RATE + 3.0)
        return _noise_found(one, after)


def _noise_found(one: Caller, after: int) -> Noise:
    events = [arrival.event for arrival in one.arrivals[after:]]
    done = [event["response"] for event in events if event["type"] == "response.done"]
    return Noise(
        turns=sum(event["type"] == "input_audio_buffer.speech_started" for event in events),
        transcripts=[e["transcript"] for e in events if e["type"].endswith("transcription.completed")],
        answers=sum(event["type"] == "response.created" for event in events),
        interrupted=sum(response["status"] == "cancelled" for response in done),
    )


async def all_noises(app: Application, clips: dict[str, Audio], question: Audio) -> None:
    for title, first in (("agent silent", None), ("agent speaking", question)):
        async with asyncio.TaskGroup() as tasks:
            calls = {n: tasks.create_task(one_noise(app.realtime, a, first)) for n, a in clips.items()}
        found = {name: call.result() for name, call in calls.items()}
        for name, noise in found.items():
            print(f"{title}: {name}: {noise}")
        opened = sum(noise.turns > 0 for noise in found.values())
        interrupted = sum(noise.interrupted > 0 for noise in found.values())
        answered = sum(noise.answers > 0 for noise in found.values())
        print(
            f"{title}: of {len(found)} clips {opened} opened a turn, {interrupted} interrupted, {answered} answered"
        )


def run_noise(args: argparse.Namespace) -> None:
    """On the embedded engines of config.yaml: what a recogniser makes of the noise decides whether it is answered."""
    changes = {
        "stt": {"engine": "pocketsphinx"},
        "llm": {"engine": "scripted", "scripted": {"answer_words": 80}},
        "tts": {"engine": "scripted"},
        "limits": {"max_sessions_per_replica": 20},
        "timeouts": {"stt_s": 60},
    }
    clips, question = noises(args), sentences(args)["p287_001"]
    with application(ROOT / "config.yaml", changes, proxy=args.proxy) as app:
        asyncio.run(all_noises(app, clips, question))
