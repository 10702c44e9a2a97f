"""Resampling of a live stream, written for a short and constant delay.

A windowed-sinc polyphase filter: output n is a weighted sum of the input around the time n / output_rate, so nothing
is shifted, and it leaves as soon as the last input sample it needs is there. soxr's streams are not used: they
work in blocks, so at 24 -> 16 kHz their quality LQ keeps back 2.5 to 20 ms of audio (11 ms on average) and at
8 -> 16 kHz 4 to 61 ms (32 on average), whatever the size of the pushes; each of these would be added to every
decision of the detector. Here it is 1.5 and 3 ms, always (tests/audio/test_resampling.py measures it).
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]

_ZERO_CROSSINGS = 24
"""Half the filter's length in samples of the lower rate; the delay is this long."""
_CUTOFF = 0.94
"""Of the lower Nyquist frequency. The band is flat to 0.85 (3.4 kHz at 8 kHz: the telephone's) and closed at 1.03."""
_KAISER_BETA = 6.8
"""70 dB of stop band: below the noise of G.711 and of any microphone."""


_GROUP = 8
"""Periods that `BlockResampler` computes as one row of its product."""


class StreamingResampler:
    """Resampling of a stream of any cut.

    push(x): float32 (n,) -> float32 (m,), m ~ n * output_rate / input_rate; the concatenated output does not depend
    on how the input was cut, bit for bit. Output sample n is the signal at n / output_rate seconds. Delay:
    24 samples of the lower rate (1.5 ms at 16 kHz), none when the rates are equal: then x itself is returned.
    10 us a push of 32 ms. Raises: ValueError if x is not one-dimensional.

    `up` outputs and `down` inputs are one period, after which the same weights come again: so one period's weights
    are one matrix, and the input of all periods is one view of what is held, `down` samples further for each.
    """

    _held: Audio
    """Input that outputs to come still need, from the beginning of a period on."""
    _given: int
    """Outputs of that period which were given already."""
    _consumed: int
    _produced: int

    def __init__(self, input_rate: int, output_rate: int) -> None:
        if input_rate <= 0 or output_rate <= 0:
            raise ValueError(f"sample rates are positive, not {input_rate} and {output_rate}")
        divisor = math.gcd(input_rate, output_rate)
        self._up = output_rate // divisor
        self._down = input_rate // divisor
        self._weights, self._taps = _weights(self._up, self._down)
        self._reset()

    def push(self, audio: Audio) -> Audio:
        """The output that this input completes; it may be empty."""
        if audio.ndim != 1:
            raise ValueError(f"audio is one-dimensional, not of shape {audio.shape}")
        if self._up == self._down:
            return audio
        self._held = np.concatenate((self._held, audio.astype(np.float32, copy=False)))
        self._consumed += len(audio)
        return self._resample()

    def missing(self, samples: int) -> int:
        """How much more input completes the next `samples` of output."""
        if self._up == self._down:
            return samples
        last = self._given + samples - 1
        return max(0, last * self._down // self._up + self._taps - len(self._held))

    def flush(self) -> Audio:
        """The rest of the output, as if silence followed; the next push begins a new stream.

        All output of a stream together has ceil(n * output_rate / input_rate) samples.
        """
        if self._up == self._down:
            return np.zeros(0, dtype=np.float32)
        missing = -(-self._consumed * self._up // self._down) - self._produced
        self._held = np.concatenate((self._held, np.zeros(self._taps, dtype=np.float32)))
        rest = self._resample()[:missing]
        self._reset()
        return rest

    def _reset(self) -> None:
        # Silence before the first sample: its filter reaches back half a length.
        self._held = np.zeros(self._taps // 2 - 1, dtype=np.float32)
        self._given = 0
        self._consumed = 0
        self._produced = 0

    def _resample(self) -> Audio:
        complete = max(0, -((len(self._held) - self._taps + 1) * self._up // -self._down))
        if complete <= self._given:
            return np.zeros(0, dtype=np.float32)
        periods = -(-complete // self._up)
        width = self._weights.shape[1]
        held = self._held
        if (beyond := (periods - 1) * self._down + width - len(held)) > 0:
            held = np.concatenate(
                (held, np.zeros(beyond, dtype=np.float32))
            )  # of outputs that are not complete
        windows: Audio = np.ndarray(
            (periods, width), np.float32, held, strides=(self._down * held.itemsize, held.itemsize)
        )
        # einsum and not a matrix product: BLAS sums in an order that depends on how many rows there are.
        output: Audio = np.einsum("ij,pj->ip", windows, self._weights).ravel()[self._given : complete]
        whole, self._given = divmod(complete, self._up)
        self._held = self._held[whole * self._down :]
        self._produced += len(output)
        return output


class BlockResampler:
    """Resampling of many live streams at once: a block of each, all of one size, to a frame of each.

    What a stream's `StreamingResampler` holds is here in the block itself: a block is `step` new samples of its stream
    behind the last `overlap` samples of the block before. Before the first comes `lead`, samples of silence; then
    the frames are the `StreamingResampler`'s output, to rounding, and each is complete as soon as there. 1.5 us a frame of
    512 in a dozen, 6 us alone: as a matrix product over groups of periods, whose input overlaps less than that of
    single ones.
    """

    def __init__(self, input_rate: int, output_rate: int, frame: int) -> None:
        """Raises ValueError if a frame is no whole number of groups of periods."""
        divisor = math.gcd(input_rate, output_rate)
        up, down = output_rate // divisor, input_rate // divisor
        weights, taps = _weights(up, down)
        if frame % (up * _GROUP):
            raise ValueError(f"a frame of {frame} is no multiple of {up * _GROUP} samples")
        self._rows = frame // (up * _GROUP)
        self._hop = down * _GROUP
        self._weights = np.zeros((self._hop - down + weights.shape[1], up * _GROUP), dtype=np.float32)
        for n in range(_GROUP):
            rows = slice(n * down, n * down + weights.shape[1])
            self._weights[rows, n * up : (n + 1) * up] = weights.T
        self._frame = frame
        self.step = frame * down // up
        self.block = (self._rows - 1) * self._hop + len(self._weights)
        """Samples."""
        self.overlap = self.block - self.step
        self.lead = taps // 2 - 1

    def resample(self, blocks: Sequence[bytes]) -> Audio:
        """float32 (n, frame) of n blocks of 16-bit PCM."""
        samples = np.frombuffer(b"".join(blocks), dtype="<i2").reshape(len(blocks), self.block)
        audio = samples.astype(np.float32)
        audio *= np.float32(1 / 32768)
        item = audio.itemsize
        windows: Audio = np.ndarray(
            (len(blocks), self._rows, len(self._weights)),
            np.float32,
            audio,
            strides=(self.block * item, self._hop * item, item),
        )
        frames: Audio = windows.reshape(-1, len(self._weights)) @ self._weights
        return frames.reshape(len(blocks), self._frame)


@cache
def _weights(up: int, down: int) -> tuple[Audio, int]:
    """float32 (up, width): the weights of a period's input for each of its outputs; and how many are not 0 in each.

    Row p has its filter where the input of output p begins, p * down // up samples into the period.
    """
    filters = _filters(up, down)
    taps = filters.shape[1]
    weights = np.zeros((up, (up - 1) * down // up + taps), dtype=np.float32)
    for p in range(up):
        start, phase = divmod(p * down, up)
        weights[p, start : start + taps] = filters[phase]
    return weights, taps


def _filters(up: int, down: int) -> Audio:
    """float32 (up, taps): the weights of the input samples around an output that falls `phase / up` after one."""
    half = math.ceil(_ZERO_CROSSINGS * max(1.0, down / up))
    phase = np.arange(up)[:, np.newaxis] / up
    distance = phase + half - 1 - np.arange(2 * half)
    cutoff = _CUTOFF * min(1.0, up / down)
    window = np.i0(_KAISER_BETA * np.sqrt(np.maximum(0.0, 1.0 - (distance / half) ** 2)))
    weights = np.sinc(cutoff * distance) * window
    unity_at_dc = weights.sum(axis=1, keepdims=True)
    filters: Audio = (weights / unity_at_dc).astype(np.float32)
    return filters
