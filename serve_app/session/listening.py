"""Taking in what the client appends: at most so far ahead of real time, without holding the loop, each frame scored.

This is what a session does fifty times a second, so nothing lies between the socket and the conversation but the
calls that the work itself needs (`python -m loadtest.bench frame-cost`).
"""

import asyncio
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector
from serve_app.conversation.commands import Refused
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import FrameScored
from serve_app.realtime.client_events import InputAudio
from serve_app.realtime.session_config import AudioFormat

from .input import AudioInput

SLICE_S = 1
"""Appended audio is taken in one second at a time: a minute of it must not hold the loop."""
LIVE_FRAMES = 4
"""An append that completes more frames is no microphone's: they need not wait for those of other sessions."""


class Listening:
    def __init__(
        self,
        conversation: Conversation,
        detector: SpeechDetector,
        audio: AudioInput,
        *,
        backlog_s: float,
        report: Callable[[FrameScored], None],
    ) -> None:
        self._conversation = conversation
        self._detector = detector
        self._input = audio
        self._backlog_s = backlog_s
        self._report = report
        self._forgets_at = 0
        self._loop = asyncio.get_running_loop()
        self._audio_lasts_until = self._loop.time()
        """When the audio taken in so far would be over if it were live."""

    async def hear(self, event: InputAudio, audio_format: AudioFormat) -> Refused | None:
        """Returns what the client is told if its audio was dropped."""
        refusal = self._refused(event, audio_format)
        if refusal is not None:
            return refusal
        encoded = event.encoded
        size = SLICE_S * audio_format.rate * audio_format.sample_bytes
        for start in range(0, len(encoded), size):
            frames = self._input.append(encoded[start : start + size], audio_format)
            is_live = len(frames) <= LIVE_FRAMES
            for frame in frames:
                self._report(FrameScored(DETECTOR_FRAME, await self._probability(frame, is_live=is_live)))
            if len(encoded) >= size:
                self._forget_input()
                await asyncio.sleep(0)
        self._forget_input()
        return None

    def hear_silence(self, samples: int) -> None:
        """Zeros up to the end of a frame, so that the conversation's position is that of all audio taken in."""
        for _ in range(self._input.append_silence(samples)):
            self._report(FrameScored(DETECTOR_FRAME, 0.0))

    def _refused(self, event: InputAudio, audio_format: AudioFormat) -> Refused | None:
        """Why the audio is too far ahead."""
        now = self._loop.time()
        seconds = len(event.encoded) / (audio_format.rate * audio_format.sample_bytes)
        lasts_until = max(self._audio_lasts_until, now) + seconds
        ahead = lasts_until - now
        if ahead <= self._backlog_s:
            self._audio_lasts_until = lasts_until
            return None
        message = (
            f"This part ends {ahead:.0f} s ahead of real time and at most {self._backlog_s:g} s are taken. "
            "It was dropped: send it again later."
        )
        return Refused("input_audio_too_fast", message, "audio", event.event_id)

    async def _probability(self, frame: npt.NDArray[np.float32], *, is_live: bool) -> float:
        if self._conversation.settings.turn_detection is None:
            return 0.0
        return await self._detector.hear(frame) if is_live else self._detector.probability(frame)

    def _forget_input(self) -> None:
        """Let go of what will not be transcribed, a second at a time."""
        if self._input.end >= self._forgets_at:
            self._forgets_at = self._input.end + TRANSCRIBER_RATE
            self._input.forget(self._conversation.input_needed_from)
