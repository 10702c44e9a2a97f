"""Decoding: every event that a client can send, and every way to be malformed; encoding: JSON that nothing can break."""

import base64
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtime.client_examples import EXAMPLES

from serve_app.realtime import client_events, codec
from serve_app.realtime.client_events import InputAudio, ItemTruncate, ResponseCancel, SessionUpdate
from serve_app.realtime.codec import decode, encode, encode_audio_delta
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.session_config import AudioFormat

PCM_20MS = bytes(range(240)) * 4


def refusal(text: str | bytes, **options: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode(text, **options)
    return caught.value


def append(audio: object, event_id: object = "e1") -> str:
    return json.dumps({"type": "input_audio_buffer.append", "event_id": event_id, "audio": audio})


def truncate(audio_end_ms: object, content_index: object = 0) -> str:
    fields = {"item_id": "i", "content_index": content_index, "audio_end_ms": audio_end_ms}
    return json.dumps({"type": "conversation.item.truncate", "event_id": "e1", **fields})


def update(session: object) -> str:
    return json.dumps({"type": "session.update", "event_id": "e1", "session": session})


# --- what is well formed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_bytes", [False, True])
def test_appended_audio_arrives_byte_for_byte(as_bytes):
    text = append(base64.b64encode(PCM_20MS).decode())
    assert decode(text.encode() if as_bytes else text) == InputAudio(PCM_20MS, "e1")


@given(
    audio=st.one_of(
        st.binary(max_size=40).map(lambda pcm: base64.b64encode(pcm).decode()), st.text(max_size=12)
    ),
    separators=st.sampled_from([(",", ":"), (", ", ": ")]),
    input_format=st.sampled_from(AudioFormat),
    cut=st.integers(0, 3),
)
def test_the_short_way_of_plain_appends_says_the_same_as_the_long_one(audio, separators, input_format, cut):
    """The second text is the first with a space before its end, which the short way does not know."""
    plain = json.dumps({"type": "input_audio_buffer.append", "audio": audio}, separators=separators)
    plain = plain[: len(plain) - cut] if cut else plain
    found = []
    for text in (plain, plain + " "):
        try:
            found.append(decode(text, input_format))
        except ProtocolError as error:
            found.append((error.code, str(error)))
    assert found[0] == found[1]


def test_what_follows_the_audio_is_not_overlooked():
    text = '{"type":"input_audio_buffer.append","audio":"AAAA","audio":"BBBB"}'
    assert decode(text, AudioFormat.PCMU) == InputAudio(b"\x04\x10A", None)


def test_appended_audio_needs_no_event_id():
    assert decode('{"type":"input_audio_buffer.append","audio":""}') == InputAudio(b"", None)


def test_an_odd_number_of_bytes_is_fine_where_a_sample_is_a_byte():
    assert decode(append("AAAA"), AudioFormat.PCMU) == InputAudio(bytes(3), "e1")


def test_an_event_keeps_what_it_says():
    event = decode(truncate(1200))
    assert isinstance(event, ItemTruncate)
    assert (event.event_id, event.item_id, event.audio_end_ms) == ("e1", "i", 1200)


def test_unknown_fields_are_dropped():
    event = decode('{"type": "response.cancel", "event_id": null, "reason": "of a newer protocol"}')
    assert event == ResponseCancel(type="response.cancel")


def test_absent_and_null_are_told_apart():
    event = decode(update({"audio": {"input": {"turn_detection": None}}}))
    assert isinstance(event, SessionUpdate)
    assert event.session.audio is not None
    assert event.session.audio.input is not None
    assert event.session.audio.input.model_fields_set == {"turn_detection"}


@pytest.mark.parametrize("voice", ["af_heart", {"id": "af_heart"}])
def test_a_voice_is_a_name_or_an_object_with_its_id(voice):
    event = decode(update({"audio": {"output": {"voice": voice}}}))
    assert event.session.audio.output.voice == "af_heart"


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES)
def test_every_event_of_the_sdk_decodes(event):
    assert decode(json.dumps(event)).event_id == event.get("event_id")


# --- what is not ----------------------------------------------------------------------------------------------------

HUGE = "[" * 200_000
PAIR = '"type":"response.cancel","event_id":"e1"'
BAD: dict[str, tuple[str | bytes, str, str | None, str | None]] = {
    "not JSON": ("hello", "invalid_json", None, None),
    "nothing": ("", "invalid_json", None, None),
    "half an event": (f"{{{PAIR}", "invalid_json", None, "e1"),
    "not an object": ("[1, 2]", "invalid_json", None, None),
    "not UTF-8": (b"{" + PAIR.encode() + b',"x":"\xff"}', "invalid_json", None, "e1"),
    "nested too deeply": (f'{{{PAIR},"x":{HUGE}', "invalid_json", None, "e1"),
    "NaN": (f'{{{PAIR},"x":NaN}}', "invalid_json", None, "e1"),
    "an integer of 5000 digits": (f'{{{PAIR},"x":{"9" * 5000}}}', "invalid_json", None, "e1"),
    "no type": ('{"event_id":"e1"}', "missing_required_parameter", "type", "e1"),
    "type not a string": ('{"event_id":"e1","type":7}', "invalid_type", "type", "e1"),
    "unknown type": ('{"event_id":"e1","type":"input_audio_buffer.apend"}', "invalid_value", "type", "e1"),
    "a type that is half a pair": ('{"type":"\\ud800","event_id":"e1"}', "invalid_value", "type", "e1"),
    "event_id not a string": ('{"event_id":7,"type":"response.cancel"}', "invalid_type", "event_id", None),
    "event_id half a pair": (
        '{"event_id":"\\ud800","type":"response.cancel"}',
        "invalid_value",
        "event_id",
        None,
    ),
    "event_id too long": (
        json.dumps({"event_id": "e" * 513, "type": "response.cancel"}),
        "invalid_value",
        "event_id",
        None,
    ),
    "append: event_id not a string": (append("", event_id=7), "invalid_type", "event_id", None),
    "append: event_id too long": (append("", event_id="e" * 513), "invalid_type", "event_id", None),
    "append: no audio": (
        '{"type":"input_audio_buffer.append","event_id":"e1"}',
        "missing_required_parameter",
        "audio",
        "e1",
    ),
    "append: audio not a string": (append([1, 2]), "invalid_type", "audio", "e1"),
    "append: not base64": (append("@@@@"), "invalid_value", "audio", "e1"),
    "append: base64 without padding": (append("AAA"), "invalid_value", "audio", "e1"),
    "append: base64 with a line break": (append("AAAA\nAAAA"), "invalid_value", "audio", "e1"),
    "append: base64 of the URL alphabet": (append("__--"), "invalid_value", "audio", "e1"),
    "append: bytes after the padding": (append("AA==AAAA"), "invalid_value", "audio", "e1"),
    "append: not ASCII": (append("ÄÄÄÄ"), "invalid_value", "audio", "e1"),
    "append: an odd number of bytes": (append("AAAA"), "invalid_value", "audio", "e1"),
    "truncate: no fields": (
        '{"type":"conversation.item.truncate","event_id":"e1"}',
        "missing_required_parameter",
        "item_id",
        "e1",
    ),
    "truncate: negative": (truncate(-1), "invalid_value", "audio_end_ms", "e1"),
    "truncate: not an integer": (truncate(1.5), "invalid_type", "audio_end_ms", "e1"),
    "truncate: an integer as a string": (truncate("10"), "invalid_type", "audio_end_ms", "e1"),
    "truncate: a boolean": (truncate(True), "invalid_type", "audio_end_ms", "e1"),
    "truncate: a month": (truncate(2**31), "invalid_value", "audio_end_ms", "e1"),
    "truncate: huge": (truncate(10**400), "invalid_value", "audio_end_ms", "e1"),
    "truncate: another part": (truncate(10, content_index=1), "invalid_value", "content_index", "e1"),
    "delete: an empty id": (
        '{"type":"conversation.item.delete","event_id":"e1","item_id":""}',
        "invalid_value",
        "item_id",
        "e1",
    ),
    "retrieve: NUL in the id": (
        '{"type":"conversation.item.retrieve","event_id":"e1","item_id":"a\\u0000"}',
        "invalid_value",
        "item_id",
        "e1",
    ),
    "update: no session": (
        '{"type":"session.update","event_id":"e1"}',
        "missing_required_parameter",
        "session",
        "e1",
    ),
    "update: session not an object": (update("realtime"), "invalid_type", "session", "e1"),
    "update: 300 kB of instructions": (
        update({"instructions": "x" * 300_000}),
        "invalid_value",
        "session.instructions",
        "e1",
    ),
    "update: NUL in the instructions": (
        update({"instructions": "a\0b"}),
        "invalid_value",
        "session.instructions",
        "e1",
    ),
    "update: half a pair in the instructions": (
        update({"instructions": "\ud800"}),
        "invalid_value",
        "session.instructions",
        "e1",
    ),
    "update: too fast": (
        update({"audio": {"output": {"speed": 1.6}}}),
        "invalid_value",
        "session.audio.output.speed",
        "e1",
    ),
    "update: infinitely fast": (
        '{"type":"session.update","event_id":"e1","session":{"audio":{"output":{"speed":1e999}}}}',
        "invalid_value",
        "session.audio.output.speed",
        "e1",
    ),
    "update: a voice without a name": (
        update({"audio": {"output": {"voice": {"name": "x"}}}}),
        "invalid_value",
        "session.audio.output.voice",
        "e1",
    ),
    "update: a voice with a line break": (
        update({"audio": {"output": {"voice": "a\nb"}}}),
        "invalid_value",
        "session.audio.output.voice",
        "e1",
    ),
    "update: threshold over 1": (
        update({"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 1.01}}}}),
        "invalid_value",
        "session.audio.input.turn_detection.threshold",
        "e1",
    ),
    "update: turn_detection without a type": (
        update({"audio": {"input": {"turn_detection": {"threshold": 0.5}}}}),
        "missing_required_parameter",
        "session.audio.input.turn_detection.type",
        "e1",
    ),
    "update: silence as a string": (
        update({"audio": {"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": "5"}}}}),
        "invalid_type",
        "session.audio.input.turn_detection.silence_duration_ms",
        "e1",
    ),
    "update: no tokens": (
        update({"max_output_tokens": 0}),
        "invalid_value",
        "session.max_output_tokens",
        "e1",
    ),
    "update: true tokens": (
        update({"max_output_tokens": True}),
        "invalid_value",
        "session.max_output_tokens",
        "e1",
    ),
    "create: a part that is no object": (
        '{"type":"conversation.item.create","event_id":"e1","item":{"type":"message","content":["hi"]}}',
        "invalid_type",
        "item.content[0]",
        "e1",
    ),
    "response: metadata that are no strings": (
        '{"type":"response.create","event_id":"e1","response":{"metadata":{"turn":7}}}',
        "invalid_type",
        "response.metadata.turn",
        "e1",
    ),
    "response: too much metadata": (
        json.dumps(
            {
                "type": "response.create",
                "event_id": "e1",
                "response": {"metadata": {str(n): "" for n in range(17)}},
            }
        ),
        "invalid_value",
        "response.metadata",
        "e1",
    ),
}


@pytest.mark.parametrize(("text", "code", "param", "event_id"), BAD.values(), ids=BAD)
def test_bad_input_is_named_with_its_code_its_field_and_the_clients_id(text, code, param, event_id):
    error = refusal(text)
    assert (error.code, error.param, error.event_id) == (code, param, event_id)
    assert error.type == "invalid_request_error"
    assert error.message
    assert len(error.message) < 1000


@pytest.mark.parametrize("where", ["head", "tail", "nowhere"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_oversized_event_is_refused_unread_and_named_if_its_id_stands_at_an_end(
    monkeypatch, where, as_bytes
):
    monkeypatch.setattr(codec, "MAX_EVENT_BYTES", 10_000)
    name, filling = '"event_id":"e1"', '"audio":"' + "A" * 10_000 + '"'
    text = {"head": f"{{{name},{filling}}}", "tail": f"{{{filling},{name}}}", "nowhere": filling}[where]
    error = refusal(text.encode() if as_bytes else text)
    assert (error.code, error.event_id) == ("event_too_large", None if where == "nowhere" else "e1")


@pytest.mark.parametrize("key", ["x" * 10_000, "\ud800"])
def test_a_key_of_the_clients_cannot_blow_up_or_break_the_error(key):
    error = refusal(json.dumps({"type": "response.create", "response": {"metadata": {key: ""}}}))
    assert error.param is not None
    assert len(error.param) <= 200
    assert error.param.encode()


def test_the_largest_event_passes(monkeypatch):
    text = append("AAAAAAAA")
    monkeypatch.setattr(codec, "MAX_EVENT_BYTES", len(text))
    assert decode(text) == InputAudio(bytes(6), "e1")


def test_the_largest_instructions_pass():
    decode(update({"instructions": "x" * client_events.MAX_TEXT_CHARS}))
    assert refusal(update({"instructions": "x" * (client_events.MAX_TEXT_CHARS + 1)})).code == "invalid_value"


# --- whatever the text ----------------------------------------------------------------------------------------------

KEYS = sorted(
    {
        "type",
        "event_id",
        "session",
        "item",
        "response",
        "audio",
        "item_id",
        "audio_end_ms",
        "content",
        "metadata",
    }
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=8)
    | st.sampled_from(["message", "server_vad", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


def survives(text: str | bytes) -> None:
    try:
        decode(text)
    except ProtocolError as error:
        encode({"code": error.code, "message": error.message, "param": error.param, "id": error.event_id})
        error.message.encode()  # whatever the client wrote, the error can be logged
        (error.param or "").encode()
        (error.event_id or "").encode()


@given(st.text() | st.binary())
def test_any_text_decodes_or_is_refused(text):
    survives(text)


@given(st.text(alphabet=string.printable + "\\u0d8"))
def test_any_string_literal_decodes_or_is_refused(text):
    survives('{"type":"' + text + '"}')


@given(json_values)
def test_any_json_decodes_or_is_refused(value):
    survives(json.dumps(value))


def _paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, each in inner for p in _paths(each, (*path, key)))]


@given(st.data(), st.sampled_from(list(EXAMPLES.values())), json_values)
def test_any_event_with_one_field_replaced_decodes_or_is_refused(data, event, value):
    event = json.loads(json.dumps(event))
    *parents, last = data.draw(st.sampled_from(_paths(event)[1:]))
    node = event
    for key in parents:
        node = node[key]
    node[last] = value
    survives(json.dumps(event))


# --- encoding -------------------------------------------------------------------------------------------------------


@given(json_values.map(lambda value: {"type": "x", "value": value}))
def test_what_is_encoded_is_ascii_and_reads_back(event):
    text = encode(event)
    assert text.isascii()
    assert json.dumps(json.loads(text)) == json.dumps(event)


@given(st.binary())
def test_an_audio_delta_reads_back(encoded):
    event = json.loads(encode_audio_delta("event_7", "resp_1", "item_2", encoded))
    assert base64.b64decode(event.pop("delta"), validate=True) == encoded
    assert event == {
        "type": "response.output_audio.delta",
        "event_id": "event_7",
        "response_id": "resp_1",
        "item_id": "item_2",
        "output_index": 0,
        "content_index": 0,
    }
