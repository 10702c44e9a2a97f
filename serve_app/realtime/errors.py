"""The peer's mistake as an exception: it becomes one `error` event, and the session goes on."""

from typing import Literal

ErrorCode = Literal[
    "invalid_json",
    "event_too_large",
    "missing_required_parameter",
    "invalid_type",
    "invalid_value",
    "unknown_parameter",
    "not_supported",
]
"""not_supported: valid in OpenAI's protocol and not built here; the other codes are mistakes there too."""


class ProtocolError(Exception):
    """What the client sent cannot be acted on."""

    def __init__(
        self, code: ErrorCode, message: str, param: str | None = None, event_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        """Dotted path of the field at fault, with indices in brackets: `item.content[0].type`."""
        self.event_id = event_id
        """The client's own id of the event at fault, where it could be read."""
        self.type = "invalid_request_error"


def not_supported(param: str, what: str) -> ProtocolError:
    return ProtocolError("not_supported", f"Not supported by this server: {what}.", param)
