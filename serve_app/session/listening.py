"""Taking in what the client appends: at most so far ahead of real time, without holding the loop, each frame scored.

This is what a session does fifty times a second, so nothing lies between the socket and the conversation but the
calls that the work itself needs, and no task is woken (`python -m loadtest.bench frame-cost`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector
from serve_app.audio.pcm import Samples, to_samples
from serve_app.conversation.commands import Refused
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import FrameScored
from serve_app.realtime.client_events import InputAudio
from serve_app.realtime.session_config import AudioFormat

from .ears import Block, Ears, resampler
from .input import AudioInput

SLICE_S = 1
"""Appended audio is taken in one second at a time: a minute of it must not hold the loop."""
LIVE_FRAMES = 4
"""An append that completes more frames is no microphone's: they need not wait for those of other sessions."""


class _Manner(Enum):
    """How a block is heard."""

    LIVE = auto()
    AT_ONCE = auto()
    SILENT = auto()
    """It is our own silence, which no detector needs to be asked about."""


class Listening:
    def __init__(
        self,
        conversation: Conversation,
        ears: Ears,
        detector: SpeechDetector,
        audio: AudioInput,
        *,
        backlog_s: float,
        report: Callable[[FrameScored], None],
        on_idle: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """`on_idle`: it was busy, and is no more."""
        self._conversation = conversation
        self._ears = ears
        self._detector = detector
        self._input = audio
        self._backlog_s = backlog_s
        self._report = report
        self._on_idle = on_idle
        self._on_failure = on_failure
        self._forgets_at = 0
        self._loop = asyncio.get_running_loop()
        self._audio_lasts_until = self._loop.time()
        """When the audio taken in so far would be over if it were live."""
        self._slices: deque[tuple[bytes, AudioFormat]] = deque()
        self._blocks: deque[tuple[bytes, _Manner]] = deque()
        self._is_taking_in = False
        self._awaited: Block | asyncio.Handle | None = None
        """What the ears are hearing, or the loop's next turn."""
        self._idle: asyncio.Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Audio is being taken in, and nothing that the client sent after it may be before it is."""
        return self._awaited is not None

    async def until_idle(self) -> None:
        while self._awaited is not None:
            self._idle = self._loop.create_future()
            await self._idle

    def hear(self, event: InputAudio, audio_format: AudioFormat) -> Refused | None:
        """Returns what the client is told if its audio was dropped. Must not be called while `is_busy`."""
        encoded = event.encoded
        refusal = self._refused(event, audio_format)
        if refusal is not None:
            return refusal
        size = SLICE_S * audio_format.rate * audio_format.sample_bytes
        if len(encoded) <= size:
            self._append(encoded, audio_format)
            return None
        starts = range(0, len(encoded), size)
        self._slices.extend((encoded[start : start + size], audio_format) for start in starts)
        self._append(*self._slices.popleft())
        return None

    def hear_silence(self, samples: int) -> None:
        """Zeros up to the end of a frame, so that the conversation's position is that of all audio taken in."""
        self._blocks.extend((block, _Manner.SILENT) for block in self._input.append_silence(samples))
        if self._awaited is None and not self._is_taking_in:
            self._take_in()

    def stop(self) -> None:
        """The session is over."""
        self._slices.clear()
        self._blocks.clear()
        if self._awaited is not None:
            self._awaited.cancel()

    def _append(self, encoded: bytes, audio_format: AudioFormat) -> None:
        blocks = self._input.append(encoded, audio_format)
        if blocks:
            manner = _Manner.LIVE if len(blocks) <= LIVE_FRAMES else _Manner.AT_ONCE
            self._blocks.extend((block, manner) for block in blocks)
            self._take_in()

    def _take_in(self) -> None:
        """The blocks in their order, until one has to wait for those of other sessions."""
        self._is_taking_in = True
        try:
            self._take_in_all()
        finally:
            self._is_taking_in = False

    def _take_in_all(self) -> None:
        manner, rate = _Manner.LIVE, self._input.rate
        while self._blocks:
            pcm, manner = self._blocks.popleft()
            is_detecting = self._conversation.settings.turn_detection is not None
            if manner is _Manner.LIVE and is_detecting:
                self._awaited = block = Block(pcm, rate, self._detector, self._on_heard, self._on_failure)
                self._ears.hear(block)
                return
            [frame] = resampler(rate).resample([pcm])
            is_scored = is_detecting and manner is not _Manner.SILENT
            self._keep(to_samples(frame), self._detector.probability(frame) if is_scored else 0.0)
        self._forget_input()
        if manner is _Manner.AT_ONCE:  # it was much: the others have their turn
            self._awaited = self._loop.call_soon(self._go_on)

    def _keep(self, samples: Samples, probability: float) -> None:
        self._input.keep(samples)
        self._report(FrameScored(DETECTOR_FRAME, probability))

    def _on_heard(self, samples: Samples, probability: float) -> None:
        self._awaited = None
        try:
            self._keep(samples, probability)
            self._take_in()
        except Exception as error:
            self._on_failure(error)
        self._rest_if_idle()

    def _go_on(self) -> None:
        self._awaited = None
        try:
            if self._slices:
                self._append(*self._slices.popleft())
        except Exception as error:
            self._on_failure(error)
        self._rest_if_idle()

    def _rest_if_idle(self) -> None:
        if self._awaited is not None:
            return
        if self._idle is not None:
            if not self._idle.done():  # who waited may have been cancelled
                self._idle.set_result(None)
            self._idle = None
        self._on_idle()

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

    def _forget_input(self) -> None:
        """Let go of what will not be transcribed, a second at a time."""
        if self._input.end >= self._forgets_at:
            self._forgets_at = self._input.end + TRANSCRIBER_RATE
            self._input.forget(self._conversation.input_needed_from)
