"""Recordings with their texts, clean or with noise over them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from deployments.interfaces import TRANSCRIBER_RATE
from serve_app.audio.resampling import StreamingResampler

Audio = npt.NDArray[np.float32]

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
MANIFEST = "manifest.json"


class NothingToMeasure(Exception):
    """The message says what is missing."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    name: str
    audio: Audio
    """Float32 at 16 kHz."""
    text: str | None
    """What is said; None where the manifest does not tell, "" where nothing is."""

    @property
    def seconds(self) -> float:
        return len(self.audio) / TRANSCRIBER_RATE

    @property
    def pcm(self) -> bytes:
        scaled = np.clip(np.rint(self.audio * 32768), -32768, 32767)
        return bytes(scaled.astype("<i2").tobytes())


def read(folder: Path) -> list[Clip]:
    """The recordings in `folder`, in order of name. Raises NothingToMeasure when there are none.

    Texts come from a `manifest.json` in it or in its parent: a list of {"path": ..., "text": ...}, each path relative
    to the manifest. A recording that it lists without a text has no speech for us.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise NothingToMeasure(f"no recordings ({', '.join(SUFFIXES)}) in {folder}")
    texts = _texts(folder)
    return [Clip(path.name, _audio(path), texts.get(path.resolve())) for path in paths]


def _texts(folder: Path) -> dict[Path, str]:
    for place in (folder, folder.resolve().parent):
        manifest = place / MANIFEST
        if manifest.is_file():
            entries = json.loads(manifest.read_text())
            return {(place / entry["path"]).resolve(): entry.get("text") or "" for entry in entries}
    return {}


def _audio(path: Path) -> Audio:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono: Audio = np.ascontiguousarray(samples.mean(axis=1), np.float32)
    if rate == TRANSCRIBER_RATE:
        return mono
    resampler = StreamingResampler(rate, TRANSCRIBER_RATE)
    return np.concatenate([resampler.push(mono), resampler.flush()])


def with_noise(clips: Sequence[Clip], noises: Sequence[Clip], snr_db: float) -> list[Clip]:
    """Each clip under one of the noises, in turn, at this ratio of their mean powers; the same on every call."""
    random = np.random.default_rng(0)
    noisy = []
    for index, clip in enumerate(clips):
        noise = noises[index % len(noises)].audio
        start = int(random.integers(len(noise)))
        repeated = np.resize(np.roll(noise, -start), len(clip.audio))
        wanted = _power(clip.audio) / 10 ** (snr_db / 10)
        gain = np.sqrt(wanted / max(_power(repeated), 1e-12))
        noisy.append(replace(clip, audio=(clip.audio + gain * repeated).astype(np.float32)))
    return noisy


def _power(audio: Audio) -> float:
    return float(np.mean(np.square(audio))) if len(audio) else 0.0
