"""What was said, item by item, as both sides have heard it.

`version` counts the changes that alter what a language model would be told. Items of the agent hold only words whose
sound was sent, and after an interruption only those that were heard.

A call of a function and its output are items of their own, the output wherever the client put it. A model is told them
together, for chat templates and servers refuse a call that no output follows; while there is none, it is told that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .commands import Item, ItemStatus, Message
from .events import Call, CallId, ItemId, Role

ROOT = ItemId("root")
"""The wire's name for 'before the first item'."""
NO_OUTPUT_YET = "(There is no result yet.)"
"""Told of a call that the client has not answered: the user may go on talking meanwhile."""


class History:
    def __init__(self, items: Iterable[Item] = (), version: int = 0) -> None:
        self.version = version
        self._items: dict[ItemId, Item] = {item.item_id: item for item in items}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item_id: ItemId) -> bool:
        return item_id in self._items

    def items(self) -> tuple[Item, ...]:
        return tuple(self._items.values())

    def get(self, item_id: ItemId) -> Item | None:
        return self._items.get(item_id)

    def append(self, item: Item, after: ItemId | None = None) -> ItemId | None:
        """Put `item` at the end, or behind `after` (or first, for `ROOT`); returns the id before it, if there is one.

        Raises KeyError if `after` is not there, ValueError if the item's id is taken.
        """
        if item.item_id in self._items:
            raise ValueError(item.item_id)
        ids = list(self._items)
        place = len(ids) if after is None else 0 if after == ROOT else _index(ids, after) + 1
        pairs = list(self._items.items())
        pairs.insert(place, (item.item_id, item))
        self._items = dict(pairs)
        self.version += item.is_told
        return ids[place - 1] if place else None

    def set_text(self, item_id: ItemId, text: str, *, status: ItemStatus = "completed") -> None:
        """Nothing happens if the item was deleted meanwhile."""
        item = self._items.get(item_id)
        if item is None:
            return
        self.version += item.text != text
        self._items[item_id] = replace(item, text=text, status=status)

    def remove(self, item_id: ItemId) -> None:
        """Raises KeyError if it is not there."""
        self.version += self._items.pop(item_id).is_told

    def messages(self, instructions: str, *, and_then: str = "") -> tuple[Message, ...]:
        """The conversation for a language model: instructions first, empty items left out.

        `and_then`: as if these words of the user followed.

        Neighbours of one role become one message: chat templates ask for roles that alternate, and a user who goes on
        after a pause, or after interrupting, has said one thing.
        """
        messages = [Message("system", instructions)] if instructions else []
        outputs: dict[CallId, str] = {}
        is_same_breath = False
        """No output lies between the last call and what comes next: further calls were made together with it."""
        for item in self._items.values():
            if item.output_of is not None:
                outputs[item.output_of] = item.text
                is_same_breath = False
            elif item.call is not None:
                _add_call(messages, item.call, joins=is_same_breath)
                is_same_breath = True
            elif item.text:
                _add_words(messages, item.role, item.text)
                is_same_breath = True
        if and_then:
            _add_words(messages, "user", and_then)
        return tuple(_with_outputs(messages, outputs))

    def last_role(self) -> Role | None:
        """Who spoke last, among the items that a model is told of; a call is the agent's word."""
        return next((item.role for item in reversed(self._items.values()) if item.is_told), None)

    def call(self, call_id: CallId) -> Call | None:
        """The call of this id, if it was made."""
        calls = (item.call for item in self._items.values())
        return next((call for call in calls if call is not None and call.call_id == call_id), None)

    def has_output(self, call_id: CallId) -> bool:
        return any(item.output_of == call_id for item in self._items.values())


def _add_words(messages: list[Message], role: Role, text: str) -> None:
    last = messages[-1] if messages else None
    if last is not None and last.role == role != "system" and not last.calls:
        messages[-1] = replace(last, text=f"{last.text} {text}")
    else:
        messages.append(Message(role, text))


def _add_call(messages: list[Message], call: Call, *, joins: bool) -> None:
    last = messages[-1] if messages else None
    if joins and last is not None and last.role == "assistant":
        messages[-1] = replace(last, calls=(*last.calls, call))
    else:
        messages.append(Message("assistant", "", (call,)))


def _with_outputs(messages: list[Message], outputs: dict[CallId, str]) -> Iterator[Message]:
    """Each call followed by what came of it, as chat templates want it; an output without its call is left out."""
    for message in messages:
        yield message
        for call in message.calls:
            yield Message("tool", outputs.get(call.call_id, NO_OUTPUT_YET), output_of=call.call_id)


def _index(ids: list[ItemId], item_id: ItemId) -> int:
    if item_id not in ids:
        raise KeyError(item_id)
    return ids.index(item_id)
