"""What a caller who comes back shows when it connects, and how one who cannot be served is turned away."""

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from .conversation.events import ItemId, Returned

RESUME_HEADER = "x-voice-serve-resume"
"""The resume token, for clients that can set headers; others put it into the query, as `resume`."""
NOT_RESUMED = 4004
"""A close code of our own: the token opens nothing. The client may begin anew, knowing that it does."""


class CallerRefused(Exception):
    """A caller who cannot be served: the close code, the error's code and a sentence."""

    def __init__(self, close_code: int, error_code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.close_code = close_code
        self.error_code = error_code
        self.sentence = sentence


def resume_token(caller: HTTPConnection) -> str:
    """The token that the caller wants to go on with; "": a new session."""
    return caller.headers.get(RESUME_HEADER) or caller.query_params.get("resume", "")


def returned(socket: WebSocket) -> Returned:
    """What a caller who is back says of the answer that was being played: `item_id` and `audio_end_ms` of the query."""
    item_id, played = socket.query_params.get("item_id"), socket.query_params.get("audio_end_ms", "")
    is_number = played.isascii() and played.isdigit() and len(played) < 10
    return Returned(ItemId(item_id) if item_id else None, int(played) if is_number else None)
