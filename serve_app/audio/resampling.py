"""Resampling of a live stream, written for a short and constant delay.

A windowed-sinc polyphase filter: output n is a weighted sum of the input around the time n / output_rate, so nothing
is shifted, and it leaves as soon as the last input sample it needs is there. soxr's streams are not used: they
work in blocks, so at 24 -> 16 kHz their quality LQ keeps back 2.5 to 20 ms of audio (11 ms on average) and at
8 -> 16 kHz 4 to 61 ms (32 on average), whatever the size of the pushes; each of these would be added to every
decision of the detector. Here it is 1.5 and 3 ms, always (tests/audio/test_resampling.py measures it).
"""

import math
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


class StreamingResampler:
    """Resampling of a stream of any cut.

    push(x): float32 (n,) -> float32 (m,), m ~ n * output_rate / input_rate; the concatenated output does not depend
    on how the input was cut, bit for bit. Output sample n is the signal at n / output_rate seconds. Delay:
    24 samples of the lower rate (1.5 ms at 16 kHz), none when the rates are equal: then x itself is returned.
    40 us a push of 20 ms. Raises: ValueError if x is not one-dimensional.
    """

    _held: Audio
    """Input that outputs to come still need."""
    _position: int
    """Of the next output in `_held`, in 1 / up input samples; its filter begins there."""
    _consumed: int
    _produced: int

    def __init__(self, input_rate: int, output_rate: int) -> None:
        if input_rate <= 0 or output_rate <= 0:
            raise ValueError(f"sample rates are positive, not {input_rate} and {output_rate}")
        divisor = math.gcd(input_rate, output_rate)
        self._up = output_rate // divisor
        self._down = input_rate // divisor
        self._filters = _filters(self._up, self._down)
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

    def flush(self) -> Audio:
        """The rest of the output, as if silence followed; the next push begins a new stream.

        All output of a stream together has ceil(n * output_rate / input_rate) samples.
        """
        if self._up == self._down:
            return np.zeros(0, dtype=np.float32)
        missing = -(-self._consumed * self._up // self._down) - self._produced
        taps = self._filters.shape[1]
        self._held = np.concatenate((self._held, np.zeros(taps, dtype=np.float32)))
        rest = self._resample()[:missing]
        self._reset()
        return rest

    def _reset(self) -> None:
        # Silence before the first sample: its filter reaches back half a length.
        self._held = np.zeros(self._filters.shape[1] // 2 - 1, dtype=np.float32)
        self._position = 0
        self._consumed = 0
        self._produced = 0

    def _resample(self) -> Audio:
        taps = self._filters.shape[1]
        end = (len(self._held) - taps + 1) * self._up
        count = max(0, -((self._position - end) // self._down))
        start, phase = np.divmod(self._position + self._down * np.arange(count), self._up)
        windows = self._held[start[:, np.newaxis] + np.arange(taps)]
        # einsum and not a matrix product: BLAS sums in an order that depends on how many rows there are.
        output: Audio = np.einsum("ij,ij->i", windows, self._filters[phase])
        self._position += self._down * count
        self._produced += count
        spent = min(self._position // self._up, len(self._held))
        self._held = self._held[spent:]
        self._position -= spent * self._up
        return output


@cache
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
