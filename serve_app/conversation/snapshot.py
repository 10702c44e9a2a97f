"""What a conversation is when nothing of it but its words survives: a value from which it goes on elsewhere.

It holds the history as it was heard, the settings, and what was under way: the answer with what was sent of it, so
that it can be cut where its listener stopped, and the user's turns whose sound is lost with the socket.

`SCHEMA` counts up whenever a field changes its meaning or goes away; a new field with a default needs no new number. A
snapshot of another schema is refused: half a history is worse than none.
"""

from dataclasses import dataclass
from typing import Any

from .commands import Item
from .events import ItemId, Modality, ResponseId, SegmentId, Settings, WordTime
from .parameters import Counts
from .plain import NotReadable, from_plain, to_plain
from .playout import Segment, Utterance

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SpokenSegment:
    segment_id: SegmentId
    text: str
    start_s: float
    duration_s: float
    is_finished: bool
    words: tuple[tuple[int, int, float, float], ...]
    """The fields of `WordTime`; there are many of them, so without their names."""


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """An answer of which sound was sent: enough of it to say which words lie before any position."""

    item_id: ItemId
    response_id: ResponseId
    segments: tuple[SpokenSegment, ...]
    sent_s: float
    cut_s: float | None

    @classmethod
    def of(cls, utterance: Utterance) -> "SpokenAnswer":
        segments = tuple(
            SpokenSegment(
                segment.segment_id,
                segment.text,
                segment.start_s,
                segment.duration_s,
                segment.is_finished,
                tuple((w.start_char, w.end_char, w.start_s, w.end_s) for w in segment.words),
            )
            for segment in utterance.segments
        )
        return cls(utterance.item_id, utterance.response_id, segments, utterance.sent_s, utterance.cut_s)

    def utterance(self) -> Utterance:
        """All that was sent of it has been played: it is held for what can still be asked about it."""
        segments = [
            Segment(
                s.segment_id, s.text, s.start_s, s.duration_s, s.is_finished, [WordTime(*w) for w in s.words]
            )
            for s in self.segments
        ]
        played = [(-self.sent_s, 0.0)]  # no clock of ours begins before 0
        return Utterance(self.item_id, self.response_id, segments, self.sent_s, self.cut_s, played)


@dataclass(frozen=True, slots=True)
class OpenResponse:
    """A response that the client was told of and that has not ended."""

    response_id: ResponseId
    item_id: ItemId
    modality: Modality
    metadata: tuple[tuple[str, str], ...]
    text: str
    """All text whose delta was sent."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    settings: Settings
    items: tuple[Item, ...]
    history_version: int
    counts: Counts
    is_owed: bool
    """The user waits for an answer that has not begun."""
    spoken: tuple[SpokenAnswer, ...]
    response: OpenResponse | None
    open_turn: ItemId | None
    """The user was speaking; the item that the turn would have become."""
    unheard: tuple[ItemId, ...]
    """The user's items whose words were not known yet."""
    schema: int = SCHEMA

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_plain(cls, plain: Any) -> "Snapshot":
        """Raises NotReadable, for another schema too."""
        schema = plain.get("schema") if isinstance(plain, dict) else None
        if schema != SCHEMA:
            raise NotReadable(f"the snapshot has schema {schema!r} and this program reads {SCHEMA}")
        snapshot: Snapshot = from_plain(cls, plain)
        return snapshot
