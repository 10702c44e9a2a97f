"""Kokoro's voices: style tensors, float32 (510, 1, 256), one row for each length of a text in phonemes; and mixtures.

A mixture, "af_heart:0.7,am_michael:0.3", is the weighted average of its voices' tensors, weights normalised; without
weights all count the same. It speaks the language of the first.

The `.pt` files are read without torch (3 s and 280 MB to import): a zip with one pickle, of which nothing but a float
tensor is let through, and the tensor's bytes.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import BadRequest, EngineFailed

Style = npt.NDArray[np.float32]

_MOST_MIXTURES = 16
"""Kept in memory, half a megabyte each; callers may name any number of them."""
_MOST_VOICES = 10
"""In one mixture."""


class Voices:
    """The voices of a folder of weights. Raises BadRequest for a voice that is not there or a mixture that is none."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.stem: path for path in sorted(folder.glob("voices/*.pt"))}
        self._load = lru_cache(_MOST_MIXTURES)(self._mixed)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def parse(self, voice: str) -> tuple[tuple[str, float], ...]:
        """The names and weights, which add up to 1, of a voice or a mixture."""
        parts = [part.strip().partition(":") for part in voice.split(",")]
        weights: OrderedDict[str, float] = OrderedDict()
        for name, colon, weight in parts:
            if name.strip() not in self._files:
                raise _bad(f"no voice {name!r}; there are {', '.join(self._files)}")
            weights[name.strip()] = weights.get(name.strip(), 0.0) + (
                _weight(voice, weight) if colon else 1.0
            )
        total = sum(weights.values())
        if not total > 0 or not math.isfinite(total):
            raise _bad(f"the weights of {voice!r} add up to nothing")
        if len(weights) > _MOST_VOICES:
            raise _bad(f"at most {_MOST_VOICES} voices can be mixed")
        return tuple((name, weight / total) for name, weight in weights.items())

    def style(self, voice: str, phonemes: int) -> Style:
        """float32 (1, 256): how `voice` speaks a text of so many phonemes."""
        tensor = self._load(self.parse(voice))
        row: Style = tensor[min(phonemes, len(tensor)) - 1]
        return row

    def _mixed(self, parts: tuple[tuple[str, float], ...]) -> Style:
        tensors = [read_tensor(self._files[name]) for name, _ in parts]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise _bad(f"the voices {', '.join(name for name, _ in parts)} do not fit each other")
        mixed: Style = sum(
            (np.float32(weight) * tensor for (_, weight), tensor in zip(parts, tensors, strict=True)),
            np.zeros_like(tensors[0]),
        )
        return mixed


def read_tensor(path: Path) -> Style:
    """The one float32 tensor of a file that `torch.save` wrote. Raises EngineFailed for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            index = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            tensor = _Reader(archive, index.removesuffix("data.pkl")).load()
            if isinstance(tensor, np.ndarray) and tensor.ndim == 3 and np.isfinite(tensor).all():
                return tensor
    # What a pickle of something else can raise has no end; a voice file is data from outside.
    except Exception as error:
        raise _failed(path) from error
    raise _failed(path)


class _Reader(pickle.Unpickler):
    """Builds numpy arrays where torch builds tensors, and refuses all else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "torch._utils", "_rebuild_tensor_v2":
                return _array
            case "torch", "FloatStorage":
                return "<f4"
            case "collections", "OrderedDict":
                return OrderedDict
            case _:
                raise pickle.UnpicklingError(f"{module}.{name} is not part of a voice")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype=dtype)


def _array(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Style:
    if tuple(stride) != tuple(math.prod(size[axis + 1 :]) for axis in range(len(size))):
        raise pickle.UnpicklingError("the tensor is not contiguous")
    array: Style = storage[offset : offset + math.prod(size)].reshape(size)
    return array


def _weight(voice: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise _bad(f"{text!r} in {voice!r} is not a weight: write af_heart:0.7,am_michael:0.3") from None
    if not 0 <= weight < math.inf:
        raise _bad(f"a weight is not negative: {voice!r}")
    return weight


def _bad(message: str) -> BadRequest:
    return BadRequest(message, stage="tts", engine="kokoro")


def _failed(path: Path) -> EngineFailed:
    return EngineFailed(f"{path.name} is not a voice of Kokoro", stage="tts", engine="kokoro")
