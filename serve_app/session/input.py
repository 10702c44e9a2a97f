"""From what a client appends to frames with a probability of speech, and the recent audio that can be transcribed."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector
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
    """One session's microphone. Positions are samples at 16 kHz since it began."""

    def __init__(self, detector: SpeechDetector, *, max_turn_s: float, backlog_s: float) -> None:
        """`backlog_s`: how far the audio may run ahead of real time, and so of the transcriber."""
        self._detector = detector
        self._recent = RecentInput(max_turn_s + backlog_s + WAITING_TURNS_S, TRANSCRIBER_RATE)
        self._frames = FrameAssembler(DETECTOR_FRAME)
        self._resampler = StreamingResampler(AudioFormat.PCM.rate, TRANSCRIBER_RATE)
        self._rate = AudioFormat.PCM.rate

    @property
    def end(self) -> int:
        """Samples taken in so far."""
        return self._recent.end

    def forget(self, before: int) -> None:
        """Nothing before this position will be read again."""
        self._recent.forget(before)

    def read(self, start: int, stop: int) -> bytes:
        """16-bit PCM at 16 kHz."""
        return self._recent.read(start, stop)

    def append(self, encoded: bytes, audio_format: AudioFormat, *, listens: bool) -> Iterator[float]:
        """The probability of speech of each frame that is now complete; 0 for all where nobody `listens`."""
        if audio_format.rate != self._rate:
            self._rate = audio_format.rate
            self._resampler = StreamingResampler(self._rate, TRANSCRIBER_RATE)
        audio = self._resampler.push(_DECODERS[audio_format](encoded))
        self._recent.append(to_samples(audio))
        for frame in self._frames.push(audio):
            yield self._detector.probability(frame) if listens else 0.0

    def append_silence(self, samples: int) -> int:
        """Zeros, at least `samples` and up to the end of a frame; returns how many frames they complete."""
        samples += -(self._recent.end + samples) % DETECTOR_FRAME
        silence = np.zeros(samples, dtype=np.float32)
        self._recent.append(to_samples(silence))
        return len(self._frames.push(silence))
