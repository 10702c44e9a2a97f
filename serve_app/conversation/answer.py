"""One answer: what it is to be, and how far it has come. `Answering` decides what becomes of it."""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from .commands import CallMade, Heard, Message, Outcome, ResponseDone, ResponseStarted
from .events import (
    CallGenerated,
    ChunkId,
    Failure,
    ItemId,
    Modality,
    ResponseId,
    SegmentId,
    Tool,
    Usage,
)
from .playout import Segment, Utterance
from .segmentation import SpeechSegmenter
from .snapshot import OpenResponse
from .timeline import TurnTimeline


@dataclass(frozen=True, slots=True)
class Order:
    """What an answer is to be, settled when it starts."""

    messages: tuple[Message, ...]
    modality: Modality
    voice: str
    speed: float
    max_output_tokens: int | None
    metadata: tuple[tuple[str, str], ...]
    tools: tuple[Tool, ...] = ()
    must_call: bool = False


@dataclass(slots=True)
class Answer:
    response_id: ResponseId
    item_id: ItemId
    order: Order
    timeline: TurnTimeline
    utterance: Utterance
    segmenter: SpeechSegmenter = field(default_factory=SpeechSegmenter)
    waiting: deque[tuple[SegmentId, str]] = field(default_factory=deque)
    synthesizing: tuple[SegmentId, str] | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """None while tokens are still to come."""
    usage: Usage = field(default_factory=Usage)
    held: list[tuple[Segment, ChunkId, float]] = field(default_factory=list)
    """Of a draft: sound that waits for the end of the turn."""
    shown: list[str] = field(default_factory=list)
    is_generated: bool = False
    """The language model was asked."""
    calls: list[CallGenerated] = field(default_factory=list)
    """What it calls, to be told at its end."""
    has_tokens: bool = False
    """Something was generated: words, or a call."""
    has_failed: bool = False
    """A stage has failed once and was tried again."""
    apology_for: Failure | None = None
    """What ended the answer; an apology is its last segment."""
    apologies: int = 0

    @property
    def text(self) -> str:
        """All that was shown of it."""
        return "".join(self.shown)

    @property
    def said(self) -> str:
        """Its words as the history holds them: those written, or those whose sound was sent."""
        return self.text.strip() if self.order.modality == "text" else self.utterance.sent_text()

    @property
    def is_made(self) -> bool:
        """All of its sound has come."""
        return self.finish_reason is not None and self.synthesizing is None and not self.waiting

    def begun_anew(self) -> "Answer":
        """The same answer as it was at first, for its second try."""
        self.utterance.segments.clear()
        return Answer(
            self.response_id, self.item_id, self.order, self.timeline, self.utterance, has_failed=True
        )

    def break_off(self) -> None:
        """The voice has failed in the middle: what came of the segment is played, what should follow is not."""
        assert self.synthesizing is not None
        self.utterance.break_off(self.synthesizing[0])
        self.synthesizing = None
        self.waiting.clear()

    def end_in_apology(self, failure: Failure, segment_id: SegmentId, text: str) -> None:
        """What was made of it is played, then `text` is spoken, and it is over."""
        self.apologies += 1
        self.apology_for, self.finish_reason = failure, "stop"
        if not self.shown:
            self.timeline = TurnTimeline()  # how long an apology took is no latency of an answer
        follows = bool(self.utterance.segments or self.waiting)
        self.waiting.append((segment_id, f" {text}" if follows else text))

    # --- what is told of it -----------------------------------------------------------------------------------------

    def started(self, *, was_drafted: bool) -> ResponseStarted:
        order = self.order
        return ResponseStarted(
            self.response_id,
            self.item_id,
            order.modality,
            order.metadata,
            order.voice,
            order.max_output_tokens,
            was_drafted,
        )

    def open_response(self) -> OpenResponse:
        return OpenResponse(
            self.response_id, self.item_id, self.order.modality, self.order.metadata, self.text
        )

    def done(
        self, outcome: Outcome, heard: Heard | None, failure: Failure | None, calls: tuple[CallMade, ...]
    ) -> ResponseDone:
        return ResponseDone(
            self.response_id,
            self.item_id,
            outcome,
            self.text,
            heard,
            self.usage,
            self.timeline.latency(),
            failure,
            self.order.metadata,
            calls,
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer for which the language model was asked is over."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    outcome: Outcome
