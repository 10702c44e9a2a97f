"""What a caller says, at the pace of the clock."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from itertools import count

import numpy as np

from serve_app.audio.pcm import Audio

from .connection import RATE, RealtimeClient

FRAME_S = 0.02
FRAME = RATE // 50


@dataclass(slots=True)
class Utterance:
    """Something said into a `LiveMicrophone`; times are None until they have come."""

    audio: Audio
    began_at: float | None = None
    ended_at: float | None = None
    """When its last frame had been sent."""


class LiveMicrophone:
    """An open microphone: a frame of 20 ms each 20 ms, silence where nothing is said.

    A frame that is late (the event loop was busy) is followed by the next one at its own time, so the stream never
    drifts from the wall clock.
    """

    def __init__(self, client: RealtimeClient) -> None:
        self._client = client
        self._waiting: deque[Utterance] = deque()
        self._said = asyncio.Condition()

    def say(self, audio: Audio) -> Utterance:
        """Queue float32 (n,) at 24 kHz; it begins with the next frame that is free."""
        utterance = Utterance(audio)
        self._waiting.append(utterance)
        return utterance

    async def until_said(self, utterance: Utterance) -> None:
        async with self._said:
            await self._said.wait_for(lambda: utterance.ended_at is not None)

    async def run(self) -> None:
        """Send until cancelled. Raises SessionEnded."""
        began = time.monotonic()
        silence = np.zeros(FRAME, dtype=np.float32)
        for number in count():
            await asyncio.sleep(began + number * FRAME_S - time.monotonic())
            if self._waiting:
                await self._send_frame_of(self._waiting[0])
            else:
                await self._client.append(silence)

    async def _send_frame_of(self, utterance: Utterance) -> None:
        if utterance.began_at is None:
            utterance.began_at = time.monotonic()
        frame, utterance.audio = utterance.audio[:FRAME], utterance.audio[FRAME:]
        await self._client.append(np.pad(frame, (0, FRAME - len(frame))))
        if len(utterance.audio) > 0:
            return
        self._waiting.popleft()
        async with self._said:
            utterance.ended_at = time.monotonic()
            self._said.notify_all()
