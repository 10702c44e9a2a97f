"""The checker passes every scripted conversation and catches every violation seeded into one."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
from realtime.order import OrderChecker
from realtime.wire_scripts import CONVERSATIONS, play

Events = list[dict[str, Any]]


def check(events: Events) -> OrderChecker:
    checker = OrderChecker()
    for event in events:
        checker.push(event)
    checker.finish()
    return checker


@pytest.mark.parametrize("script", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_scripted_conversation_is_in_order(script):
    check(play(script))


def test_every_finished_response_is_counted():
    assert [response["status"] for response in check(play(CONVERSATIONS["barge-in"])).finished] == [
        "cancelled"
    ]


def _index(events: Events, kind: str, nth: int = 0) -> int:
    return [n for n, event in enumerate(events) if event["type"] == kind][nth]


def drop(kind: str, nth: int = 0) -> Callable[[Events], None]:
    return lambda events: events.__delitem__(_index(events, kind, nth))


def again(kind: str, before: str | None = None) -> Callable[[Events], None]:
    def fault(events: Events) -> None:
        event = copy.deepcopy(events[_index(events, kind)]) | {"event_id": "event_again"}
        events.insert(len(events) if before is None else _index(events, before), event)

    return fault


def repeat(kind: str) -> Callable[[Events], None]:
    def fault(events: Events) -> None:
        n = _index(events, kind)
        events.insert(n + 1, copy.deepcopy(events[n]) | {"event_id": "event_again"})

    return fault


def move(kind: str, before: str, nth: int = 0) -> Callable[[Events], None]:
    def fault(events: Events) -> None:
        event = events.pop(_index(events, kind, nth))
        events.insert(_index(events, before), event)

    return fault


def put(kind: str, **fields: Any) -> Callable[[Events], None]:
    return lambda events: events[_index(events, kind)].update(copy.deepcopy(fields))


def put_in(kind: str, name: str, **fields: Any) -> Callable[[Events], None]:
    return lambda events: events[_index(events, kind)][name].update(copy.deepcopy(fields))


AUDIO, WORDS = "response.output_audio.delta", "response.output_audio_transcript.delta"
DONE, ITEM_ADDED, ITEM_DONE = "response.done", "conversation.item.added", "conversation.item.done"
SPEECH = "input_audio_buffer.speech_started"

FAULTS: dict[str, tuple[str, str, Callable[[Events], None]]] = {
    "no event id": (
        "spoken turn",
        "response.output_audio.delta without an event_id",
        put(AUDIO, event_id=None),
    ),
    "an empty event id": (
        "spoken turn",
        "response.output_audio.delta with an empty event_id",
        put(AUDIO, event_id=""),
    ),
    "an event id twice": (
        "spoken turn",
        "response.output_audio.delta: event_id event_1 came before",
        put(AUDIO, event_id="event_1"),
    ),
    "session.created late": (
        "spoken turn",
        "session.created is the first event",
        move("session.created", DONE),
    ),
    "a response never done": ("spoken turn", "response resp_1 was never done", drop(DONE)),
    "a response done twice": ("spoken turn", "response.done without response.created", repeat(DONE)),
    "a response created twice": (
        "spoken turn",
        "a response was created while another is open",
        repeat("response.created"),
    ),
    "a response never created": (
        "spoken turn",
        "response.output_item.added outside a response",
        drop("response.created"),
    ),
    "created, but not in progress": (
        "failed",
        "created, but not in progress",
        put_in("response.created", "response", status="completed"),
    ),
    "created with an item": (
        "failed",
        "created with an item in it",
        put_in("response.created", "response", output=[{}]),
    ),
    "done as another": ("failed", "another response than was created", put_in(DONE, "response", id="resp_7")),
    "done in progress": (
        "failed",
        "done with no final status",
        put_in(DONE, "response", status="in_progress"),
    ),
    "details of another status": (
        "failed",
        "details of another status",
        put_in(DONE, "response", status_details={"type": "cancelled"}),
    ),
    "an output item that never was": (
        "failed",
        "an item in response.done that was never added",
        put_in(DONE, "response", output=[{}]),
    ),
    "an output item forgotten": (
        "spoken turn",
        "response.done shows what output_item.done did",
        put_in(DONE, "response", output=[]),
    ),
    "a false sum of tokens": (
        "spoken turn",
        "a false sum of tokens",
        put_in(DONE, "response", usage={"input_tokens": 1, "output_tokens": 1, "total_tokens": 1}),
    ),
    "words before created": (
        "spoken turn",
        "response.output_audio_transcript.delta outside a response",
        move(WORDS, "response.created"),
    ),
    "audio before created": (
        "spoken turn",
        "response.output_audio.delta outside a response",
        move(AUDIO, "response.created"),
    ),
    "audio after done": (
        "spoken turn",
        "response.output_audio.delta outside a response",
        lambda events: events.append(events.pop(_index(events, AUDIO))),
    ),
    "audio before its words": ("spoken turn", "sound before its words", move(AUDIO, WORDS)),
    "audio after output_audio.done": (
        "spoken turn",
        "audio after its end",
        move("response.output_audio.done", AUDIO, 0),
    ),
    "audio of another response": (
        "spoken turn",
        "response.output_audio.delta of a response that is not open",
        put(AUDIO, response_id="resp_7"),
    ),
    "audio of another item": (
        "spoken turn",
        "response.output_audio.delta of another item",
        put(AUDIO, item_id="item_7"),
    ),
    "audio of an interrupted answer": (
        "barge-in",
        "audio of an interrupted answer after speech_started",
        move(SPEECH, AUDIO, 1),
    ),
    "audio of a text answer": (
        "text turn",
        "audio of a text answer",
        lambda events: events.insert(
            _index(events, "response.output_text.done"),
            events[_index(events, "response.output_text.delta")] | {"type": AUDIO, "event_id": "x"},
        ),
    ),
    "transcript words in a text answer": (
        "text turn",
        "words of another modality",
        put("response.output_text.delta", type=WORDS),
    ),
    "words lost": ("spoken turn", "the final words are not the sum of the deltas", drop(WORDS, 1)),
    "words never ended": (
        "spoken turn",
        "the part ended before its words",
        drop("response.output_audio_transcript.done"),
    ),
    "words ended twice": (
        "spoken turn",
        "words ended twice",
        repeat("response.output_audio_transcript.done"),
    ),
    "the transcript ends before its audio": (
        "spoken turn",
        "the audio ends before its transcript",
        move("response.output_audio_transcript.done", "response.output_audio.done"),
    ),
    "audio ended twice": ("spoken turn", "audio ended twice", repeat("response.output_audio.done")),
    "another final transcript": (
        "spoken turn",
        "the final words are not the sum of the deltas",
        put("response.output_audio_transcript.done", transcript="It is one."),
    ),
    "another text in the part": (
        "spoken turn",
        "the part is not the sum of the deltas",
        put_in("response.content_part.done", "part", transcript=""),
    ),
    "a part of another type": (
        "spoken turn",
        "a part of another modality",
        put_in("response.content_part.done", "part", type="text"),
    ),
    "the part before its item": (
        "spoken turn",
        "a content part before its item",
        move("response.content_part.added", "response.output_item.added"),
    ),
    "the part before conversation.item.added": (
        "text turn",
        "a content part before conversation.item.added",
        drop(ITEM_ADDED, 1),
    ),
    "the part twice": ("spoken turn", "a second content part", repeat("response.content_part.added")),
    "no part": (
        "spoken turn",
        "response.output_audio_transcript.delta before content_part.added",
        drop("response.content_part.added"),
    ),
    "the part never done": (
        "spoken turn",
        "the item ended before its part",
        drop("response.content_part.done"),
    ),
    "the part done twice": (
        "spoken turn",
        "response.content_part.done after content_part.done",
        repeat("response.content_part.done"),
    ),
    "the item twice in the response": (
        "spoken turn",
        "a second output item",
        repeat("response.output_item.added"),
    ),
    "the item done twice in the response": (
        "spoken turn",
        "the item ended twice",
        repeat("response.output_item.done"),
    ),
    "a call while the message is open": (
        "words and two calls",
        "a call while the message is open",
        move("response.output_item.added", before="response.output_audio.done", nth=1),
    ),
    "arguments before the call is in the conversation": (
        "only a call",
        "response.function_call_arguments.delta before conversation.item.added",
        drop("conversation.item.added", nth=1),
    ),
    "arguments twice": (
        "only a call",
        "the arguments are not the sum of the deltas",
        repeat("response.function_call_arguments.delta"),
    ),
    "arguments whose end comes first": (
        "only a call",
        "the arguments are not the sum of the deltas",
        move("response.function_call_arguments.done", before="response.function_call_arguments.delta"),
    ),
    "a call without its arguments": (
        "only a call",
        "the call that ended is not the one that was told",
        drop("response.function_call_arguments.done"),
    ),
    "a call done twice": (
        "only a call",
        "output items are numbered in order",
        again("response.output_item.done", before="response.done"),
    ),
    "a call left open": (
        "only a call",
        "response.done before its call was done",
        drop("conversation.item.done", nth=1),
    ),
    "a call forgotten": (
        "words and two calls",
        "response.done shows what output_item.done did",
        put_in(DONE, "response", output=[]),
    ),
    "the item never done in the response": (
        "spoken turn",
        "conversation.item.done shows what output_item.done did",
        drop("response.output_item.done"),
    ),
    "another item done": (
        "spoken turn",
        "another item than was added",
        put_in("response.output_item.done", "item", id="item_7"),
    ),
    "text content in a spoken item": (
        "spoken turn",
        "content of another modality",
        put_in("response.output_item.done", "item", content=[{"type": "output_text", "text": "It is noon."}]),
    ),
    "an output item that was there": (
        "spoken turn",
        "the output item was in the conversation before",
        put_in("response.output_item.added", "item", id="item_1"),
    ),
    "an output item added as completed": (
        "spoken turn",
        "the output item was added as done",
        put_in("response.output_item.added", "item", status="completed"),
    ),
    "an item added twice": ("spoken turn", "item item_1 added twice", repeat(ITEM_ADDED)),
    "an item done twice": ("spoken turn", "item item_1 done that was not open", repeat(ITEM_DONE)),
    "an item never done": ("spoken turn", "items never done: ['item_1']", drop(ITEM_DONE)),
    "an answer's item never done": (
        "spoken turn",
        "response.done before its item was done",
        drop(ITEM_DONE, 1),
    ),
    "an item done in progress": (
        "spoken turn",
        "an item that is done is not in progress",
        put_in(ITEM_DONE, "item", status="in_progress"),
    ),
    "an unknown previous item": (
        "spoken turn",
        "previous item item_7 was never added",
        put(ITEM_ADDED, previous_item_id="item_7"),
    ),
    "a commit without its item": (
        "not transcribed",
        "conversation.item.done between a commit and its item",
        drop(ITEM_ADDED),
    ),
    "a commit at the end": (
        "spoken turn",
        "committed item item_7 was never added",
        lambda events: events.append(
            events[_index(events, "input_audio_buffer.committed")] | {"event_id": "x", "item_id": "item_7"}
        ),
    ),
    "another item than was committed": (
        "spoken turn",
        "another item than the committed one",
        put("input_audio_buffer.committed", item_id="item_7"),
    ),
    "committed twice": (
        "spoken turn",
        "item committed twice",
        lambda events: events.append(
            events[_index(events, "input_audio_buffer.committed")] | {"event_id": "x"}
        ),
    ),
    "speech started twice": ("spoken turn", "speech started twice", repeat(SPEECH)),
    "speech in an old item": (
        "spoken turn",
        "speech started in an item that is there already",
        lambda events: events.append(events[_index(events, SPEECH)] | {"event_id": "x"}),
    ),
    "speech stopped that had not started": (
        "spoken turn",
        "speech stopped that had not started",
        drop(SPEECH),
    ),
    "a transcript of nothing": (
        "spoken turn",
        "transcript of an item that was never added",
        put("conversation.item.input_audio_transcription.completed", item_id="item_7"),
    ),
    "two transcripts of an item": (
        "spoken turn",
        "an item was transcribed twice",
        repeat("conversation.item.input_audio_transcription.completed"),
    ),
    "deleted twice": (
        "nothing was said",
        "deleted an item that is not there",
        repeat("conversation.item.deleted"),
    ),
    "truncated an unknown item": (
        "barge-in",
        "truncated an item that is not there",
        put("conversation.item.truncated", item_id="item_7"),
    ),
    "truncated to less than nothing": (
        "barge-in",
        "truncated to less than nothing",
        put("conversation.item.truncated", audio_end_ms=-1),
    ),
    "showed an unknown item": (
        "barge-in",
        "showed an item that is not there",
        put_in("conversation.item.retrieved", "item", id="item_7"),
    ),
    "words after their end": (
        "spoken turn",
        "words after their end",
        again(WORDS, before="response.content_part.done"),
    ),
    "a second response beside the first": (
        "spoken turn",
        "while another is open",
        again("response.created", before=DONE),
    ),
    "an old response created again": (
        "spoken turn",
        "a response was created twice",
        again("response.created"),
    ),
}


@pytest.mark.parametrize(("script", "rule", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_seeded_violation_is_caught_by_its_rule(script, rule, fault):
    events = play(CONVERSATIONS[script])
    fault(events)
    with pytest.raises(AssertionError, match=re.escape(rule)):
        check(events)
