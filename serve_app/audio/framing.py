"""Cutting a stream into frames, and keeping the last minute of it.

Positions are samples since the session began. They are the clock of every decision about the floor, so nothing here
drops or invents a sample.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]
Samples = npt.NDArray[np.int16]


class FrameAssembler:
    """Frames of one size out of audio of any cut; what does not fill a frame waits for the next push."""

    def __init__(self, size: int = 512) -> None:
        self._frame: Audio = np.empty(size, dtype=np.float32)
        self._filled = 0

    @property
    def missing(self) -> int:
        """Samples that complete the next frame."""
        return len(self._frame) - self._filled

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


class RecentInput:
    """What the user's microphone gave lately, addressed by position: `capacity_s` seconds of it at most.

    Held in blocks of a second, so a session costs the memory of what may still be asked for, not of its capacity:
    `forget` lets go of the rest. Appending costs one copy of what is appended; reading, one of what is read.
    """

    def __init__(self, capacity_s: float, sample_rate: int = 16_000) -> None:
        self._capacity = max(1, round(capacity_s * sample_rate))
        self._block_size = sample_rate
        self._blocks: deque[Samples] = deque()
        self._first = 0
        """The number of the first block that is held; block n begins at n * block_size."""
        self._start = 0
        self._end = 0

    @property
    def start(self) -> int:
        """Position of the oldest sample that is still held."""
        return self._start

    @property
    def end(self) -> int:
        """Position after the newest sample: how many were appended since the session began."""
        return self._end

    def append(self, samples: Samples) -> None:
        """Adds int16 (n,) at `end`; what is older than the capacity is forgotten."""
        while len(samples):
            offset = self._end % self._block_size
            if self._end == (self._first + len(self._blocks)) * self._block_size:
                self._blocks.append(np.empty(self._block_size, dtype=np.int16))
            part, samples = samples[: self._block_size - offset], samples[self._block_size - offset :]
            self._blocks[-1][offset : offset + len(part)] = part
            self._end += len(part)
        self.forget(self._end - self._capacity)

    def forget(self, before: int) -> None:
        """Let go of what lies before that position; a later read will not find it."""
        self._start = min(max(self._start, before), self._end)
        while self._blocks and (self._first + 1) * self._block_size <= self._start:
            self._blocks.popleft()
            self._first += 1

    def read(self, start: int, stop: int) -> bytes:
        """The audio of [start, stop) as 16-bit PCM; of what was forgotten, nothing: it then begins at `self.start`.

        Raises ValueError for a range that is reversed, before 0 or not yet there.
        """
        if not 0 <= start <= stop <= self._end:
            raise ValueError(f"cannot read [{start}, {stop}) of {self._end} samples")
        start = max(start, self._start)
        if start >= stop:
            return b""
        size, first = self._block_size, start // self._block_size
        held = [self._blocks[n - self._first] for n in range(first, (stop - 1) // size + 1)]
        return (
            np.concatenate(held)[start - first * size : stop - first * size]
            .astype("<i2", copy=False)
            .tobytes()
        )
