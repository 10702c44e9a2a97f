"""What was said, item by item, as both sides have heard it.

`version` counts the changes that alter what a language model would be told. Items of the agent hold only words whose
sound was sent, and after an interruption only those that were heard.
"""

from dataclasses import replace

from .commands import Item, ItemStatus, Message
from .events import ItemId, Role

ROOT = ItemId("root")
"""The wire's name for 'before the first item'."""


class History:
    def __init__(self) -> None:
        self.version = 0
        self._items: dict[ItemId, Item] = {}

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
        self.version += bool(item.text)
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
        self.version += bool(self._items.pop(item_id).text)

    def messages(self, instructions: str, *, and_then: str = "") -> tuple[Message, ...]:
        """The conversation for a language model: instructions first, empty items left out.

        `and_then`: as if these words of the user followed.

        Neighbours of one role become one message: chat templates ask for roles that alternate, and a user who goes on
        after a pause, or after interrupting, has said one thing.
        """
        messages = [Message("system", instructions)] if instructions else []
        said: list[tuple[Role, str]] = [(item.role, item.text) for item in self._items.values()]
        for role, text in [*said, ("user", and_then)]:
            if not text:
                continue
            if messages and messages[-1].role == role != "system":
                messages[-1] = Message(role, f"{messages[-1].text} {text}")
            else:
                messages.append(Message(role, text))
        return tuple(messages)

    def last_role(self) -> Role | None:
        """Who spoke last, among the items with words."""
        return next((item.role for item in reversed(self._items.values()) if item.text), None)


def _index(ids: list[ItemId], item_id: ItemId) -> int:
    if item_id not in ids:
        raise KeyError(item_id)
    return ids.index(item_id)
