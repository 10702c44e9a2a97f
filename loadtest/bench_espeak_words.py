"""Words heard of a real voice, judged from the waveform.

The judge does not ask the engine when its words end. It renders the answer's segments again, and of each the first
word, the first two, and so on: where such a beginning falls silent, its last word is over. Against that it holds the
samples that had been played at the cut, and the words that the server's history kept.
"""

import argparse
import asyncio
import random
from collections import Counter

import numpy as np

from deployments.engines import create
from deployments.interfaces import Synthesizer
from deployments.options import TtsOptions
from serve_app.audio.pcm import Audio, decode_pcm

from .application import Application, application
from .caller import Caller, caller
from .command import Commands, add_command, strings

VOICE = "en-us"
ANSWER = (
    "Well, the lighthouse was built by two brothers in the year of the great storm, and it has been lit every night "
    "since. People who live there say that the lamp can be seen from the other side of the bay. In winter the road "
    "is closed, so the keeper has bread and oil brought over by a small boat that comes once a week."
)
AUDIBLE = 0.01


async def spoken(voice: Synthesizer, text: str) -> Audio:
    """float32 (n,) at the engine's rate."""
    chunks = [decode_pcm(chunk.pcm) async for chunk in voice.synthesize(text, voice=VOICE, speed=1.0)]
    return np.concatenate(chunks)


def last_sound_s(audio: Audio, rate: int) -> float:
    return float(np.flatnonzero(np.abs(audio) > AUDIBLE)[-1] / rate)


async def word_ends_s(voice: Synthesizer, segments: list[str], rate: int) -> list[float]:
    """Where each word of the answer is over, in seconds of its sound, by renderings of its beginnings."""
    ends, begins = [], 0.0
    for segment in segments:
        words = segment.split()
        for count in range(1, len(words) + 1):
            sound = await spoken(voice, " ".join(words[:count]))
            ends.append(begins + last_sound_s(sound, rate))
        begins += len(await spoken(voice, segment.strip())) / rate
    return ends


async def one_cut(
    url: str, question: Audio, interruption: Audio, after_s: float
) -> tuple[list[str], float, int]:
    """The segments shown, seconds played at the cut, and the number of words kept."""
    async with caller(url, truncates=False) as one:
        one.say(question)
        first = await one.until_type("response.output_audio.delta")
        await asyncio.sleep(after_s)
        after = len(one.arrivals)
        one.say(interruption)
        started = await one.until_type("input_audio_buffer.speech_started", after=after)
        await one.until_type("response.done", after=after)
        item_id = first.event["item_id"]
        await one.client.send("conversation.item.retrieve", item_id=item_id)
        shown = await one.until_type("conversation.item.retrieved", after=after)
        kept = " ".join(part.get("transcript") or "" for part in shown.event["item"]["content"])
        return _segments(one, item_id), one.player.played_s(item_id, started.at), len(kept.split())


def _segments(one: Caller, item_id: str) -> list[str]:
    """A delta of the transcript is a segment."""
    deltas = (a.event for a in one.arrivals if a.type == "response.output_audio_transcript.delta")
    return [event["delta"] for event in deltas if event["item_id"] == item_id]


async def all_cuts(
    app: Application, voice: Synthesizer, clips: list[Audio], cuts: int, rate: int
) -> Counter[int]:
    dice, off = random.Random(5), Counter[int]()
    for number in range(cuts):
        cut = await one_cut(app.realtime, clips[0], clips[number % len(clips)], dice.uniform(0.1, 9.0))
        segments, played_s, kept = cut
        played = sum(end <= played_s for end in await word_ends_s(voice, segments, rate))
        print(
            f"{number + 1:3d}/{cuts} played {played_s:5.2f} s: {played} words whole, {kept} kept", flush=True
        )
        off[kept - played] += 1
    return off


def add_parser(commands: Commands) -> None:
    what = "the same with a real voice, judged from the waveform"
    command = add_command(commands, "heard-espeak", run, what)
    command.add_argument("--cuts", type=int, default=20)


def run(args: argparse.Namespace) -> None:
    changes = {
        "llm": {"scripted": {"answers": [ANSWER], "tokens_per_s": 100}},
        "tts": {"engine": "espeak", "voice": VOICE},
    }
    clips = list(strings(args).values())
    voice: Synthesizer = create(TtsOptions(engine="espeak"))
    with application(args=changes, proxy=args.proxy) as app:
        off = asyncio.run(all_cuts(app, voice, clips, args.cuts, 22_050))
    print(
        f"{args.cuts} cuts of espeak: words kept less words played, by the waveform: {dict(sorted(off.items()))}"
    )
