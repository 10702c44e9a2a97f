"""What a session tells its operator."""

from typing import Protocol

from serve_app.conversation.commands import ResponseDone, TranscriptCompleted, TranscriptFailed
from serve_app.conversation.events import Event
from serve_app.realtime.session_config import SessionKind

from .stages import PrefillOutcome


class Observer(Protocol):
    """Is told what an operator wants to know. Must not block."""

    def turn_done(self, session_id: str, done: ResponseDone) -> None: ...

    def draft_ended(self, session_id: str, *, wasted_tokens: int | None) -> None:
        """An answer begun before the end of the turn was dropped; None: it was confirmed."""
        ...

    def transcribed(
        self, session_id: str, kind: SessionKind, heard: TranscriptCompleted | TranscriptFailed
    ) -> None:
        """A turn of the user has been put into words, or could not be."""
        ...

    def prefill_ended(self, session_id: str, outcome: PrefillOutcome) -> None: ...

    def event_handled(self, session_id: str, event: Event | None, now: float) -> None:
        """Every fact with its time, None for a tick: what a replay needs."""
        ...
