"""Sessions that come and go at random moments: nothing of them may stay behind."""

import argparse
import asyncio
import random
from contextlib import suppress
from typing import Any

import httpx

from serve_app.audio.pcm import Audio
from serve_app.client.connection import ClientError

from .application import Application, application
from .caller import caller
from .command import Commands, add_command, sentences

ENGINES = ("SpeechToText", "LanguageModel", "TextToSpeech")


async def one_visit(url: str, question: Audio, dice: random.Random) -> None:
    """Opens a session, says something, and is gone at some moment of the turn."""
    await asyncio.sleep(dice.uniform(0, 3))
    stay_s = dice.uniform(0, 6)
    with suppress(TimeoutError, ClientError):
        async with asyncio.timeout(stay_s), caller(url) as one:
            one.say(question)
            await asyncio.sleep(60)


async def one_round(app: Application, questions: list[Audio], sessions: int, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    at_once = 40
    for _ in range(0, sessions, at_once):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(at_once, sessions)):
                tasks.create_task(one_visit(app.realtime, dice.choice(questions), dice))
    async with httpx.AsyncClient() as http:
        health: dict[str, Any] = {"sessions": sessions}
        async with asyncio.timeout(60):
            while health["sessions"]:
                await asyncio.sleep(0.2)
                health = (await http.get(f"{app.http}/healthz")).json()
    calls = {name: await app.until_idle(name) for name in ENGINES}
    return health | {"active": {name: counts["active"] for name, counts in calls.items()}}


async def rounds(app: Application, questions: list[Audio], sessions: int) -> list[dict[str, Any]]:
    return [await one_round(app, questions, sessions, seed) for seed in (1, 2)]


def add_parser(commands: Commands) -> None:
    command = add_command(commands, "churn", run, "sessions dropped at random moments")
    command.add_argument("--sessions", type=int, default=200)


def run(args: argparse.Namespace) -> None:
    questions = list(sentences(args).values())
    with application(proxy=args.proxy) as app:
        before = httpx.get(f"{app.http}/healthz").json()
        warm, after = asyncio.run(rounds(app, questions, args.sessions))
    print(f"{args.sessions} sessions a round, dropped at random moments, proxy {args.proxy}")
    print(f"before   {before}\nwarm     {warm}\nafter    {after}")
    print(f"RSS after / warm: {after['rss_mb'] / warm['rss_mb']:.3f}")
