"""Notices as a conversation gives them, and what a mapper makes of them: material of the wire's tests."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serve_app.conversation.commands import (
    CallMade,
    Heard,
    InputCleared,
    Item,
    ItemAdded,
    ItemRemoved,
    ItemShown,
    ItemTruncated,
    Notice,
    Refused,
    ResponseDone,
    ResponseStarted,
    SettingsChanged,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptDelta,
    TranscriptFailed,
    TranscriptGrown,
    TurnCommitted,
)
from serve_app.conversation.events import (
    Call,
    CallId,
    Failure,
    ItemId,
    ResponseId,
    Settings,
    Tool,
    ToolChoice,
    Usage,
)
from serve_app.conversation.timeline import TurnLatency
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import SessionConfig

USER, ANSWER, RESPONSE = ItemId("item_1"), ItemId("item_2"), ResponseId("resp_1")
CONFIG = SessionConfig(
    settings=Settings(instructions="Be brief.", voice="af_heart"),
    model="voice",
    transcription_model="base.en",
)
LATENCY = TurnLatency(0.5, 0.0, 0.12, 0.04, 0.09, 0.003)
BUSY = Failure(stage="llm", code="engine_busy", message="The language model is at its limit.")


@dataclass(frozen=True)
class Chunk:
    """Audio of the answer, given to `Mapper.audio_delta` where it stands among the notices."""

    encoded: bytes = bytes(960)


def user_turn(item_id: ItemId = USER, previous: ItemId | None = None) -> list[Notice]:
    return [
        SpeechStarted(item_id, 320),
        SpeechStopped(item_id, 1820),
        TurnCommitted(item_id, previous),
        TranscriptCompleted(item_id, "What time is it?", 1.5),
    ]


def started(modality: str = "audio", **fields: Any) -> ResponseStarted:
    return ResponseStarted(RESPONSE, ANSWER, modality, voice="af_heart", **fields)


def words(text: str) -> TranscriptDelta:
    return TranscriptDelta(RESPONSE, ANSWER, text, USER)


def done(outcome: str = "completed", text: str = "", **fields: Any) -> ResponseDone:
    fields = {"heard": None, "usage": Usage(31, 7), "latency": None} | fields
    return ResponseDone(RESPONSE, ANSWER, outcome, text, **fields)


def spoken_answer(end: ResponseDone) -> list[Notice | Chunk]:
    return [started(), words("It is "), Chunk(), Chunk(), words("noon."), Chunk(), end]


WEATHER = Call(CallId("call_1"), "get_weather", '{"city":"Paris"}')
TIME = Call(CallId("call_2"), "get_time", "{}")


def made(call: Call, item_id: str, previous: str | None) -> CallMade:
    item = Item(ItemId(item_id), "assistant", "", "text", call=call)
    return CallMade(item, call, None if previous is None else ItemId(previous))


ONLY_A_CALL = [started(), done(calls=(made(WEATHER, "item_3", USER),))]
WORDS_AND_CALLS = spoken_answer(
    done(text="It is noon.", calls=(made(WEATHER, "item_3", ANSWER), made(TIME, "item_4", "item_3")))
)
HEARD = Heard("It is", 420, is_estimated=False)
CONVERSATIONS: dict[str, list[Notice | Chunk]] = {
    "spoken turn": [*user_turn(), *spoken_answer(done(text="It is noon.", latency=LATENCY))],
    "text turn": [
        ItemAdded(Item(USER, "user", "What time is it?", "text"), None),
        started("text"),
        words("It is "),
        words("noon."),
        done(text="It is noon."),
    ],
    "barge-in": [
        *user_turn(),
        started(metadata=(("client_event_id", "a"),)),
        words("It is "),
        Chunk(),
        SpeechStarted(ItemId("item_3"), 4000),
        done("interrupted", "It is ", heard=HEARD, metadata=(("client_event_id", "a"),)),
        ItemTruncated(ANSWER, 420),
        ItemShown(Item(ANSWER, "assistant", "It is", "audio", "incomplete")),
        SpeechStopped(ItemId("item_3"), 5000),
        TurnCommitted(ItemId("item_3"), ANSWER),
    ],
    "barge-in before the first word": [
        *user_turn(),
        started(),
        SpeechStarted(ItemId("item_3"), 2900),
        done("interrupted"),
    ],
    "cancelled by the client": [*user_turn(), *spoken_answer(done("client_cancelled", "It is noon."))],
    "cut by the token limit": [*user_turn(), *spoken_answer(done("incomplete", "It is noon."))],
    "failed": [*user_turn(), started(), done("failed", failure=BUSY)],
    "failed half-way": [*user_turn(), started("text"), words("It is"), done("failed", "It is", failure=BUSY)],
    "only a call": [*user_turn(), *ONLY_A_CALL],
    "words and two calls": [*user_turn(), *WORDS_AND_CALLS],
    "a call cut by the token limit after another": [
        ItemAdded(Item(USER, "user", "What time is it?", "text"), None),
        started("text"),
        words("Let me see."),
        done("incomplete", "Let me see.", calls=(made(WEATHER, "item_3", ANSWER),)),
    ],
    "a call and its output, from the client": [
        ItemAdded(Item(ItemId("c"), "assistant", "", "text", call=WEATHER), None),
        ItemAdded(Item(ItemId("o"), "tool", "Sunny.", "text", output_of=WEATHER.call_id), ItemId("c")),
        ItemShown(Item(ItemId("c"), "assistant", "", "text", call=WEATHER)),
        ItemShown(Item(ItemId("o"), "tool", "Sunny.", "text", output_of=WEATHER.call_id)),
    ],
    "nothing was said": [
        SpeechStarted(USER, 0),
        SpeechStopped(USER, 900),
        TurnCommitted(USER, None),
        TranscriptCompleted(USER, "", 0.9),
        ItemRemoved(USER),
    ],
    "transcribed while spoken": [
        SpeechStarted(USER, 0),
        TranscriptGrown(USER, "What time"),
        TranscriptGrown(USER, " is it"),
        SpeechStopped(USER, 900),
        TurnCommitted(USER, None),
        TranscriptCompleted(USER, "What time is it?", 0.9),
    ],
    "not transcribed": [SpeechStarted(USER, 0), TurnCommitted(USER, None), TranscriptFailed(USER, BUSY)],
    "small talk": [
        SettingsChanged(Settings(turn_detection=None, max_output_tokens=90, language="de")),
        SettingsChanged(
            Settings(
                tools=(
                    Tool("get_weather", "The weather.", '{"type":"object","properties":{}}'),
                    Tool("get_time"),
                ),
                tool_choice=ToolChoice(function="get_time"),
            )
        ),
        SpeechStarted(USER, 0),
        InputCleared(),
        Refused("item_not_found", "There is no item 'x'.", "item_id", "e1"),
        ItemAdded(Item(ItemId("s"), "system", "You are a clock.", "text"), None),
        ItemAdded(Item(ItemId("a"), "assistant", "Hello.", "text"), ItemId("s")),
        TurnCommitted(USER, ItemId("a")),
        ItemShown(Item(USER, "user", "What time is it?", "audio")),
    ],
}


def play(
    script: Iterable[Notice | Chunk], mapper: Mapper | None = None, *, with_created: bool = True
) -> list[dict[str, Any]]:
    """All events of the script as a client reads them."""
    mapper = mapper or Mapper("sess_1", CONFIG)
    sent: list[Any] = [mapper.session_created()] if with_created else []
    for step in script:
        if isinstance(step, Chunk):
            sent.append(json.loads(mapper.audio_delta(RESPONSE, ANSWER, step.encoded)))
        else:
            sent.extend(mapper.events(step))
    return json.loads(json.dumps(sent))


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]
