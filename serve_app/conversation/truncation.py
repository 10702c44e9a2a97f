"""To where an answer was heard: its item in the history is cut to the words before that, and the client is told.

Three know it: the server by its own estimate, when the user takes the floor (`cut_playing`); the client, whose word
supersedes the server's up or down within what was sent (`truncate`); and the client again after a lost socket, or else
the estimate of how far its sound had come (`end_lost`).
"""

from collections.abc import Callable

from .commands import Command, ItemTruncated, Refused, ResponseLost
from .events import Returned, TruncationRequested
from .history import History
from .playout import Playout, Utterance
from .snapshot import OpenResponse


class Truncation:
    def __init__(
        self, playout: Playout, history: History, lead_s: float, emit: Callable[[Command], None]
    ) -> None:
        self._playout = playout
        self._history = history
        self._lead_s = lead_s
        self._emit = emit

    def cut_playing(self, now: float, under_way: Utterance | None) -> None:
        """All sound ends here. How far the answer `under_way` was heard, its `ResponseDone` tells."""
        for cut, heard in self._playout.cut(now):
            self._history.set_text(cut.item_id, heard.text, status="incomplete")
            if cut is not under_way and cut.item_id in self._history:
                self._emit(ItemTruncated(cut.item_id, heard.audio_ms))

    # --- by the client's word ---------------------------------------------------------------------------------------

    def truncate(self, event: TruncationRequested) -> Utterance | None:
        """What was cut; None if it was refused."""
        utterance = self._playout.utterance(event.item_id)
        item = self._history.get(event.item_id)
        if event.audio_end_ms < 0:
            refusal = "invalid_value", "audio_end_ms cannot be negative", "audio_end_ms"
        elif item is None:
            refusal = "item_not_found", f"there is no item {event.item_id!r}", "item_id"
        elif utterance is None or item.modality != "audio" or item.role != "assistant":
            refusal = "item_not_truncatable", "only the agent's last spoken item can be truncated", "item_id"
        else:
            self._cut_at(utterance, event.audio_end_ms)
            return utterance
        self._emit(Refused(*refusal, event.event_id))
        return None

    def _cut_at(self, utterance: Utterance, end_ms: int) -> None:
        sent_ms = round(utterance.sent_s * 1000)
        end_ms = min(end_ms, sent_ms)
        utterance.cut_s = utterance.sent_s if end_ms == sent_ms else end_ms / 1000
        self._history.set_text(utterance.item_id, utterance.sent_text(), status="incomplete")
        self._emit(ItemTruncated(utterance.item_id, end_ms))

    # --- after a loss -----------------------------------------------------------------------------------------------

    def end_lost(self, lost: OpenResponse | None, returned: Returned) -> bool:
        """Cut what was being played when the socket was lost, `lost` being the response under way then.

        Returns whether there was one of which nothing was heard.
        """
        heard = None
        sounded = self._playout.sounded
        for utterance in sounded:
            is_open = lost is not None and utterance.item_id == lost.item_id
            end_s = _position_of(utterance, returned, is_last=utterance is sounded[-1])
            if is_open and utterance.cut_s is not None:  # the client has said where it stopped
                end_s = utterance.cut_s
            elif is_open and end_s is None:
                end_s = max(0.0, utterance.sent_s - self._lead_s)
            if end_s is not None and (is_open or end_s < utterance.sent_s):
                self._history.set_text(utterance.item_id, utterance.cut_to(end_s), status="incomplete")
                self._emit(ItemTruncated(utterance.item_id, round(end_s * 1000)))
            if is_open:
                heard = utterance.heard(end_s or 0.0)
        if lost is None:
            return False
        if lost.text and (heard is None or lost.modality == "text"):  # no sound of it was sent
            said = lost.text.strip() if lost.modality == "text" else ""
            self._history.set_text(lost.item_id, said, status="incomplete")
        self._emit(
            ResponseLost(lost.response_id, lost.item_id, lost.modality, lost.text, heard, lost.metadata)
        )
        return not (lost.text if lost.modality == "text" else heard and heard.text)


def _position_of(utterance: Utterance, returned: Returned, *, is_last: bool) -> float | None:
    """Where the client says that its playback of `utterance` had come to, within what it can have got."""
    is_meant = is_last if returned.item_id is None else utterance.item_id == returned.item_id
    if returned.audio_end_ms is None or not is_meant or utterance.cut_s is not None:
        return None
    return min(max(0, returned.audio_end_ms) / 1000, utterance.longest_s)
