"""Sounds without a word in them, float32 at 16 kHz: silence, noise and music, made here or recorded (`shared/audio`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

Audio = npt.NDArray[np.float32]
RATE = 16_000
LENGTH = 8 * RATE
RECORDED = [
    "dog",
    "friction0",
    "iphone-rub",
    "laptop-tap-1",
    "office-ambience",
    "sb-noise1",
    "sb-noise3",
    "sb-noise5",
    "sheep",
]
"""Without `demand-*`, in which people talk."""
_SECONDS = np.arange(LENGTH) / RATE


def white_noise() -> npt.NDArray[Any]:
    return np.random.default_rng(0).normal(0, 0.1, LENGTH)


def pink_noise() -> npt.NDArray[Any]:
    spectrum = np.fft.rfft(np.random.default_rng(1).normal(0, 1, LENGTH))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1))
    return 0.2 * noise / np.abs(noise).max()


def chords() -> npt.NDArray[Any]:
    """Two triads in turn, struck anew each 0.75 s."""
    triads = np.stack([[220.0, 277.2, 329.6], [196.0, 246.9, 293.7]])[(_SECONDS // 1.5).astype(int) % 2]
    notes = np.sin(2 * np.pi * triads * _SECONDS[:, None]).mean(axis=1)
    return 0.4 * notes * np.exp(-(_SECONDS % 0.75))


def band() -> npt.NDArray[Any]:
    """A scale of tones with overtones, in the range of a voice, over the chords and a drum."""
    scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
    pitch = scale[(_SECONDS / 0.25).astype(int) % 8]
    melody = sum(np.sin(2 * np.pi * pitch * k * _SECONDS) / k for k in (1, 2, 3, 4))
    drum = np.random.default_rng(2).normal(0, 1, LENGTH) * np.exp(-30 * (_SECONDS % 0.5))
    return 0.12 * melody * np.exp(-4 * (_SECONDS % 0.25)) + 0.1 * drum + 0.5 * chords()


MADE: dict[str, Callable[[], npt.NDArray[Any]]] = {
    "silence": lambda: np.zeros(LENGTH),
    "white noise": white_noise,
    "pink noise": pink_noise,
    "chords": chords,
    "a band": band,
}


def sound(name: str, folder: Path) -> Audio:
    """`folder`: shared/audio."""
    if name in MADE:
        return MADE[name]().astype(np.float32)
    samples, rate = soundfile.read(folder / "noise" / f"{name}.flac", dtype="float32")
    assert rate == RATE
    audio: Audio = samples[: 12 * RATE]
    return audio
