"""From an engine's chunks of speech to chunks that can be played: of one length, in the client's format."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from deployments.interfaces import SpeechChunk
from serve_app.audio.pcm import decode_pcm, encode_a_law, encode_mu_law, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.realtime.session_config import AudioFormat

_ENCODERS: dict[AudioFormat, Callable[[npt.NDArray[np.float32]], bytes]] = {
    AudioFormat.PCM: encode_pcm,
    AudioFormat.PCMU: encode_mu_law,
    AudioFormat.PCMA: encode_a_law,
}

MIN_CHUNK_MS = 40


class SegmentCutter:
    """One segment's sound, recut. The last piece is padded with silence to `MIN_CHUNK_MS`."""

    def __init__(self, audio_format: AudioFormat, chunk_ms: int) -> None:
        self._rate = audio_format.rate
        self._encode = _ENCODERS[audio_format]
        self._size = self._rate * chunk_ms // 1000
        self._held: npt.NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._resampler: StreamingResampler | None = None

    def push(self, chunk: SpeechChunk) -> Iterator[tuple[bytes, float]]:
        """(encoded, seconds) of each piece that is now complete."""
        if self._resampler is None:
            self._resampler = StreamingResampler(chunk.sample_rate, self._rate)
        self._held = np.concatenate((self._held, self._resampler.push(decode_pcm(chunk.pcm))))
        while len(self._held) >= self._size:
            piece, self._held = self._held[: self._size], self._held[self._size :]
            yield self._encode(piece), len(piece) / self._rate

    def flush(self) -> Iterator[tuple[bytes, float]]:
        rest = (
            self._held if self._resampler is None else np.concatenate((self._held, self._resampler.flush()))
        )
        for start in range(0, len(rest), self._size):
            piece = rest[start : start + self._size]
            missing = self._rate * MIN_CHUNK_MS // 1000 - len(piece)
            piece = np.pad(piece, (0, max(0, missing)))
            yield self._encode(piece), len(piece) / self._rate
