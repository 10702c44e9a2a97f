"""The recorded facts of a call give its commands again, and those the same bytes on the wire."""

import json
from dataclasses import replace
from typing import Any

import pytest
from session.calls import Call, Faults, calling, scripted
from session.faulty import Fault, FaultyChatModel, FaultySynthesizer
from session.virtual import virtual_time

from deployments.options import ScriptedLlm
from serve_app.conversation.commands import Play, Work
from serve_app.conversation.events import ServerVad, Settings, Tool, ToolChoice
from serve_app.observability import SessionLog, TurnObserver
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import SessionConfig
from serve_app.session.options import SessionOptions
from serve_app.session.replay import from_record, replay, replay_file, to_record

SETTINGS = Settings(instructions="Be brief.", voice="any")


def wire_again(call: Call, settings: Settings, options: SessionOptions) -> list[dict[str, Any]]:
    """What the facts, gone through JSON, make of a new conversation and a new mapper; audio left out."""
    records = json.loads(json.dumps([to_record(event, now) for event, now in call.recorder.facts]))
    mapper = Mapper("test", SessionConfig(settings=settings, voices=None, model="voice"))
    events = [mapper.session_created()]
    for _, commands in replay(records, options.parameters, settings, "test"):
        for command in commands:
            if isinstance(command, Play):
                events.append(json.loads(mapper.audio_delta(command.response_id, command.item_id, b"")))
            elif not isinstance(command, Work):
                events += mapper.events(command)
    return json.loads(json.dumps(events))


def without_sound(event: dict[str, Any]) -> dict[str, Any]:
    return event | {"delta": ""} if event["type"] == "response.output_audio.delta" else event


async def assert_replays(call: Call, settings: Settings = SETTINGS) -> None:
    again = wire_again(call, settings, SessionOptions())
    sent = [without_sound(event) for _, event in call.events]
    assert len(sent) > 20
    assert again[: len(sent)] == sent, "what was still to be sent at the end may follow"
    assert len(again) - len(sent) <= 3


@virtual_time
async def test_a_turn_replays():
    async with calling() as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.done")
    await assert_replays(call)


@virtual_time
async def test_an_interrupted_turn_with_everything_a_client_may_do_replays():
    item = {
        "type": "message",
        "role": "user",
        "id": "mine",
        "content": [{"type": "input_text", "text": "Hi"}],
    }
    async with calling() as call:
        call.send({"type": "conversation.item.create", "item": item, "previous_item_id": "root"})
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta", count=10)
        call.says(for_s=0.5)
        done = await call.until("response.done")
        item_id = done["response"]["output"][0]["id"]
        call.send({"type": "response.cancel", "event_id": "nothing"})
        call.send(
            {
                "type": "conversation.item.truncate",
                "item_id": item_id,
                "content_index": 0,
                "audio_end_ms": 300,
            }
        )
        call.send({"type": "conversation.item.delete", "item_id": "mine"})
        call.send({"type": "input_audio_buffer.clear"})
        call.send(
            {"type": "response.create", "response": {"metadata": {"a": "b"}, "output_modalities": ["text"]}}
        )
        await call.until("response.done", count=2)
        call.mic_on = False
        await call.sleep_until(call.now + 2.0)
    await assert_replays(call)


@pytest.mark.parametrize("stage", ["llm", "tts"])
@virtual_time
async def test_failures_replay(stage: str):
    good = scripted()
    faults = [Fault("fails"), Fault("fails")]
    engines = (
        scripted(chat=FaultyChatModel(good.chat, faults))
        if stage == "llm"
        else scripted(synthesizer=FaultySynthesizer(good.synthesizer, faults))
    )
    async with calling(engines=engines) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.done")
        call.says(for_s=0.5)
        await call.until("response.done", count=2)
    await assert_replays(call)


@virtual_time
async def test_a_stall_over_an_answer_replays():
    settings = Settings(instructions="x", turn_detection=ServerVad(interrupt_response=False))
    async with calling(settings=settings, faults=Faults(send_s=0.003)) as call:
        call.stops_at_speech = False
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta")
        call.says(for_s=1.0)
        await call.sleep_until(call.now + 0.5)
        call.mic_on = False
        await call.until("response.done", count=2)
    await assert_replays(call, settings)


@virtual_time
async def test_the_session_log_alone_gives_the_commands_again(tmp_path: Any):
    folder = tmp_path / "log"
    session_log = SessionLog(folder)
    observer = TurnObserver(session_log=session_log)
    options = SessionOptions()
    session_log.begin("test", options.parameters, SETTINGS)
    async with calling() as call:
        handled = call.recorder.event_handled

        def both(session_id: str, event: Any, now: float) -> None:
            handled(session_id, event, now)
            observer.event_handled(session_id, event, now)

        call.recorder.event_handled = both  # type: ignore[method-assign]
        call.says(at=0.5, for_s=0.5)
        await call.until("response.done")
    session_log.end("test")
    records = [to_record(event, now) for event, now in call.recorder.facts]
    assert replay_file(folder / "test.jsonl") == replay(records, options.parameters, SETTINGS, "test")
    assert len(records) > 20


def test_a_file_that_is_no_session_log_is_refused(tmp_path: Any):
    path = tmp_path / "other.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="not the log of a session"):
        replay_file(path)


def test_a_record_of_an_unknown_event_is_refused():
    with pytest.raises(ValueError, match="unknown event 'Bang'"):
        from_record({"now": 1.0, "event": "Bang", "fields": {}})
    with pytest.raises(ValueError, match="unknown event 'dataclass'"):
        from_record({"now": 1.0, "event": "dataclass", "fields": {}})


@virtual_time
async def test_calls_and_their_outputs_replay():
    tools = (
        Tool("get_weather", "The weather.", '{"type":"object","properties":{"city":{}}}'),
        Tool("get_time"),
    )
    settings = replace(SETTINGS, tools=tools, tool_choice=ToolChoice(function="get_weather"))
    llm = ScriptedLlm(answers=("Let me see.", "It is {output}."), calls=('{"city":"Paris"}',))
    async with calling(engines=scripted(llm=llm), settings=settings) as call:
        call.configure(tools=[{"type": "function", "name": "get_time"}], tool_choice="auto")
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
        call_id = done["response"]["output"][1]["call_id"]
        output = {"type": "function_call_output", "call_id": call_id, "output": "noon"}
        call.send({"type": "conversation.item.create", "item": output})
        response = {"tools": [{"type": "function", "name": "other"}], "tool_choice": "none"}
        call.send({"type": "response.create", "response": response})
        await call.until("response.done", count=2)
    assert call.history()[-1] == ("assistant", "It is noon.")
    await assert_replays(call, settings)
