"""Frozen values as JSON values and back, by their types alone: a value with a new field or of a new kind needs nothing here.

A dataclass becomes an object with its class name under `is`, so that a union of dataclasses can be read again. A field
that is missing takes its default: what an older program wrote stays readable. One that is not known is refused.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

TAG = "is"


class NotReadable(ValueError):
    """The JSON values are not those of such a value; the message says where they differ."""


_ATOMS = frozenset({str, int, float, bool, NoneType})


def to_plain(value: Any) -> Any:
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if kind is tuple or kind is list:
        return [to_plain(item) for item in value]
    if is_dataclass(value):
        plain: dict[str, Any] = {TAG: kind.__name__}
        for name in _names(kind):
            plain[name] = to_plain(getattr(value, name))
        return plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of `to_plain` for a value of the type `kind`. Raises NotReadable."""
    if isinstance(kind, NewType):
        return from_plain(kind.__supertype__, value)
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _of_union(get_args(kind), value)
    if origin is Literal:
        _expect(value in get_args(kind), kind, value)
        return value
    if origin is tuple:
        return _tuple(kind, value)
    if kind is Any or kind is object:
        return value
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), kind, value)
        return value
    if is_dataclass(kind):
        return _dataclass(kind, value)
    if issubclass(kind, Enum):
        _expect(value in {member.value for member in kind}, kind, value)
        return kind(value)
    accepted = (int, float) if kind is float else kind
    _expect(isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)), kind, value)
    return value


def _of_union(options: tuple[Any, ...], value: Any) -> Any:
    if value is None:
        _expect(NoneType in options, options, value)
        return None
    left = [option for option in options if option is not NoneType]
    if isinstance(value, dict) and TAG in value:
        left = [option for option in left if getattr(option, "__name__", None) == value[TAG]]
    for option in left:
        try:
            return from_plain(option, value)
        except NotReadable:
            if option is left[-1]:
                raise
    raise NotReadable(f"none of {options} is {_short(value)}")


def _tuple(kind: Any, value: Any) -> tuple[Any, ...]:
    _expect(isinstance(value, list), kind, value)
    inner = get_args(kind)
    if len(inner) == 2 and inner[1] is ...:
        inner = (inner[0],) * len(value)
    _expect(len(inner) == len(value), kind, value)
    return tuple(from_plain(each, item) for each, item in zip(inner, value, strict=True))


def _dataclass(kind: Any, value: Any) -> Any:
    _expect(isinstance(value, dict) and value.get(TAG) == kind.__name__, kind, value)
    hints, needed = _shape(kind)
    given = {name: item for name, item in value.items() if name != TAG}
    if not given.keys() <= hints.keys() or not needed <= given.keys():
        odd = sorted(given.keys() - hints.keys() | needed - given.keys())
        raise NotReadable(f"{kind.__name__}: fields unknown or missing: {', '.join(odd)}")
    return kind(**{name: from_plain(hints[name], item) for name, item in given.items()})


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _shape(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of its fields, and which of them have no default."""
    hints = get_type_hints(kind)
    own = [field for field in fields(kind) if field.init]
    needed = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    return {field.name: hints[field.name] for field in own}, frozenset(needed)


def _expect(holds: bool, kind: Any, value: Any) -> None:
    if not holds:
        raise NotReadable(f"{_short(value)} is no {getattr(kind, '__name__', kind)}")


def _short(value: Any) -> str:
    return f"a {type(value).__name__}"
