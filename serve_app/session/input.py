"""From what a client appends to blocks for the ears, and the recent audio that can be transcribed."""

from collections.abc import Callable

import numpy as np

from deployments.interfaces import TRANSCRIBER_RATE
from serve_app.audio.framing import RecentInput
from serve_app.audio.pcm import Samples, decode_a_law, decode_mu_law, decode_pcm, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.realtime.session_config import AudioFormat

from .ears import resampler

_TO_PCM: dict[AudioFormat, Callable[[bytes], bytes]] = {
    AudioFormat.PCMU: lambda data: encode_pcm(decode_mu_law(data)),
    AudioFormat.PCMA: lambda data: encode_pcm(decode_a_law(data)),
}

WAITING_TURNS_S = 30.0
"""The ring holds so much more than the longest turn: a committed turn may have to wait for the transcriber."""
SAMPLE_BYTES = 2


class AudioInput:
    """One session's microphone. Positions are samples at 16 kHz since it began, and whole frames.

    What clients append (20 ms, mostly) is only kept until it fills a block: what a frame is resampled from.
    """

    def __init__(self, *, max_turn_s: float, backlog_s: float) -> None:
        """`backlog_s`: how far the audio may run ahead of real time, and so of the transcriber."""
        self._recent = RecentInput(max_turn_s + backlog_s + WAITING_TURNS_S, TRANSCRIBER_RATE)
        self._format = AudioFormat.PCM
        self._blocks = resampler(self._format.rate)
        self._pending = bytearray(self._blocks.lead * SAMPLE_BYTES)
        """16-bit PCM at the format's rate: the next frame begins behind the first `lead` samples of it."""
        self._sounding = self._blocks.lead
        """Samples of it up to the last that was no silence of ours."""

    @property
    def rate(self) -> int:
        """Of the blocks."""
        return self._format.rate

    @property
    def end(self) -> int:
        """Samples kept so far."""
        return self._recent.end

    def forget(self, before: int) -> None:
        """Nothing before this position will be read again."""
        self._recent.forget(before)

    def read(self, start: int, stop: int) -> bytes:
        """16-bit PCM at 16 kHz."""
        return self._recent.read(start, stop)

    def append(self, encoded: bytes, audio_format: AudioFormat) -> list[bytes]:
        """The blocks that are now complete; what they are resampled to is to be kept, in their order."""
        if audio_format is not self._format:
            self._change_format(audio_format)
        self._pending += encoded if audio_format is AudioFormat.PCM else _TO_PCM[audio_format](encoded)
        self._sounding = len(self._pending) // SAMPLE_BYTES
        return [] if self._sounding < self._blocks.block else self._cut()

    def keep(self, samples: Samples) -> None:
        """The frame of a block, int16 (512,)."""
        self._recent.append(samples)

    def append_silence(self, samples: int) -> list[bytes]:
        """Zeros, at least `samples` (at 16 kHz) behind what was appended, and up to the end of a block."""
        blocks = self._blocks
        covered = max(0, self._sounding - blocks.lead) + samples * self.rate // TRANSCRIBER_RATE
        wanted = -(-covered // blocks.step)
        missing = blocks.overlap + wanted * blocks.step - len(self._pending) // SAMPLE_BYTES
        if wanted:
            self._pending += bytes(missing * SAMPLE_BYTES)
        return self._cut()

    def _cut(self) -> list[bytes]:
        pending, cut = self._pending, []
        size, step = self._blocks.block * SAMPLE_BYTES, self._blocks.step
        while len(pending) >= size:
            cut.append(bytes(pending[:size]))
            del pending[: step * SAMPLE_BYTES]
            self._sounding -= step
        return cut

    def _change_format(self, audio_format: AudioFormat) -> None:
        """What is pending goes on at the new rate, with the beginning of its frame at the same place."""
        old, rate = self._blocks, self.rate
        self._format = audio_format
        if self.rate == rate:
            return
        self._blocks = new = resampler(self.rate)
        stream = StreamingResampler(rate, self.rate)
        sound = np.concatenate((stream.push(decode_pcm(bytes(self._pending))), stream.flush()))
        before = round(old.lead * self.rate / rate)
        lead = np.concatenate((np.zeros(new.lead, dtype=np.float32), sound[:before]))[-new.lead :]
        self._pending = bytearray(encode_pcm(np.concatenate((lead, sound[before:]))))
        self._sounding = new.lead + round((self._sounding - old.lead) * self.rate / rate)
