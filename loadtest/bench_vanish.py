"""A client that stops reading, or is cut off without a word: how long its session lives on."""

import argparse
import asyncio
import time
from contextlib import suppress

import httpx
from websockets.asyncio.client import connect

from serve_app.audio.pcm import Audio
from serve_app.client.connection import ClientError, RealtimeClient
from serve_app.client.microphone import LiveMicrophone

from .application import Application, application
from .command import Commands, add_command, sentences

LONGEST_S = 150.0
TALKATIVE = {"llm": {"scripted": {"answer_words": 400, "tokens_per_s": 100}}, "timeouts": {"send_s": 10}}


async def sessions(app: Application) -> int:
    async with httpx.AsyncClient() as http:
        count: int = (await http.get(f"{app.http}/healthz")).json()["sessions"]
        return count


async def one_absence(app: Application, question: Audio, *, talks_on: bool) -> float | None:
    """Seconds from the last read to the end of the session in its replica; None: it outlived the patience here."""
    async with connect(app.realtime, ping_interval=None, close_timeout=0.1, compression=None) as connection:
        client = RealtimeClient(connection)
        microphone = LiveMicrophone(client)
        async with asyncio.TaskGroup() as tasks:
            talking = tasks.create_task(_talk(microphone))
            microphone.say(question)
            while (await client.receive()).type != "response.output_audio.delta":
                pass
            connection.transport.pause_reading()
            gone_at = time.monotonic()
            if not talks_on:
                talking.cancel()
            lived = await _until_ended(app, gone_at)
            talking.cancel()
        connection.transport.abort()
    return lived


async def _talk(microphone: LiveMicrophone) -> None:
    with suppress(ClientError):  # the server ends the session in the middle of it: what is measured here
        await microphone.run()


async def _until_ended(app: Application, gone_at: float) -> float | None:
    while time.monotonic() < gone_at + LONGEST_S:
        if await sessions(app) == 0:
            return time.monotonic() - gone_at
        await asyncio.sleep(0.2)
    return None


async def both(app: Application, question: Audio) -> dict[str, float | None]:
    return {
        "cut off: neither reads nor sends": await one_absence(app, question, talks_on=False),
        "stops reading, goes on sending": await one_absence(app, question, talks_on=True),
    }


def add_parser(commands: Commands) -> None:
    add_command(commands, "vanish", run, "clients that stop reading or are cut off")


def run(args: argparse.Namespace) -> None:
    question = sentences(args)["p287_001"]
    with application(args=TALKATIVE, proxy=args.proxy) as app:
        lived = asyncio.run(both(app, question))
    for what, seconds in lived.items():
        ended = (
            f"session ended after {seconds:.1f} s"
            if seconds is not None
            else f"still open after {LONGEST_S:g} s"
        )
        print(f"proxy {args.proxy}: {what}: {ended}")
