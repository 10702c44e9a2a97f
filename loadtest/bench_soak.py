"""Callers who come, talk and go for a long time: memory, tasks and open files of every process must stay flat."""

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import numpy as np

from serve_app.audio.pcm import Audio
from serve_app.client.connection import RATE, ClientError

from . import usage
from .application import Application, application
from .caller import Caller, caller
from .command import Commands, add_command, clear_strings

SAMPLE_S = 10.0
LONGEST_VISIT_S = 60.0
ANSWER_S = 20.0
"""A turn without a sound so long after it was said is missed."""
SERVED = {
    "proxy manager": "HAProxyManager",
    "proxy": "ProxyActor",
    "controller": "ServeController",
    "haproxy": "haproxy",
    "ingress": "voice:Ingress",
    "llm": "voice:LanguageModel",
    "stt": "voice:SpeechToText",
    "tts": "voice:TextToSpeech",
}
"""The roles that are watched, and what they are called in the table."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    sessions: int
    tasks: int
    used: usage.Sample


@dataclass(slots=True)
class Soak:
    visits: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    """Of each turn without a sound, what the server said of it instead."""
    samples: list[Sample] = field(default_factory=list)


async def visitor(
    url: str, questions: dict[str, Audio], dice: random.Random, soak: Soak, until: float
) -> None:
    """One visit after the other: a few turns, some of them interrupted; then it leaves."""
    await asyncio.sleep(dice.uniform(0, 5))
    while (left := until - time.monotonic()) > 0:
        stay_s = min(dice.uniform(2, LONGEST_VISIT_S), left)
        soak.visits["visits"] += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(stay_s), caller(url) as one:
                    while True:
                        after, name = len(one.arrivals), dice.choice(list(questions))
                        await one.until_said(one.say(questions[name]))
                        await first_sound(one, after, name, soak)
                        soak.visits["answers"] += 1
                        await asyncio.sleep(dice.uniform(0.2, 4))  # often less than the answer: a barge-in
        except* ClientError as errors:
            soak.visits["lost sessions"] += 1
            soak.visits[f"lost: {errors.exceptions[0]}"] += 1
        except* TimeoutError:
            soak.visits["missed turns"] += 1


async def first_sound(one: Caller, after: int, name: str, soak: Soak) -> None:
    """Of the answer to a question. Raises TimeoutError where there is none."""
    try:
        await one.until_type("response.output_audio.delta", after=after, within_s=ANSWER_S)
    except TimeoutError:
        types = [arrival.type.removeprefix("input_audio_buffer.") for arrival in one.arrivals]
        soak.missed.append(
            f"{name}: {', '.join(types[after:]) or 'nothing'}; before it {', '.join(types[:after][-5:])}"
        )
        raise


async def watch(app: Application, soak: Soak, began: float, until: float) -> None:
    async with httpx.AsyncClient() as http:
        while time.monotonic() < until:
            health = (await http.get(f"{app.http}/healthz")).json()
            used = usage.sample(usage.below(os.getpid()))
            soak.samples.append(Sample(used.at - began, health["sessions"], health["tasks"], used))
            if len(soak.samples) % 6 == 1:
                print(line(soak.samples[-1], soak.visits), flush=True)
            await asyncio.sleep(SAMPLE_S)


def line(sample: Sample, visits: Counter[str]) -> str:
    each = "  ".join(
        f"{name} {sample.used.rss_mb[role]:.0f} MB {sample.used.files[role]} files"
        for role, name in SERVED.items()
        if role in sample.used.processes
    )
    return (
        f"{sample.at_s / 60:5.1f} min  {sample.sessions:3d} sessions {sample.tasks:4d} tasks "
        f"{visits['visits']:5d} visits {visits['answers']:6d} answers  {each}"
    )


def slope_a_minute(samples: list[Sample], values: list[float]) -> float:
    """Of the least-squares line through `values` over the minutes of `samples`."""
    return float(np.polyfit([sample.at_s / 60 for sample in samples], values, 1)[0])


async def soak_for(app: Application, questions: dict[str, Audio], sessions: int, seconds: float) -> Soak:
    soak, began = Soak(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(app, soak, began, began + seconds))
        for seed in range(sessions):
            tasks.create_task(
                visitor(app.realtime, questions, random.Random(seed), soak, began + seconds + SAMPLE_S)
            )
    return soak


def add_parser(commands: Commands) -> None:
    command = add_command(commands, "soak", run, "callers come and go for a long time")
    command.add_argument("--sessions", type=int, default=20)
    command.add_argument("--minutes", type=float, default=15)


def run(args: argparse.Namespace) -> None:
    minutes: float = args.minutes
    questions = clear_strings(args, np.zeros(2 * RATE, dtype=np.float32))
    with application(proxy=args.proxy) as app:
        soak = asyncio.run(soak_for(app, questions, args.sessions, minutes * 60))
    last = [sample for sample in soak.samples if sample.at_s > minutes * 60 * 1 / 3]
    print(f"{args.sessions} callers at once for {minutes:g} min, proxy {args.proxy}: {dict(soak.visits)}")
    for missed in soak.missed:
        print(f"  missed: {missed}")
    print(f"over the last {minutes * 2 / 3:.0f} min, a minute:")
    for role, name in SERVED.items():
        if role not in last[-1].used.processes:
            continue
        rss = slope_a_minute(last, [sample.used.rss_mb.get(role, 0) for sample in last])
        files = slope_a_minute(last, [sample.used.files.get(role, 0) for sample in last])
        print(f"  {name:<28} RSS {rss:+.2f} MB   open files {files:+.2f}")
    print(f"  {'tasks of the ingress':<28} {slope_a_minute(last, [s.tasks for s in last]):+.2f}")
