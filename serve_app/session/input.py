"""From what a client appends to frames for the detector, and the recent audio that can be transcribed."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE
from serve_app.audio.framing import FrameAssembler, RecentInput
from serve_app.audio.pcm import decode_a_law, decode_mu_law, decode_pcm, to_samples
from serve_app.audio.resampling import StreamingResampler
from serve_app.realtime.session_config import AudioFormat

_DECODERS: dict[AudioFormat, Callable[[bytes], npt.NDArray[np.float32]]] = {
    AudioFormat.PCM: decode_pcm,
    AudioFormat.PCMU: decode_mu_law,
    AudioFormat.PCMA: decode_a_law,
}

WAITING_TURNS_S = 30.0
"""The ring holds so much more than the longest turn: a committed turn may have to wait for the transcriber."""


class AudioInput:
    """One session's microphone. Positions are samples at 16 kHz since it began.

    What clients append (20 ms, mostly) is only kept until a frame can be completed with it, and then taken in at
    once: decoding, resampling and storing cost as much for 20 ms as for the 32 of a frame.
    """

    def __init__(self, *, max_turn_s: float, backlog_s: float) -> None:
        """`backlog_s`: how far the audio may run ahead of real time, and so of the transcriber."""
        self._recent = RecentInput(max_turn_s + backlog_s + WAITING_TURNS_S, TRANSCRIBER_RATE)
        self._frames = FrameAssembler(DETECTOR_FRAME)
        self._format = AudioFormat.PCM
        self._resampler = StreamingResampler(self._format.rate, TRANSCRIBER_RATE)
        self._pending = bytearray()
        """In `_format`; not taken in yet."""
        self._wanted = 0
        """So many bytes of it complete a frame."""

    @property
    def end(self) -> int:
        """Samples taken in so far: all but the beginning of a frame."""
        return self._recent.end

    def forget(self, before: int) -> None:
        """Nothing before this position will be read again."""
        self._recent.forget(before)

    def read(self, start: int, stop: int) -> bytes:
        """16-bit PCM at 16 kHz."""
        return self._recent.read(start, stop)

    def append(self, encoded: bytes, audio_format: AudioFormat) -> list[npt.NDArray[np.float32]]:
        """The frames that are now complete: float32 (512,) each, at 16 kHz."""
        if audio_format is not self._format:
            self._change_format(audio_format)
        self._pending += encoded
        return [] if len(self._pending) < self._wanted else self._take_in()

    def append_silence(self, samples: int) -> int:
        """Zeros, at least `samples` and up to the end of a frame; returns how many frames they complete."""
        self._take_in()
        samples += -(self._recent.end + samples) % DETECTOR_FRAME
        silence = np.zeros(samples, dtype=np.float32)
        self._recent.append(to_samples(silence))
        completed = self._frames.push(silence)
        self._wanted = self._bytes_to_next_frame()
        return len(completed)

    def _change_format(self, audio_format: AudioFormat) -> None:
        self._take_in()
        if audio_format.rate != self._format.rate:
            self._resampler = StreamingResampler(audio_format.rate, TRANSCRIBER_RATE)
        self._format = audio_format
        self._wanted = self._bytes_to_next_frame()

    def _take_in(self) -> list[npt.NDArray[np.float32]]:
        audio = self._resampler.push(_DECODERS[self._format](bytes(self._pending)))
        self._pending.clear()
        self._recent.append(to_samples(audio))
        frames = self._frames.push(audio)
        self._wanted = self._bytes_to_next_frame()
        return frames

    def _bytes_to_next_frame(self) -> int:
        return self._resampler.missing(self._frames.missing) * self._format.sample_bytes
