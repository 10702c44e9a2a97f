"""Each request as the fact that the conversation reads, and what is refused before it gets there."""

import json
from dataclasses import replace
from typing import Any

import pytest
from realtime.client_examples import message
from realtime.wire_scripts import CONFIG

from serve_app.conversation.events import (
    AudioCleared,
    AudioCommitted,
    Call,
    CallId,
    CancelRequested,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ItemRetrieved,
    ResponseRequested,
    Settings,
    Tool,
    ToolChoice,
    TruncationRequested,
)
from serve_app.realtime.codec import decode
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.wishes import to_wish

LISTED = replace(CONFIG, voices=frozenset({"af_heart", "bm_george"}))


def wish(kind: str, **fields: Any) -> Any:
    return to_wish(decode(json.dumps({"type": kind, "event_id": "e1", **fields})), LISTED)  # type: ignore[arg-type]


def create(item: dict[str, Any], **fields: Any) -> Any:
    return wish("conversation.item.create", item=item, **fields)


def respond(**response: Any) -> Any:
    return wish("response.create", response=response)


def test_commit_clear_and_cancel():
    assert wish("input_audio_buffer.commit") == AudioCommitted("e1")
    assert wish("input_audio_buffer.clear") == AudioCleared("e1")
    assert wish("response.cancel") == CancelRequested(None, "e1")
    assert wish("response.cancel", response_id="resp_1") == CancelRequested("resp_1", "e1")


def test_what_is_asked_of_an_item():
    item = {"item_id": "i"}
    assert wish("conversation.item.retrieve", **item) == ItemRetrieved("i", "e1")
    assert wish("conversation.item.delete", **item) == ItemDeleted("i", "e1")
    cut = {"content_index": 0, "audio_end_ms": 1200}
    assert wish("conversation.item.truncate", **item, **cut) == TruncationRequested("i", 1200, "e1")


@pytest.mark.parametrize(
    ("role", "kind"), [("user", "input_text"), ("system", "input_text"), ("assistant", "output_text")]
)
def test_a_message_is_created_in_its_role(role, kind):
    assert create(message(role, kind, "Hello.")) == ItemCreated(role, "Hello.", None, None, "e1")


def test_a_message_keeps_its_id_its_place_and_all_its_parts():
    item = message("user", "input_text", "Hello.", "You there?", id="i", status="completed")
    wished = create(item, previous_item_id="root")
    assert wished == ItemCreated("user", "Hello.\nYou there?", "i", "root", "e1")


def test_a_response_as_the_session_says():
    assert wish("response.create") == ResponseRequested(event_id="e1")
    assert respond(conversation="auto", tools=[], tool_choice="none", audio={}) == ResponseRequested(
        tools=(), tool_choice=ToolChoice("none"), event_id="e1"
    )


def test_a_response_as_the_client_says():
    output = {"voice": {"id": "bm_george"}, "format": {"type": "audio/pcm"}}
    wished = respond(
        instructions="",
        output_modalities=["text"],
        max_output_tokens=9,
        metadata={"b": "2", "a": "1"},
        audio={"output": output},
    )
    assert wished == ResponseRequested(
        "", "text", "bm_george", 9, metadata=(("b", "2"), ("a", "1")), event_id="e1"
    )


def test_a_response_with_tools_of_its_own():
    f = {"type": "function", "name": "f"}
    assert respond(tools=[f], tool_choice={"type": "function", "name": "f"}) == ResponseRequested(
        tools=(Tool("f"),), tool_choice=ToolChoice(function="f"), event_id="e1"
    )
    assert respond(tools=[]).tools == ()
    assert respond().tools is None


def test_a_choice_among_the_tools_of_the_session():
    config = replace(CONFIG, settings=Settings(tools=(Tool("f"),)))
    request = {"type": "response.create", "response": {"tool_choice": "required"}}
    assert to_wish(decode(json.dumps(request)), config).tool_choice == ToolChoice("required")


def test_a_call_and_its_output_from_the_client():
    call = {
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": '{"x": 1}',
        "status": "completed",
    }
    assert create(call) == ItemCreated(
        "assistant", "", call=Call(CallId("c"), "f", '{"x": 1}'), event_id="e1"
    )
    output = {"type": "function_call_output", "id": "i", "call_id": "c", "output": ""}
    assert create(output) == ItemCreated("tool", "", ItemId("i"), output_of=CallId("c"), event_id="e1")


@pytest.mark.parametrize(
    ("named", "speaks"),
    [("alloy", "af_heart"), ("bm_george", "bm_george"), ("af_heart:0.7,bm_george:0.3",) * 2],
)
def test_the_voice_of_a_response_is_the_one_that_will_speak(named: str, speaks: str) -> None:
    config = replace(LISTED, mixes_voices=True, default_voice="af_heart")
    event = {"type": "response.create", "response": {"audio": {"output": {"voice": named}}}}
    asked: Any = to_wish(decode(json.dumps(event)), config)  # type: ignore[arg-type]
    assert asked.voice == speaks


def test_no_token_limit_is_the_sessions():
    assert respond(max_output_tokens="inf").max_output_tokens is None


PART = "item.content[0]"
BAD_ITEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a call without a name": (
        {"type": "function_call", "call_id": "c", "arguments": "{}"},
        "missing_required_parameter",
        "item.name",
    ),
    "a call without an id": (
        {"type": "function_call", "name": "f", "arguments": "{}"},
        "missing_required_parameter",
        "item.call_id",
    ),
    "a call without arguments": (
        {"type": "function_call", "call_id": "c", "name": "f"},
        "missing_required_parameter",
        "item.arguments",
    ),
    "half of a call's arguments": (
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"x":'},
        "invalid_value",
        "item.arguments",
    ),
    "arguments without names": (
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"},
        "invalid_value",
        "item.arguments",
    ),
    "an output of nothing": (
        {"type": "function_call_output", "output": "1"},
        "missing_required_parameter",
        "item.call_id",
    ),
    "no output": (
        {"type": "function_call_output", "call_id": "c"},
        "missing_required_parameter",
        "item.output",
    ),
    "a reference": ({"type": "item_reference", "id": "i"}, "not_supported", "item.type"),
    "an unknown type": ({"type": "note"}, "invalid_value", "item.type"),
    "no role": ({"type": "message", "content": []}, "missing_required_parameter", "item.role"),
    "an unknown role": (message("tool", "input_text", "x"), "invalid_value", "item.role"),
    "no content": ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
    "empty content": (message("user", "input_text"), "missing_required_parameter", "item.content"),
    "audio": (message("user", "input_audio", "x"), "not_supported", f"{PART}.type"),
    "an image": (message("user", "input_image", "x"), "not_supported", f"{PART}.type"),
    "spoken words of the assistant": (
        message("assistant", "output_audio", "x"),
        "not_supported",
        f"{PART}.type",
    ),
    "an unknown content type": (message("user", "video", "x"), "invalid_value", f"{PART}.type"),
    "another role's content type": (
        message("assistant", "input_text", "x"),
        "invalid_value",
        f"{PART}.type",
    ),
    "no text": (
        {"type": "message", "role": "user", "content": [{"type": "input_text"}]},
        "missing_required_parameter",
        f"{PART}.text",
    ),
}


@pytest.mark.parametrize(("item", "code", "param"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_an_item_that_cannot_be_taken_is_refused_by_name(item, code, param):
    with pytest.raises(ProtocolError) as caught:
        create(item)
    assert (caught.value.code, caught.value.param, caught.value.event_id) == (code, param, "e1")


def test_the_part_at_fault_is_counted():
    item = message("user", "input_text", "Look:")
    item["content"].append({"type": "input_image", "image_url": "data:image/png;base64,AAAA"})
    with pytest.raises(ProtocolError) as caught:
        create(item)
    assert caught.value.param == "item.content[1].type"


BAD_RESPONSES: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tool of another kind": ({"tools": [{"type": "mcp"}]}, "not_supported", "response.tools[0].type"),
    "a forced tool where there are none": (
        {"tool_choice": "required"},
        "invalid_value",
        "response.tool_choice",
    ),
    "a tool that is not there": (
        {
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "function", "name": "g"},
        },
        "invalid_value",
        "response.tool_choice",
    ),
    "input": ({"input": [message("user", "input_text", "x")]}, "not_supported", "response.input"),
    "empty input": ({"input": []}, "not_supported", "response.input"),
    "out of band": ({"conversation": "none"}, "not_supported", "response.conversation"),
    "prompt": ({"prompt": {"id": "p"}}, "not_supported", "response.prompt"),
    "temperature": ({"temperature": 1.0}, "not_supported", "response.temperature"),
    "a name of the beta": ({"modalities": ["text"]}, "unknown_parameter", "response.modalities"),
    "both modalities": (
        {"output_modalities": ["audio", "text"]},
        "invalid_value",
        "response.output_modalities",
    ),
    "another format": (
        {"audio": {"output": {"format": {"type": "audio/pcmu"}}}},
        "not_supported",
        "response.audio.output.format",
    ),
    "a format not offered": (
        {"audio": {"output": {"format": {"type": "audio/opus"}}}},
        "invalid_value",
        "response.audio.output.format.type",
    ),
    "a voice not on the list": (
        {"audio": {"output": {"voice": "alloy"}}},
        "invalid_value",
        "response.audio.output.voice",
    ),
}


@pytest.mark.parametrize(("response", "code", "param"), BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_that_cannot_be_made_is_refused_by_name(response, code, param):
    with pytest.raises(ProtocolError) as caught:
        respond(**response)
    assert (caught.value.code, caught.value.param, caught.value.event_id) == (code, param, "e1")


def test_there_is_no_output_buffer_to_clear_on_a_websocket():
    with pytest.raises(ProtocolError) as caught:
        wish("output_audio_buffer.clear")
    assert (caught.value.code, caught.value.param, caught.value.event_id) == ("not_supported", "type", "e1")
