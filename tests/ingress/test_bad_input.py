"""All that a client can get wrong, on one live session: each mistake gets its `error` event, and the session goes on."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from ingress.asgi import Json, Socket, connected, server_of
from session.virtual import VirtualLoop

T = TypeVar("T")


def event(kind: str, **fields: Any) -> Json:
    return {"type": kind, "event_id": "mine", **fields}


def update(**session: Any) -> Json:
    return event("session.update", session={"type": "realtime", **session})


def message(**fields: Any) -> Json:
    content = [{"type": "input_text", "text": "Hello"}]
    return event(
        "conversation.item.create", item={"type": "message", "role": "user", "content": content} | fields
    )


def truncate(**fields: Any) -> Json:
    whole = {"item_id": "nothing", "content_index": 0, "audio_end_ms": 100} | fields
    return event(
        "conversation.item.truncate", **{key: value for key, value in whole.items() if value is not ...}
    )


def raw(text: str) -> str:
    return text


AUDIO_IN, AUDIO_OUT = "session.audio.input", "session.audio.output"
TOO_LONG = "x" * 300_000
PICTURE = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
SPEECH = [{"type": "input_audio", "audio": "AAAA"}]

CASES: dict[str, tuple[Json | str, str, str | None]] = {
    # What was sent: the error's code and param.
    "garbage": ("not json", "invalid_json", None),
    "nothing": ("", "invalid_json", None),
    "half an event": ('{"event_id": "mine", "type": "response.cr', "invalid_json", None),
    "an array": ("[1, 2]", "invalid_json", None),
    "a string": ('"response.create"', "invalid_json", None),
    "not a number": ('{"type": "response.create", "event_id": "mine", "x": NaN}', "invalid_json", None),
    "nested without end": ("[" * 100_000, "invalid_json", None),
    "a number without end": ('{"event_id": "mine", "x": ' + "9" * 5000 + "}", "invalid_json", None),
    "too large": (
        '{"event_id": "mine", "type": "input_audio_buffer.append", "audio": "' + "A" * 15_800_000 + '"}',
        "event_too_large",
        None,
    ),
    "no type": ({"event_id": "mine"}, "missing_required_parameter", "type"),
    "a type that is no name": (event(5), "invalid_type", "type"),  # type: ignore[arg-type]
    "an unknown type": (event("response.sing"), "invalid_value", "type"),
    "an event of the server": (event("session.created"), "invalid_value", "type"),
    "no audio": (event("input_audio_buffer.append"), "missing_required_parameter", "audio"),
    "audio that is no string": (event("input_audio_buffer.append", audio=[1]), "invalid_type", "audio"),
    "bad base64": (event("input_audio_buffer.append", audio="no base64!"), "invalid_value", "audio"),
    "base64 without padding": (event("input_audio_buffer.append", audio="AAA"), "invalid_value", "audio"),
    "an odd number of bytes": (event("input_audio_buffer.append", audio="AAAA"), "invalid_value", "audio"),
    "nothing to commit": (event("input_audio_buffer.commit"), "input_audio_buffer_commit_empty", None),
    "no session": (event("session.update"), "missing_required_parameter", "session"),
    "a session that is a list": (event("session.update", session=[]), "invalid_type", "session"),
    "instructions of 300 kB": (update(instructions=TOO_LONG), "invalid_value", "session.instructions"),
    "instructions that are a number": (update(instructions=1), "invalid_type", "session.instructions"),
    "a format not offered": (
        update(audio={"input": {"format": {"type": "audio/opus"}}}),
        "invalid_value",
        f"{AUDIO_IN}.format.type",
    ),
    "a rate not offered": (
        update(audio={"output": {"format": {"type": "audio/pcm", "rate": 16000}}}),
        "invalid_value",
        f"{AUDIO_OUT}.format.rate",
    ),
    "a voice not offered": (
        update(audio={"output": {"voice": "nobody"}}),
        "invalid_value",
        f"{AUDIO_OUT}.voice",
    ),
    "a speed out of range": (
        update(audio={"output": {"speed": 4.0}}),
        "invalid_value",
        f"{AUDIO_OUT}.speed",
    ),
    "a threshold out of range": (
        update(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 2}}}),
        "invalid_value",
        f"{AUDIO_IN}.turn_detection.threshold",
    ),
    "an eagerness that is none": (
        update(audio={"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "very"}}}),
        "invalid_value",
        f"{AUDIO_IN}.turn_detection.eagerness",
    ),
    "noise reduction": (
        update(audio={"input": {"noise_reduction": {"type": "near_field"}}}),
        "not_supported",
        f"{AUDIO_IN}.noise_reduction",
    ),
    "tools": (update(tools=[{"type": "mcp"}]), "not_supported", "session.tools[0].type"),
    "two modalities": (
        update(output_modalities=["audio", "text"]),
        "invalid_value",
        "session.output_modalities",
    ),
    "no tokens": (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
    "a transcription session": (
        event("session.update", session={"type": "transcription"}),
        "invalid_value",
        "session.type",
    ),
    "a name of the beta": (update(voice="af_heart"), "unknown_parameter", "session.voice"),
    "no item": (event("conversation.item.create"), "missing_required_parameter", "item"),
    "an empty item": (message(content=[]), "missing_required_parameter", "item.content"),
    "an item without a role": (message(role=None), "missing_required_parameter", "item.role"),
    "an item of another role": (message(role="narrator"), "invalid_value", "item.role"),
    "an item of another type": (message(type="mcp_call"), "not_supported", "item.type"),
    "a picture": (message(content=PICTURE), "not_supported", "item.content[0].type"),
    "speech as an item": (message(content=SPEECH), "not_supported", "item.content[0].type"),
    "300 kB of text": (
        message(content=[{"type": "input_text", "text": TOO_LONG}]),
        "invalid_value",
        "item.content[0].text",
    ),
    "an item behind nothing": (
        message() | {"previous_item_id": "nothing"},
        "item_not_found",
        "previous_item_id",
    ),
    "an item of a taken name": (message(id="root"), "item_id_taken", "item.id"),
    "no item id": (event("conversation.item.retrieve"), "missing_required_parameter", "item_id"),
    "an item id that is no string": (
        event("conversation.item.retrieve", item_id=7),
        "invalid_type",
        "item_id",
    ),
    "an unknown item shown": (
        event("conversation.item.retrieve", item_id="nothing"),
        "item_not_found",
        "item_id",
    ),
    "an unknown item deleted": (
        event("conversation.item.delete", item_id="nothing"),
        "item_not_found",
        "item_id",
    ),
    "an unknown item truncated": (truncate(), "item_not_found", "item_id"),
    "a negative length": (truncate(audio_end_ms=-1), "invalid_value", "audio_end_ms"),
    "a length that is no integer": (truncate(audio_end_ms=1.5), "invalid_type", "audio_end_ms"),
    "a length that is a string": (truncate(audio_end_ms="100"), "invalid_type", "audio_end_ms"),
    "a length without end": (truncate(audio_end_ms=10**30), "invalid_value", "audio_end_ms"),
    "no length": (truncate(audio_end_ms=...), "missing_required_parameter", "audio_end_ms"),
    "another content": (truncate(content_index=1), "invalid_value", "content_index"),
    "nothing to cancel": (event("response.cancel"), "response_cancel_not_active", "response_id"),
    "a response with a context of its own": (
        event("response.create", response={"input": []}),
        "not_supported",
        "response.input",
    ),
    "a response outside the conversation": (
        event("response.create", response={"conversation": "none"}),
        "not_supported",
        "response.conversation",
    ),
    "a response with instructions of 300 kB": (
        event("response.create", response={"instructions": TOO_LONG}),
        "invalid_value",
        "response.instructions",
    ),
    "too much metadata": (
        event("response.create", response={"metadata": {str(n): "x" for n in range(17)}}),
        "invalid_value",
        "response.metadata",
    ),
    "a buffer that only WebRTC has": (event("output_audio_buffer.clear"), "not_supported", "type"),
}


class Live:
    """One session that lives as long as the module's tests."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(debug=True, loop_factory=VirtualLoop)
        self._connection = connected(server_of(llm={"engine": "scripted", "system_prompt": "Be brief."}))
        self.socket: Socket = self.run(self._connection.__aenter__())
        self.run(self.socket.until("session.created"))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._connection.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    session = Live()
    yield session
    session.close()


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_gets_its_error_and_nothing_else(live: Live, name: str):
    sent, code, param = CASES[name]
    (answer,) = live.run(live.socket.answer_to(sent))
    assert answer["type"] == "error"
    error = answer["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == (code, param)
    had_id = "mine" in (sent if isinstance(sent, str) else json.dumps(sent))
    assert error["event_id"] == ("mine" if had_id else None)
    assert 10 < len(error["message"]) < 1000
    assert live.socket.closed is None


def test_a_response_during_a_response_is_refused_and_the_first_goes_on(live: Live):
    create = event("response.create", response={"output_modalities": ["text"]})
    count = len(live.socket.all("response.done"))
    before, refused = live.run(live.socket.answer_to(create, create))[:2]
    assert before["type"] == "response.created"
    assert refused["error"]["code"] == "conversation_already_has_active_response"
    assert refused["error"]["event_id"] == "mine"
    done = live.run(live.socket.until("response.done", count=count + 1))
    assert done["response"]["status"] == "completed"


def test_after_all_that_a_turn_still_works(live: Live):
    response = live.run(live.socket.spoken_turn())
    assert response["status"] == "completed"
    settings = live.socket.events[0]["session"]
    (updated,) = live.run(live.socket.answer_to(update()))
    assert updated["session"] == settings, "nothing that was refused has changed anything"
