"""The live frames of all sessions of a process, resampled and scored together.

Fifty thousand samples a second are little work, but a hundred sessions bring them in three thousand portions, and each
costs a dozen calls into numpy and a run of the detector's network, whose weights pass through the cache each time. So
the portions that come within `GATHER_S` are taken in as one. It happens on the event loop: a round of twelve takes
half a millisecond.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector
from serve_app.audio.pcm import Audio, Samples, to_samples
from serve_app.audio.resampling import BlockResampler

GATHER_S = 0.004
"""What a live frame waits for company."""


@cache
def resampler(rate: int) -> BlockResampler:
    """From a client's rate to the frames of the detector."""
    return BlockResampler(rate, TRANSCRIBER_RATE, DETECTOR_FRAME)


@dataclass(eq=False, slots=True)
class Block:
    """A frame's worth of one session's sound, as `BlockResampler` wants it, and who waits for it."""

    pcm: bytes
    rate: int
    detector: SpeechDetector
    on_heard: Callable[[Samples, float], None]
    """Is given int16 (512,) and the probability of speech in it. Must not raise."""
    on_failure: Callable[[Exception], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(slots=True)
class _Round:
    loop: asyncio.AbstractEventLoop
    blocks: list[Block] = field(default_factory=list)


class Ears:
    def __init__(self, gather_s: float = GATHER_S) -> None:
        self._gather_s = gather_s
        self._round: _Round | None = None

    def hear(self, block: Block) -> None:
        """Soon, and with those of other sessions."""
        loop = asyncio.get_running_loop()
        if self._round is None or self._round.loop is not loop:
            self._round = _Round(loop)
            loop.call_later(self._gather_s, self._take_in, self._round)
        self._round.blocks.append(block)

    def _take_in(self, this: _Round) -> None:
        if self._round is this:
            self._round = None
        blocks = [block for block in this.blocks if not block.is_cancelled]
        if not blocks:
            return
        blocks.sort(key=lambda block: block.rate)
        try:
            frames = _frames(blocks)
            probabilities = blocks[0].detector.probabilities([block.detector for block in blocks], frames)
        except Exception as error:
            for block in blocks:
                block.on_failure(error)
            return
        for block, samples, probability in zip(blocks, to_samples(frames), probabilities, strict=True):
            if not block.is_cancelled:  # by what was heard before it in this round
                block.on_heard(samples, probability)


def _frames(blocks: Sequence[Block]) -> Audio:
    """float32 (n, 512) of blocks in the order of their rates."""
    if blocks[0].rate == blocks[-1].rate:
        return resampler(blocks[0].rate).resample([block.pcm for block in blocks])
    rates = dict.fromkeys(block.rate for block in blocks)
    return np.concatenate(
        [resampler(rate).resample([b.pcm for b in blocks if b.rate == rate]) for rate in rates]
    )
