"""What is tuned in a conversation, and the counters that name its parts."""

from dataclasses import dataclass

from .events import CallId, ItemId, JudgementId, ResponseId, SegmentId, TranscriptionId


@dataclass(frozen=True, slots=True)
class Parameters:
    """Set by the operator, the same for all sessions; what a client may change is in `events.Settings`."""

    interruption_min_ms: int = 96
    speech_min_ms: int = 64
    """Shorter sounds never count as speech: two frames."""
    pause_min_ms: int = 96
    """The first silence: transcription begins here, ahead of the endpoint."""
    transcribe_at_pause: bool = True
    """False: transcription waits for the endpoint; for measuring what the early start is worth."""
    judges_turns: bool = False
    """At a pause, where the wait follows the words, a model is also asked how the turn sounds."""
    interim_s: float = 0.0
    """The transcript so far is shown this often while the user speaks, or less often under load; 0: never."""
    drafts_per_turn: int = 0
    """Answers begun at a pause, before the turn has ended, for each turn; 0: none."""
    prefill_after_s: float = 0.0
    """The language model reads ahead when what it was told has changed and then rested for so long; 0: never."""
    max_turn_s: float = 60.0
    stall_s: float = 1.0
    """So long without audio in the middle of speech, and silence is put in its place."""
    playout_lead_s: float = 0.3
    apology: str = ""
    """Spoken where an answer has failed; "": nothing is said."""
    synthesis_ahead_s: float = 8.0
    """No further segment is synthesised while so much sound waits to be sent: an interruption throws it away."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each have been named."""

    items: int = 0
    responses: int = 0
    segments: int = 0
    transcriptions: int = 0
    judgements: int = 0
    calls: int = 0


class Ids:
    """Names for items and responses, unique within the process if `name` is; numbers for the rest."""

    def __init__(self, name: str, *, epoch: int = 0, counts: Counts = Counts()) -> None:
        """`epoch` counts the lives of one conversation: what was named after the last snapshot is not named again."""
        self._name = name
        self._label = f"{name}_{epoch}" if epoch else name
        self._items, self._responses = counts.items, counts.responses
        self._segments, self._transcriptions = counts.segments, counts.transcriptions
        self._judgements, self._calls = counts.judgements, counts.calls

    @property
    def counts(self) -> Counts:
        return Counts(
            self._items,
            self._responses,
            self._segments,
            self._transcriptions,
            self._judgements,
            self._calls,
        )

    def item(self) -> ItemId:
        self._items += 1
        return ItemId(f"item_{self._label}_{self._items}")

    def is_reserved(self, item_id: ItemId) -> bool:
        """True for an id that `item` has given, perhaps to an item that is not in the history yet, or may give."""
        return item_id.startswith(f"item_{self._name}_")

    def response(self) -> ResponseId:
        self._responses += 1
        return ResponseId(f"resp_{self._label}_{self._responses}")

    def call(self) -> CallId:
        self._calls += 1
        return CallId(f"call_{self._label}_{self._calls}")

    def segment(self) -> SegmentId:
        self._segments += 1
        return SegmentId(self._segments)

    def transcription(self) -> TranscriptionId:
        self._transcriptions += 1
        return TranscriptionId(self._transcriptions)

    def judgement(self) -> JudgementId:
        self._judgements += 1
        return JudgementId(self._judgements)
