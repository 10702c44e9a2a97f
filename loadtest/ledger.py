"""What a caller remembers of the conversation, and whether the server remembers the same."""

from dataclasses import dataclass, field
from typing import Any

from .people import ServerEvent, Turn


@dataclass(frozen=True, slots=True)
class TurnSeen:
    """A turn as its caller lived through it."""

    ended_at: float
    """When the caller had finished speaking."""
    silence_s: float
    """Until the first sound of an answer; until the caller gave up where there was none."""
    failure: str = ""
    is_apology: bool = False


@dataclass(slots=True)
class Ledger:
    """One caller's: the items of the conversation, in order of arrival, and the turns."""

    apology: str
    turns: list[TurnSeen] = field(default_factory=list)
    forgotten: int = 0
    """Sessions that began anew although there was a conversation to go on with."""
    items: dict[str, str | None] = field(default_factory=dict)
    """Their text; None where an interruption leaves open how much of it was heard."""
    session_id: str = ""
    resumptions: list[bool] = field(default_factory=list)
    """Of each return to the session: whether the history that came back was the one that is known here."""
    shown: dict[str, str] = field(default_factory=dict)
    """What the server gave back when it was asked last."""
    _apologized: set[str] = field(default_factory=set)

    def heard(self, at: float, event: ServerEvent) -> None:
        match event["type"]:
            case "session.created":
                self._begin(event["session"]["id"])
            case "session.resumed":
                self._go_on(event["items"], event["lost_items"])
            case "conversation.item.done" | "conversation.item.retrieved":
                self._note_item(event["item"], is_asked=event["type"].endswith("retrieved"))
            case "conversation.item.input_audio_transcription.completed" if event["transcript"]:
                self.items[event["item_id"]] = event["transcript"]
            case "conversation.item.deleted":
                self.items.pop(event["item_id"], None)
            case "conversation.item.truncated":
                self.items[event["item_id"]] = None
            case "response.output_audio_transcript.delta":
                if self.apology and event["delta"].strip() == self.apology:
                    self._apologized.add(event["item_id"])
            case _:
                pass

    def _begin(self, session_id: str) -> None:
        if self.items and session_id != self.session_id:
            self.forgotten += 1
            self.items.clear()
        self.session_id = session_id

    def _go_on(self, items: list[dict[str, Any]], lost_items: list[str]) -> None:
        for item_id in lost_items:
            self.items.pop(item_id, None)
        if self.items:  # an answer under way was cut at what the server takes for heard
            last = next(reversed(self.items))
            self.items[last] = self._unless_cut(last, items)
        back = {item["id"]: _text(item) for item in items}
        known = self.items.items()
        self.resumptions.append(all(one in back and text in (None, back[one]) for one, text in known))

    def _unless_cut(self, item_id: str, items: list[dict[str, Any]]) -> str | None:
        is_cut = any(item["id"] == item_id and item["status"] == "incomplete" for item in items)
        return None if is_cut else self.items[item_id]

    def _note_item(self, item: dict[str, Any], *, is_asked: bool) -> None:
        text = _text(item)
        if is_asked:
            self.shown[item["id"]] = text
        elif item["role"] == "assistant":
            self.items[item["id"]] = text if item["status"] == "completed" else None

    def turn_over(self, turn: Turn) -> None:
        ended_at = turn.began_at + turn.clip.duration_s
        until = turn.first_sound_at if turn.first_sound_at is not None else turn.given_up_at
        is_apology = turn.item_id in self._apologized
        self.turns.append(TurnSeen(ended_at, max(0.0, until - ended_at), turn.failure, is_apology))

    def is_intact(self, asked: list[str]) -> bool:
        """Of the items `asked` for: the server had them all, with the text that was seen."""
        return all(
            item_id in self.shown and self.items.get(item_id) in (None, self.shown[item_id])
            for item_id in asked
        )


def _text(item: dict[str, Any]) -> str:
    return item["content"][0].get("transcript") or ""
