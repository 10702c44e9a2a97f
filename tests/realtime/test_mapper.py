"""Whole conversations as a client reads them: valid in the SDK's types, in order, with what clients look for."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from openai.types.realtime import RealtimeServerEvent
from openai.types.realtime.realtime_session_create_response import RealtimeSessionCreateResponse
from pydantic import BaseModel, TypeAdapter
from realtime.order import OrderChecker
from realtime.wire_scripts import (
    ANSWER,
    BUSY,
    CONFIG,
    CONVERSATIONS,
    HEARD,
    LATENCY,
    ONLY_A_CALL,
    RESPONSE,
    USER,
    WORDS_AND_CALLS,
    Chunk,
    done,
    kinds,
    play,
    started,
    user_turn,
    words,
)

from serve_app.conversation.commands import HistoryRestored, Notice, ResponseLost, SettingsChanged
from serve_app.conversation.events import ItemId, ServerVad, SessionConfigured, Settings
from serve_app.realtime.codec import decode
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import AudioFormat

SDK = TypeAdapter(RealtimeServerEvent)
EVERY_EVENT = {
    f"{name}, {n}: {event['type']}": event
    for name, script in CONVERSATIONS.items()
    for n, event in enumerate(play(script))
}


def _unknown_fields(model: object, path: str = "") -> list[str]:
    """Fields that the SDK's models let pass without knowing them, where a misspelt name would hide."""
    if isinstance(model, list):
        return [each for n, value in enumerate(model) for each in _unknown_fields(value, f"{path}[{n}]")]
    if not isinstance(model, BaseModel):
        return []
    known = {name: getattr(model, name) for name in type(model).model_fields}
    inner = [each for name, value in known.items() for each in _unknown_fields(value, f"{path}.{name}")]
    return [*(f"{path}.{name}" for name in model.model_extra or ()), *inner]


@pytest.mark.parametrize("event", EVERY_EVENT.values(), ids=EVERY_EVENT)
def test_every_event_is_one_of_the_sdks_to_its_last_field(event):
    model = SDK.validate_python(event)
    assert type(model).model_fields["type"].annotation.__args__ == (event["type"],)
    unknown = set(_unknown_fields(model))
    assert unknown <= {".session.object", ".session.id"}
    if "session" in event:  # those two are known to the type of a session that a server gives
        assert not _unknown_fields(RealtimeSessionCreateResponse.model_validate(event["session"]))


def test_every_notice_is_in_a_script():
    played = {type(step) for script in CONVERSATIONS.values() for step in script} - {Chunk}
    assert played | {HistoryRestored, ResponseLost} == set(get_args(Notice)), "those two: test_resumed.py"


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_conversation_is_in_order(script):
    checker = OrderChecker()
    for event in play(script):
        checker.push(event)
    checker.finish()


def test_the_order_of_a_spoken_turn():
    assert kinds(play(CONVERSATIONS["spoken turn"])) == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.delta",
        "response.output_audio_transcript.delta",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]


def test_the_order_of_a_written_answer():
    assert kinds(play([started("text"), words("It is "), words("noon."), done(text="It is noon.")])) == [
        "session.created",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]


def test_the_order_of_words_and_calls():
    a_call = [
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "conversation.item.done",
    ]
    events = play(WORDS_AND_CALLS)
    assert kinds(events)[-14:] == ["conversation.item.done", *a_call, *a_call, "response.done"]
    assert kinds(play(ONLY_A_CALL)) == ["session.created", "response.created", *a_call, "response.done"]
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["message", "function_call", "function_call"]
    assert items[1] == {
        "id": "item_3",
        "object": "realtime.item",
        "type": "function_call",
        "status": "completed",
        "call_id": "call_1",
        "name": "get_weather",
        "arguments": '{"city":"Paris"}',
    }
    assert [e["output_index"] for e in events if e["type"] == "response.output_item.done"] == [0, 1, 2]
    assert [e["previous_item_id"] for e in events if e["type"] == "conversation.item.done"] == [
        USER,
        ANSWER,
        "item_3",
    ]


def test_an_answer_that_ends_before_its_first_word_leaves_no_item():
    events = play([started(), done("interrupted")], with_created=False)
    assert kinds(events) == ["response.created", "response.done"]
    assert events[-1]["response"]["output"] == []


def test_two_answers_do_not_mix():
    mapper = Mapper("sess_1", CONFIG)
    first = play([started(), words("One."), done(text="One.")], mapper)
    second = play([started("text"), done("failed", failure=BUSY)], mapper, with_created=False)
    assert second[-1]["response"]["output"] == []
    assert len({event["event_id"] for event in first + second}) == len(first + second)


def test_the_users_item_has_no_transcript_until_it_is_known():
    events = play(user_turn(previous=ItemId("item_0")), with_created=False)
    added, finished, transcript = events[3:]
    assert added["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert (added["previous_item_id"], finished["item"]) == ("item_0", added["item"])
    assert transcript["transcript"] == "What time is it?"
    assert transcript["usage"] == {"type": "duration", "seconds": 1.5}


def test_the_answers_item_is_empty_first_and_whole_at_the_end():
    events = play([started(), words("It is "), words("noon."), done(text="It is noon.")])
    added, finished = (event for event in events if event["type"].startswith("conversation.item."))
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert added["previous_item_id"] == finished["previous_item_id"] == USER
    assert finished["item"]["status"] == "completed"
    assert finished["item"]["content"] == [{"type": "output_audio", "transcript": "It is noon."}]
    assert events[-1]["response"]["output"] == [finished["item"]]


@pytest.mark.parametrize("outcome", ["interrupted", "client_cancelled", "incomplete", "failed"])
def test_an_answer_cut_short_leaves_an_incomplete_item(outcome):
    events = play([started(), words("It"), done(outcome, "It", failure=BUSY)])
    (item,) = events[-1]["response"]["output"]
    assert item["status"] == "incomplete"


def test_a_response_is_created_as_it_was_asked_for():
    created = play([started("text", metadata=(("a", "1"),), max_output_tokens=9)])[-1]["response"]
    assert created["metadata"] == {"a": "1"}
    assert (created["output_modalities"], created["max_output_tokens"]) == (["text"], 9)
    assert created["audio"]["output"]["voice"] == "af_heart"
    assert created["conversation_id"] == "conv_sess_1"


def test_a_response_without_limits_or_metadata_says_so():
    created = play([started()])[-1]["response"]
    assert (created["max_output_tokens"], created["metadata"], created["usage"]) == ("inf", None, None)


def test_response_done_has_usage_latency_what_was_heard_and_the_clients_metadata():
    fields = {"latency": LATENCY, "heard": HEARD, "metadata": (("a", "1"), ("latency.total_ms", "0"))}
    response = play([started(), words("It is"), done("interrupted", "It is", **fields)])[-1]["response"]
    assert response["usage"]["total_tokens"] == 38
    assert response["metadata"]["a"] == "1"
    assert response["metadata"]["latency.total_ms"] == "753.0"
    assert response["metadata"]["heard.text"] == "It is"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert (response["id"], response["conversation_id"]) == (RESPONSE, "conv_sess_1")


def test_a_plain_response_done_has_no_metadata():
    assert play([started(), done()])[-1]["response"]["metadata"] is None


def test_an_error_names_the_clients_event():
    mapper = Mapper("sess_1", CONFIG)
    error = mapper.error(ProtocolError("invalid_value", "No.", "item.role", "e1"))
    assert error == {
        "type": "error",
        "event_id": "event_1",
        "error": {
            "type": "invalid_request_error",
            "code": "invalid_value",
            "message": "No.",
            "param": "item.role",
            "event_id": "e1",
        },
    }
    SDK.validate_python(error)


def _request(text: str) -> Any:
    return decode(text)


def test_a_session_update_is_merged_and_shown_when_it_is_in_force():
    mapper = Mapper("sess_1", CONFIG)
    text = (
        '{"type":"session.update","event_id":"e1","session":{"instructions":"Sing.",'
        '"audio":{"input":{"format":{"type":"audio/pcmu"}},"output":{"format":{"type":"audio/pcma"}}}}}'
    )
    wish = mapper.wish(_request(text))
    assert wish == SessionConfigured(replace(CONFIG.settings, instructions="Sing."), "e1")
    assert (mapper.config.input_format, mapper.config.output_format) == (AudioFormat.PCMU, AudioFormat.PCMA)
    (event,) = mapper.events(SettingsChanged(wish.settings))
    shown: Any = event["session"]
    assert shown["instructions"] == "Sing."
    assert shown["audio"]["input"]["format"] == {"type": "audio/pcmu"}
    created: Any = mapper.events(started())[0]["response"]
    assert created["audio"]["output"]["format"] == {"type": "audio/pcma"}


def test_the_session_shown_is_what_the_conversation_holds():
    mapper = Mapper("sess_1", CONFIG)
    mapper.events(SettingsChanged(Settings(turn_detection=ServerVad(threshold=0.9))))
    assert mapper.config.settings.turn_detection == ServerVad(threshold=0.9)


def test_a_refused_update_changes_nothing():
    mapper = Mapper("sess_1", CONFIG)
    with pytest.raises(ProtocolError) as caught:
        mapper.wish(
            _request('{"type":"session.update","event_id":"e1","session":{"instructions":"x","tools":[1]}}')
        )
    assert caught.value.event_id == "e1"
    assert mapper.config == CONFIG


def test_other_requests_become_wishes_too():
    mapper = Mapper("sess_1", CONFIG)
    assert mapper.wish(_request('{"type":"input_audio_buffer.commit","event_id":"e1"}')).event_id == "e1"


def test_the_same_notices_give_the_same_events():
    script = CONVERSATIONS["barge-in"]
    assert play(script) == play(script)


def test_the_audio_delta_belongs_to_the_open_part():
    events = play([started(), words("It"), Chunk(b"\x01\x02"), done(text="It")])
    (delta,) = (event for event in events if event["type"] == "response.output_audio.delta")
    part = next(event for event in events if event["type"] == "response.content_part.added")
    for name in ("response_id", "item_id", "output_index", "content_index"):
        assert delta[name] == part[name]
    assert (delta["delta"], delta["item_id"]) == ("AQI=", ANSWER)
    assert json.loads(json.dumps(delta)) == delta
