"""A simulated caller: a microphone that is always open, a loudspeaker, and every event with its time of arrival.

What it knows of the server is what came over the socket. Positions in the audio that it sent turn into times of its
own clock by `sent_at`, so that what the server says of the audio ("speech ended at 1840 ms") can be timed here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.audio.pcm import Audio
from serve_app.client.connection import Arrival, RealtimeClient, realtime_client, session_end_alone
from serve_app.client.microphone import FRAME_S, LiveMicrophone, Utterance
from serve_app.client.player import Player
from serve_app.talk import load_recording

STAGES = ("endpointing", "stt", "llm_ttft", "first_segment", "tts_ttfb", "overhead", "total")
ONSET_DB = -40.0
ONSET_WINDOW_S = 0.01
QUIET_S = 0.05


class Caller:
    """`truncates`: report what was played when the server says that it was interrupted, as good clients do."""

    def __init__(self, client: RealtimeClient, *, truncates: bool = True) -> None:
        self.client = client
        self.player = Player()
        self.arrivals: list[Arrival] = []
        self.began_at = 0.0
        self._microphone = LiveMicrophone(client)
        self._truncates = truncates
        self._came = asyncio.Condition()

    def say(self, audio: Audio) -> Utterance:
        """float32 (n,) at 24 kHz, from the next frame on."""
        return self._microphone.say(audio)

    async def until_said(self, utterance: Utterance) -> None:
        await self._microphone.until_said(utterance)

    def sent_at(self, audio_ms: float) -> float:
        """When the frame with this position of the session's audio was sent."""
        return self.began_at + (audio_ms / 1000) // FRAME_S * FRAME_S

    async def until(
        self, is_it: Callable[[Arrival], bool], *, after: int = 0, within_s: float = 30.0
    ) -> Arrival:
        """The first event from the `after`-th on that fits. Raises TimeoutError."""
        async with asyncio.timeout(within_s), self._came:
            while True:
                for arrival in self.arrivals[after:]:
                    if is_it(arrival):
                        return arrival
                after = len(self.arrivals)
                await self._came.wait()

    async def until_type(self, type_: str, *, after: int = 0, within_s: float = 30.0) -> Arrival:
        return await self.until(lambda arrival: arrival.type == type_, after=after, within_s=within_s)

    async def listen(self) -> None:
        async for arrival in self.client:
            stopped = self.player.handle(arrival)
            if stopped is not None and self._truncates:
                await self.client.truncate(stopped.item_id, stopped.played_s)
            async with self._came:
                self.arrivals.append(arrival)
                self._came.notify_all()

    async def speak(self) -> None:
        self.began_at = asyncio.get_running_loop().time()
        await self._microphone.run()


@asynccontextmanager
async def caller(url: str, *, truncates: bool = True, **session: Any) -> AsyncIterator[Caller]:
    """A session with its microphone open; `session` is sent as `session.update`, where there is any."""
    async with realtime_client(url) as client:
        with session_end_alone():
            async with asyncio.TaskGroup() as tasks:
                one = Caller(client, truncates=truncates)
                pumps = [tasks.create_task(one.listen()), tasks.create_task(one.speak())]
                await one.until_type("session.created")
                if session:
                    await client.send("session.update", session={"type": "realtime", **session})
                    await one.until_type("session.updated")
                yield one
                for pump in pumps:
                    pump.cancel()


def onset_s(audio: Audio, rate: int = 24_000) -> float:
    """Where a recording begins to be heard: its first window of 10 ms above -40 dB of its peak."""
    window = int(rate * ONSET_WINDOW_S)
    levels = np.abs(audio[: len(audio) // window * window]).reshape(-1, window).max(axis=1)
    return float(np.argmax(levels > np.abs(audio).max() * 10 ** (ONSET_DB / 20)) * ONSET_WINDOW_S)


def has_onset(audio: Audio) -> bool:
    """Whether the recording begins in quiet; where its noise is over the level from the start, no onset can be told."""
    return onset_s(audio) >= QUIET_S


def latency_ms(done: Arrival) -> dict[str, float]:
    """The stages in the metadata of a `response.done`; empty where there are none."""
    metadata = done.event["response"].get("metadata") or {}
    found = {stage: metadata.get(f"latency.{stage}_ms") for stage in STAGES}
    return {stage: float(value) for stage, value in found.items() if value is not None}


def recordings(folder: Path) -> dict[str, Audio]:
    """Every recording below `folder` by its path without the ending: float32 (n,) at 24 kHz."""
    return {
        str(p.relative_to(folder).with_suffix("")): load_recording(p) for p in sorted(folder.rglob("*.flac"))
    }


def percentile(values: list[float], share: float) -> float:
    return float(np.percentile(values, share * 100)) if values else float("nan")
