r"""Text frames to client events and server events to text frames; every way to be malformed ends in `ProtocolError`.

The hot paths are the audio: 50 appended chunks a second a session, 10 to 25 deltas. Both skip pydantic, and the delta
is put together around its base64 without a JSON encoder. 20 ms in (1280 characters of base64), 60 ms out:

    python -m timeit -s "from serve_app.realtime.codec import decode, encode_audio_delta" -s "pcm = bytes(2880)" \
        -s "text = '{\"type\":\"input_audio_buffer.append\",\"audio\":\"' + 'AAAA' * 320 + '\"}'" "decode(text)"
    1.6 us; with "encode_audio_delta('event_1', 'resp_1', 'item_1', pcm)" at the end 0.3 us
"""

import json
import re
from collections.abc import Mapping

from pybase64 import b64decode, b64encode_as_string
from pydantic import ValidationError

from .client_events import MAX_ID_CHARS, REQUESTS, ClientEvent, InputAudio
from .errors import ErrorCode, ProtocolError
from .session_config import AudioFormat

MAX_EVENT_BYTES = 15 * 1024 * 1024
"""OpenAI's limit for one append. Of text its characters are counted: all that is large in an event is ASCII."""

_APPEND = "input_audio_buffer.append"
_LIVE_PREFIXES = (
    f'{{"type":"{_APPEND}","audio":"',
    f'{{"type": "{_APPEND}", "audio": "',
)
_LIVE_SUFFIX = '"}'
_EVENT_ID = re.compile(r'"event_id"\s*:\s*"([^"\\\x00-\x1f]{1,512})"')
_GLIMPSE_CHARS = 1024


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def decode(text: str | bytes, input_format: AudioFormat = AudioFormat.PCM) -> ClientEvent:
    """The event in one text frame (bytes: UTF-8); `input_format` is the session's, for appended audio.

    Raises: ProtocolError, and nothing else, whatever the text. It carries the client's `event_id` where that could
    be read; of an oversized or broken text it is looked for at both ends only.
    """
    if isinstance(text, str) and (live := _live_audio(text, input_format)) is not None:
        return live
    value = _parse(text)
    kind = value.get("type")
    if kind == _APPEND:
        return _input_audio(value, input_format)
    event_id = _event_id(value)
    if not isinstance(kind, str):
        code: ErrorCode = "missing_required_parameter" if kind is None else "invalid_type"
        raise ProtocolError(code, "An event needs a 'type', a string.", "type", event_id)
    if kind not in REQUESTS:
        known = ", ".join([*REQUESTS, _APPEND])
        raise ProtocolError(
            "invalid_value", f"Unknown event type {kind[:80]!r}; known are: {known}.", "type", event_id
        )
    try:
        return REQUESTS[kind].model_validate(value)
    except ValidationError as error:
        raise _malformed(error, event_id) from None


def encode(event: Mapping[str, object]) -> str:
    """The event as JSON, all ASCII: no text in it, not even half a surrogate pair, can break the frame."""
    return _ENCODER.encode(event)


def encode_audio_delta(event_id: str, response_id: str, item_id: str, encoded: bytes) -> str:
    """`response.output_audio.delta`; the ids are the server's own, so none needs escaping."""
    return (
        f'{{"type":"response.output_audio.delta","event_id":"{event_id}","response_id":"{response_id}",'
        f'"item_id":"{item_id}","output_index":0,"content_index":0,'
        f'"delta":"{b64encode_as_string(encoded)}"}}'
    )


def _live_audio(text: str, input_format: AudioFormat) -> InputAudio | None:
    """An append as JavaScript and Python write it who have nothing else to say; None: it needs a closer look.

    What decodes as strict base64 holds no quote and no backslash, so the text is no other JSON than it seems.
    """
    for prefix in _LIVE_PREFIXES:
        if text.startswith(prefix) and text.endswith(_LIVE_SUFFIX) and len(text) <= MAX_EVENT_BYTES:
            try:
                encoded = b64decode(text[len(prefix) : -len(_LIVE_SUFFIX)], validate=True)
            except ValueError:
                return None
            return None if len(encoded) % 2 and input_format is AudioFormat.PCM else InputAudio(encoded)
    return None


def _parse(text: str | bytes) -> dict[str, object]:
    if len(text) > MAX_EVENT_BYTES:
        message = f"The event is larger than {MAX_EVENT_BYTES} bytes."
        raise ProtocolError("event_too_large", message, event_id=_glimpse_event_id(text))
    try:
        value = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError):  # ValueError: also broken UTF-8 and integers of over 4300 digits
        message = "The event is not valid JSON, or is nested too deeply."
        raise ProtocolError("invalid_json", message, event_id=_glimpse_event_id(text)) from None
    if not isinstance(value, dict):
        raise ProtocolError("invalid_json", "An event must be a JSON object.")
    return value


def _glimpse_event_id(text: str | bytes) -> str | None:
    for end in (text[:_GLIMPSE_CHARS], text[-_GLIMPSE_CHARS:]):
        if found := _EVENT_ID.search(end if isinstance(end, str) else end.decode(errors="ignore")):
            return found[1]
    return None


def _event_id(value: dict[str, object]) -> str | None:
    """The client's id as it may be quoted back and logged; a printable string has no lone surrogates."""
    event_id = value.get("event_id")
    if isinstance(event_id, str) and len(event_id) <= MAX_ID_CHARS and event_id.isprintable():
        return event_id
    return None


def _input_audio(value: dict[str, object], input_format: AudioFormat) -> InputAudio:
    audio, event_id = value.get("audio"), _event_id(value)
    if event_id is None and value.get("event_id") is not None:
        message = f"Invalid 'event_id': must be a string of at most {MAX_ID_CHARS} printable characters."
        raise ProtocolError("invalid_type", message, "event_id")
    if not isinstance(audio, str):
        code: ErrorCode = "missing_required_parameter" if audio is None else "invalid_type"
        raise ProtocolError(code, "Invalid 'audio': must be a string of base64.", "audio", event_id)
    try:
        encoded = b64decode(audio, validate=True)
    except ValueError:
        message = "Invalid 'audio': not valid base64 (alphabet of RFC 4648 4, with padding, no line breaks)."
        raise ProtocolError("invalid_value", message, "audio", event_id) from None
    if len(encoded) % 2 and input_format is AudioFormat.PCM:
        message = f"Invalid 'audio': {len(encoded)} bytes are no whole number of 16-bit samples."
        raise ProtocolError("invalid_value", message, "audio", event_id)
    return InputAudio(encoded, event_id)


def _malformed(error: ValidationError, event_id: str | None) -> ProtocolError:
    """The first of pydantic's findings in the terms of the wire."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])[1:201]
    if first["type"] == "missing":
        return ProtocolError(
            "missing_required_parameter", f"Missing required parameter: '{param}'.", param, event_id
        )
    code: ErrorCode = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return ProtocolError(code, f"Invalid '{param}': {first['msg']}.", param, event_id)
