"""How the scripted voice writes the number of a word into its sound, and how a listener reads it back.

A word sounds as two tones together, as on a telephone's keys: one of sixteen low ones, one of sixteen high ones, so
256 numbers; the number is `16 * low + high`, larger ones wrap. All tones lie in the telephone's band and are 75 Hz or
more apart, so that the pair survives 16-bit samples, 8, 16 or 24 kHz and both laws of G.711. A word sounds from its
first sample to its last with no silence around it: where the sound ends is where the word was cut.
"""

import math
from itertools import groupby

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]

CODES = 256
_LOW_HZ = 500.0 + 75.0 * np.arange(16)
_HIGH_HZ = 1850.0 + 95.0 * np.arange(16)
_AMPLITUDE = 0.25
_WINDOW_S = 0.024
_HOP_S = 0.002
_SHORTEST_S = 0.01
"""A run of one code that is shorter is the blur between two words, not a word."""
_UNSURE_S = 0.015
"""Of one sound that outlasts a word, at least so much must be over for another word."""
_AUDIBLE = 0.02
"""Amplitude under which a tone counts as silence, -34 dBFS: over the noise of G.711."""
_FRAMES_AT_ONCE = 4096


def encode_word(number: int, samples: int, sample_rate: int) -> Audio:
    """float32 (samples,): the sound of the word with this number."""
    low, high = divmod(number % CODES, 16)
    time_s = np.arange(samples) / sample_rate
    tones = np.sin(2 * np.pi * _LOW_HZ[low] * time_s) + np.sin(2 * np.pi * _HIGH_HZ[high] * time_s)
    audio: Audio = (_AMPLITUDE * tones).astype(np.float32)
    return audio


def decode_words(audio: Audio, sample_rate: int, word_s: float) -> list[tuple[int, float, float]]:
    """The words in `audio`, float32 (n,), in order: (number, start_s, end_s) of what is there of each.

    `word_s` is how long a whole word lasts, at the speed it was spoken with: it tells one long sound from the same
    word said twice. Edges are right within 4 ms where a whole word is heard, else within 10; a rest of a
    word shorter than 15 ms may be missing, or taken for the end of the word before.
    Audio before, between and after the words may be silence, and a word may be cut at either end.
    """
    codes = _frame_codes(audio, sample_rate)
    words: list[tuple[int, float, float]] = []
    for number, start_s, end_s in _joined(_runs(codes)):
        times = max(1, math.ceil((end_s - start_s - _UNSURE_S) / word_s))
        edges = [start_s + word_s * part for part in range(times)] + [end_s]
        words += [(number, edges[part], edges[part + 1]) for part in range(times)]
    return words


def _frame_codes(audio: Audio, sample_rate: int) -> list[int]:
    """The code heard around each multiple of the hop; -1 for silence.

    Half of a window lies on either side of its time, so at the edge of a word each tone has half its amplitude:
    the threshold that finds the edge.
    """
    window = round(_WINDOW_S * sample_rate) // 2 * 2
    padded = np.pad(audio, window // 2)
    starts = np.rint(np.arange(0, len(audio) / sample_rate, _HOP_S) * sample_rate).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    bank = _tone_bank(window, sample_rate)
    strength = np.empty((len(starts), 32), dtype=np.float32)
    for first in range(0, len(starts), _FRAMES_AT_ONCE):
        some = slice(first, first + _FRAMES_AT_ONCE)
        strength[some] = np.abs(windows[starts[some]] @ bank)
    low, high = strength[:, :16], strength[:, 16:]
    loudness = np.minimum(low.max(axis=1, initial=0.0), high.max(axis=1, initial=0.0))
    loud = loudness[loudness > _AUDIBLE]
    threshold = max(_AUDIBLE, float(np.median(loud)) / 2) if len(loud) else _AUDIBLE
    codes = np.where(loudness >= threshold, 16 * low.argmax(axis=1) + high.argmax(axis=1), -1)
    return [int(code) for code in codes]


def _tone_bank(window: int, sample_rate: int) -> npt.NDArray[np.complex64]:
    """complex64 (window, 32): its product with a frame has the amplitude of each tone as its magnitude."""
    hann = np.hanning(window + 1)[:-1]
    tones = np.concatenate((_LOW_HZ, _HIGH_HZ))
    turns = np.outer(np.arange(window) / sample_rate, tones)
    bank: npt.NDArray[np.complex64] = (
        hann[:, np.newaxis] * np.exp(-2j * np.pi * turns) * (2 / hann.sum())
    ).astype(np.complex64)
    return bank


def _runs(codes: list[int]) -> list[tuple[int, float, float]]:
    """Runs of one code that are long enough to be a word."""
    runs: list[tuple[int, float, float]] = []
    at = 0
    for code, frames in groupby(codes):
        count = len(list(frames))
        if code >= 0 and count * _HOP_S >= _SHORTEST_S:
            runs.append((code, at * _HOP_S, (at + count) * _HOP_S))
        at += count
    return runs


def _joined(runs: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """The same runs, neighbours meeting in the middle of the blur between them."""
    joined: list[tuple[int, float, float]] = []
    for code, start_s, end_s in runs:
        if joined and start_s - joined[-1][2] < _SHORTEST_S:
            last_code, last_start_s, last_end_s = joined.pop()
            middle_s = (last_end_s + start_s) / 2
            if last_code == code:
                joined.append((code, last_start_s, end_s))
                continue
            joined.append((last_code, last_start_s, middle_s))
            start_s = middle_s
        joined.append((code, start_s, end_s))
    return joined
