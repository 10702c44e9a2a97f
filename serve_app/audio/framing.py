"""Cutting a stream into frames, and keeping the last minute of it.

Positions are samples since the session began. They are the clock of every decision about the floor, so nothing here
drops or invents a sample.
"""

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]
Samples = npt.NDArray[np.int16]


class FrameAssembler:
    """Frames of one size out of audio of any cut; what does not fill a frame waits for the next push."""

    def __init__(self, size: int = 512) -> None:
        self._frame: Audio = np.empty(size, dtype=np.float32)
        self._filled = 0

    def push(self, audio: Audio) -> list[Audio]:
        """The frames that `audio`, float32 (n,), completes; each is float32 (size,) and the caller's own."""
        frames: list[Audio] = []
        size = len(self._frame)
        while len(audio) >= size - self._filled:
            missing = size - self._filled
            self._frame[self._filled :] = audio[:missing]
            frames.append(self._frame.copy())
            audio = audio[missing:]
            self._filled = 0
        self._frame[self._filled : self._filled + len(audio)] = audio
        self._filled += len(audio)
        return frames


class InputRing:
    """The last `capacity_s` seconds of what the user's microphone gave, addressed by position.

    Appending costs one copy of what is appended; reading, one of what is read.
    """

    def __init__(self, capacity_s: float, sample_rate: int = 16_000) -> None:
        self._ring: Samples = np.zeros(max(1, round(capacity_s * sample_rate)), dtype=np.int16)
        self._end = 0

    @property
    def start(self) -> int:
        """Position of the oldest sample that is still held."""
        return max(0, self._end - len(self._ring))

    @property
    def end(self) -> int:
        """Position after the newest sample: how many were appended since the session began."""
        return self._end

    def append(self, samples: Samples) -> None:
        """Adds int16 (n,) at `end`; what is older than the capacity is overwritten."""
        size = len(self._ring)
        kept = samples[-size:]
        at = (self._end + len(samples) - len(kept)) % size
        first = min(len(kept), size - at)
        self._ring[at : at + first] = kept[:first]
        self._ring[: len(kept) - first] = kept[first:]
        self._end += len(samples)

    def read(self, start: int, stop: int) -> bytes:
        """The audio of [start, stop) as 16-bit PCM; of what was overwritten, nothing: it then begins at `self.start`.

        Raises ValueError for a range that is reversed, before 0 or not yet there.
        """
        if not 0 <= start <= stop <= self._end:
            raise ValueError(f"cannot read [{start}, {stop}) of {self._end} samples")
        start = max(start, self.start)
        size = len(self._ring)
        count = max(0, stop - start)
        at = start % size
        held = (self._ring[at : at + count], self._ring[: max(0, at + count - size)])
        return np.concatenate(held).astype("<i2", copy=False).tobytes()
