"""What is tuned in a conversation, and the counters that name its parts."""

from dataclasses import dataclass
from itertools import count

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


class Ids:
    """Names for items and responses, unique within the process if `name` is; numbers for the rest."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._items, self._responses, self._segments, self._transcriptions, self._judgements = (
            count(1),
            count(1),
            count(1),
            count(1),
            count(1),
        )
        self._calls = count(1)

    def item(self) -> ItemId:
        return ItemId(f"item_{self._name}_{next(self._items)}")

    def is_reserved(self, item_id: ItemId) -> bool:
        """True for an id that `item` has given, perhaps to an item that is not in the history yet, or may give."""
        return item_id.startswith(f"item_{self._name}_")

    def response(self) -> ResponseId:
        return ResponseId(f"resp_{self._name}_{next(self._responses)}")

    def call(self) -> CallId:
        return CallId(f"call_{self._name}_{next(self._calls)}")

    def segment(self) -> SegmentId:
        return SegmentId(next(self._segments))

    def transcription(self) -> TranscriptionId:
        return TranscriptionId(next(self._transcriptions))

    def judgement(self) -> JudgementId:
        return JudgementId(next(self._judgements))
