"""The header of a GGUF file: the shape of the model in it, without loading it.

The format is `docs/gguf.md` of ggml-org/ggml: magic, version, number of tensors, of pairs; then key, type, value.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Unreadable(Exception):
    """The file is cut short, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Header:
    """Of a language model; None where the header does not say, all of it in a file that is no GGUF."""

    context_length: int | None = None
    """Tokens that the model was trained with."""
    layers: int | None = None
    kv_heads: int | None = None
    key_size: int | None = None
    """Numbers in one head's key."""
    value_size: int | None = None


def read(path: Path) -> Header:
    """Raises Unreadable."""
    try:
        with path.open("rb") as file:
            pairs = _pairs(file)
    except (OSError, struct.error, KeyError) as error:
        raise Unreadable(str(path)) from error
    of_model = {
        key.partition(".")[2]: value
        for key, value in pairs.items()
        if isinstance(value, int) and not key.startswith(("general.", "tokenizer."))
    }
    heads = of_model.get("attention.head_count")
    width = of_model.get("embedding_length")
    head_size = width // heads if width and heads else None
    return Header(
        context_length=of_model.get("context_length"),
        layers=of_model.get("block_count"),
        kv_heads=of_model.get("attention.head_count_kv", heads),
        key_size=of_model.get("attention.key_length", head_size),
        value_size=of_model.get("attention.value_length", head_size),
    )


def _pairs(file: BinaryIO) -> dict[str, Any]:
    magic, _, _, count = _read(file, "4sIQQ")
    pairs: dict[str, Any] = {}
    for _ in range(count if magic == b"GGUF" else 0):
        key = _value(file, _STRING).decode(errors="replace")
        # Writers put the vocabulary last, and stepping over 150,000 strings takes a quarter of a second.
        if key.startswith("tokenizer.") and any(known.endswith(".context_length") for known in pairs):
            break
        pairs[key] = _value(file, *_read(file, "I"))
    return pairs


def _read(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _value(file: BinaryIO, kind: int) -> Any:
    """One value: bytes for a string, None for an array, which is skipped."""
    if kind == _STRING:
        return file.read(*_read(file, "Q"))
    if kind == _ARRAY:
        item, count = _read(file, "IQ")
        if item in _SCALARS:
            file.seek(count * struct.calcsize(_SCALARS[item]), 1)
        else:
            for _ in range(count):
                _value(file, item)
        return None
    return _read(file, _SCALARS[kind])[0]
