"""A session's facts as JSON records, and the commands that they gave, once more.

The core has no clock and no randomness, so the same records give the same commands: a conversation that went wrong is
looked at again on a desk, without its audio.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from serve_app.conversation import events
from serve_app.conversation.commands import Command
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import Event, Settings
from serve_app.conversation.parameters import Parameters
from serve_app.conversation.snapshot import Snapshot

TICK = "tick"


def to_record(event: Event | None, now: float) -> dict[str, Any]:
    """`event` as JSON values under its class name; None is a tick."""
    if event is None:
        return {"now": now, "event": TICK}
    return {"now": now, "event": type(event).__name__, "fields": _to_json(event)}


def from_record(record: Mapping[str, Any]) -> tuple[float, Event | None]:
    """Raises ValueError for an event of a name that is not known."""
    if record["event"] == TICK:
        return record["now"], None
    kind = getattr(events, record["event"], None)
    if kind not in get_args(Event):
        raise ValueError(f"unknown event {record['event']!r}")
    return record["now"], _from_json(kind, record["fields"])


def start_record(
    name: str,
    parameters: Parameters,
    settings: Settings,
    epoch: int = 0,
    snapshot: Snapshot | None = None,
) -> dict[str, Any]:
    """What the records of a session begin with; `snapshot` is what it went on from."""
    start = {"name": name, "parameters": _to_json(parameters), "settings": _to_json(settings)}
    return start | ({"epoch": epoch, "snapshot": snapshot.to_plain()} if snapshot else {})


def replay_file(path: Path) -> list[tuple[float, list[Command]]]:
    """What the session did whose log lies at `path`. Raises OSError, and ValueError for a file that is no such log."""
    try:
        start, *records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        parameters = _from_json(Parameters, start["parameters"])
        snapshot = Snapshot.from_plain(start["snapshot"]) if "snapshot" in start else None
        settings = _from_json(Settings, start["settings"])
        return replay(records, parameters, settings, start["name"], start.get("epoch", 0), snapshot)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the log of a session: {error!r}") from error


def replay(
    records: Iterable[Mapping[str, Any]],
    parameters: Parameters,
    settings: Settings,
    name: str,
    epoch: int = 0,
    snapshot: Snapshot | None = None,
) -> list[tuple[float, list[Command]]]:
    """What the conversation did at each record; `parameters`, `settings` and `name` as the session began with."""
    conversation = Conversation(parameters, settings, name=name, epoch=epoch, snapshot=snapshot)
    steps = []
    for record in records:
        now, event = from_record(record)
        steps.append((now, conversation.tick(now) if event is None else conversation.handle(event, now)))
    return steps


def _to_json(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(kind: Any, value: Any) -> Any:
    """The inverse of `_to_json` for the types that events are made of."""
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        return None if value is None else _from_json(options[0], value)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _from_json(hints[name], item) for name, item in value.items()})  # type: ignore[operator]  # a class
    if get_origin(kind) is tuple:
        inner, *rest = get_args(kind)
        kinds = [inner] * len(value) if rest == [...] else [inner, *rest]
        return tuple(_from_json(k, item) for k, item in zip(kinds, value, strict=True))
    return value
