"""`OrderChecker`: the order that real clients rely on, checked from the outside, one server event at a time.

For the mapper's tests, for tests over a socket and for the load client; it needs nothing but the events. The rules are
those of `serve_app/realtime/mapper.py` and shared/facts/realtime-protocol.md, written down a second time on purpose.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]


@dataclass
class _Response:
    id: str
    modality: str
    item_id: str | None = None
    is_item_announced: bool = False
    """conversation.item.added came too."""
    is_part_open: bool = False
    text: str = ""
    """All deltas of words."""
    final_text: str | None = None
    is_audio_done: bool = False
    is_part_done: bool = False
    done_item: Event | None = None
    is_item_done: bool = False
    call: Event | None = None
    """The open function_call item; it and what follows of it name `call_index`."""
    is_call_announced: bool = False
    arguments: str = ""
    final_arguments: str | None = None
    done_items: list[Event] = field(default_factory=list)
    """Calls, and the message before them, as output_item.done showed them."""
    had_speech: bool = False
    had_audio_after_speech: bool = False


@dataclass
class OrderChecker:
    """push(event) raises AssertionError at the first event that breaks a rule; `finish` at what is left open."""

    event_ids: set[str] = field(default_factory=set)
    items: dict[str, str] = field(default_factory=dict)
    """Item id -> "added" | "done" | "deleted"."""
    response_ids: set[str] = field(default_factory=set)
    response: _Response | None = None
    speech_item: str | None = None
    """The item of speech that was started and not stopped, committed or cleared."""
    committed: str | None = None
    """Committed, its item not yet added."""
    transcribed: set[str] = field(default_factory=set)
    may_end_lost: bool = False
    """The session was resumed: a response that was under way before may end now, and only now."""
    finished: list[Event] = field(default_factory=list)
    """Every response of a response.done, for callers to count."""

    def push(self, event: Event) -> None:
        kind, event_id = event["type"], event.get("event_id")
        assert isinstance(event_id, str), f"{kind} without an event_id"
        assert event_id, f"{kind} with an empty event_id"
        assert event_id not in self.event_ids, f"{kind}: event_id {event_id} came before"
        if kind == "session.created":
            assert not self.event_ids, "session.created is the first event"
        if self.committed is not None:
            assert kind == "conversation.item.added", f"{kind} between a commit and its item"
        self.event_ids.add(event_id)
        self.may_end_lost &= kind in _AFTER_RESUMED
        rule = _RULES.get(kind)
        if rule is not None:
            rule(self, event)

    def finish(self) -> None:
        assert self.response is None, f"response {self.response and self.response.id} was never done"
        assert self.committed is None, f"committed item {self.committed} was never added"
        half = [item_id for item_id, state in self.items.items() if state == "added"]
        assert not half, f"items never done: {half}"

    # --- a session that goes on at another socket ---

    def _resumed(self, event: Event) -> None:
        assert len(self.event_ids) == 2, "session.resumed follows session.created at once"
        self.items = {item["id"]: "done" for item in event["items"]} | dict.fromkeys(
            event["lost_items"], "done"
        )
        self.may_end_lost = True

    # --- the user's side ---

    def _speech_started(self, event: Event) -> None:
        assert self.speech_item is None, "speech started twice"
        assert event["item_id"] not in self.items, "speech started in an item that is there already"
        self.speech_item = event["item_id"]
        if self.response is not None:
            self.response.had_speech = True

    def _speech_stopped(self, event: Event) -> None:
        assert event["item_id"] == self.speech_item, "speech stopped that had not started"
        self.speech_item = None

    def _committed(self, event: Event) -> None:
        assert event["item_id"] not in self.items, "item committed twice"
        self._known_or_none(event["previous_item_id"])
        self.committed, self.speech_item = event["item_id"], None

    def _cleared(self, _event: Event) -> None:
        self.speech_item = None

    def _transcribed(self, event: Event) -> None:
        item_id = event["item_id"]
        assert item_id in self.items, "transcript of an item that was never added"
        assert item_id not in self.transcribed, "an item was transcribed twice"
        self.transcribed.add(item_id)

    # --- items ---

    def _item_added(self, event: Event) -> None:
        item_id = event["item"]["id"]
        assert item_id not in self.items, f"item {item_id} added twice"
        assert self.committed in (None, item_id), "another item than the committed one"
        self._known_or_none(event["previous_item_id"])
        self.committed = None
        self.items[item_id] = "added"
        if self.response is not None and item_id == self.response.item_id:
            self.response.is_item_announced = True
        if self.response is not None and self.response.call and item_id == self.response.call["id"]:
            assert event["item"] == self.response.call, (
                "conversation.item.added shows what output_item.added did"
            )
            self.response.is_call_announced = True

    def _item_done(self, event: Event) -> None:
        item = event["item"]
        assert self.items.get(item["id"]) == "added", f"item {item['id']} done that was not open"
        assert item["status"] != "in_progress", "an item that is done is not in progress"
        self.items[item["id"]] = "done"
        if self.response is not None and item["id"] == self.response.item_id:
            assert self.response.done_item == item, "conversation.item.done shows what output_item.done did"
            self.response.is_item_done = True
        if self.response is not None and self.response.call and item["id"] == self.response.call["id"]:
            assert self.response.done_items[-1] == item, (
                "conversation.item.done shows what output_item.done did"
            )
            self.response.call = None

    def _item_deleted(self, event: Event) -> None:
        assert self.items.get(event["item_id"]) == "done", "deleted an item that is not there"
        self.items[event["item_id"]] = "deleted"

    def _item_truncated(self, event: Event) -> None:
        assert self.items.get(event["item_id"]) in ("added", "done"), "truncated an item that is not there"
        assert event["audio_end_ms"] >= 0, "truncated to less than nothing"

    def _item_retrieved(self, event: Event) -> None:
        assert self.items.get(event["item"]["id"]) in ("added", "done"), "showed an item that is not there"

    def _known_or_none(self, previous: str | None) -> None:
        assert previous is None or previous in self.items, f"previous item {previous} was never added"

    # --- the answer ---

    def _response_created(self, event: Event) -> None:
        response = event["response"]
        assert self.response is None, "a response was created while another is open"
        assert response["id"] not in self.response_ids, "a response was created twice"
        assert response["status"] == "in_progress", "created, but not in progress"
        assert response["output"] == [], "created with an item in it"
        self.response_ids.add(response["id"])
        (modality,) = response["output_modalities"]
        self.response = _Response(response["id"], modality)

    def _output_item_added(self, event: Event) -> None:
        response = self._open(event)
        if event["item"]["type"] == "function_call":
            self._call_added(response, event)
            return
        assert response.item_id is None, "a second output item"
        assert not response.done_items, "words after a call"
        assert event["item"]["id"] not in self.items, "the output item was in the conversation before"
        assert event["item"]["status"] == "in_progress", "the output item was added as done"
        response.item_id = event["item"]["id"]

    def _call_added(self, response: _Response, event: Event) -> None:
        item = event["item"]
        assert response.call is None, "a call while another is open"
        assert response.item_id is None or response.is_item_done, "a call while the message is open"
        assert event["output_index"] == len(response.done_items), "output items are numbered in order"
        assert item["id"] not in self.items, "the call was in the conversation before"
        assert (item["status"], item["arguments"]) == ("in_progress", ""), "the call was added as done"
        response.call, response.is_call_announced = item, False
        response.arguments, response.final_arguments = "", None

    def _arguments(self, event: Event) -> None:
        response = self._open_call(event)
        assert response.final_arguments is None, "arguments after their end"
        response.arguments += event["delta"]

    def _arguments_done(self, event: Event) -> None:
        response = self._open_call(event)
        assert response.final_arguments is None, "arguments ended twice"
        response.final_arguments = event["arguments"]
        assert response.final_arguments == response.arguments, "the arguments are not the sum of the deltas"
        assert event["name"] == response.call["name"], "another function than was added"

    def _open_call(self, event: Event) -> _Response:
        response = self._open(event)
        assert response.call is not None, f"{event['type']} without a call"
        assert response.is_call_announced, f"{event['type']} before conversation.item.added"
        assert event["item_id"] == response.call["id"], f"{event['type']} of another item"
        assert event["call_id"] == response.call["call_id"], f"{event['type']} of another call"
        assert event["output_index"] == len(response.done_items), f"{event['type']} at another place"
        return response

    def _part_added(self, event: Event) -> None:
        response = self._open(event)
        assert response.item_id == event["item_id"], "a content part before its item"
        assert response.is_item_announced, "a content part before conversation.item.added"
        assert not response.is_part_open, "a second content part"
        response.is_part_open = True

    def _words(self, event: Event) -> None:
        response = self._open_part(event)
        is_text = event["type"] == "response.output_text.delta"
        assert is_text == (response.modality == "text"), "words of another modality"
        assert response.final_text is None, "words after their end"
        response.text += event["delta"]

    def _audio(self, event: Event) -> None:
        response = self._open_part(event)
        assert response.modality == "audio", "audio of a text answer"
        assert response.text, "sound before its words"
        assert not response.is_audio_done, "audio after its end"
        response.had_audio_after_speech |= response.had_speech

    def _audio_done(self, event: Event) -> None:
        response = self._open_part(event)
        assert not response.is_audio_done, "audio ended twice"
        response.is_audio_done = True

    def _words_done(self, event: Event) -> None:
        response = self._open_part(event)
        assert response.final_text is None, "words ended twice"
        assert response.is_audio_done == (response.modality == "audio"), (
            "the audio ends before its transcript"
        )
        response.final_text = event["transcript"] if response.modality == "audio" else event["text"]
        assert response.final_text == response.text, "the final words are not the sum of the deltas"

    def _part_done(self, event: Event) -> None:
        response = self._open_part(event)
        assert response.final_text is not None, "the part ended before its words"
        part = event["part"]
        assert part["type"] == response.modality, "a part of another modality"
        part_text = part["transcript" if response.modality == "audio" else "text"]
        assert part_text == response.text, "the part is not the sum of the deltas"
        response.is_part_done = True

    def _output_item_done(self, event: Event) -> None:
        response = self._open(event)
        item = event["item"]
        if item["type"] != "function_call":
            assert response.done_item is None, "the item ended twice"
        assert event["output_index"] == len(response.done_items), "output items are numbered in order"
        response.done_items.append(item)
        if item["type"] == "function_call":
            assert response.call is not None, "a call ended that was not added"
            expected = response.call | {"status": "completed", "arguments": response.final_arguments}
            assert item == expected, "the call that ended is not the one that was told"
            return
        assert item["id"] == response.item_id, "another item than was added"
        assert response.is_part_done, "the item ended before its part"
        (content,) = item["content"]
        assert content["type"] == f"output_{response.modality}", "content of another modality"
        response.done_item = item

    def _response_done(self, event: Event) -> None:
        if self.may_end_lost:
            assert event["response"]["status"] == "incomplete", "what was lost is incomplete"
            self.may_end_lost = False
            self.finished.append(event["response"])
            return
        assert self.response is not None, "response.done without response.created"
        opened, response = self.response, event["response"]
        assert response["id"] == opened.id, "another response than was created"
        status, details = response["status"], response["status_details"] or {}
        assert status in ("completed", "cancelled", "incomplete", "failed"), "done with no final status"
        assert details.get("type", status) == status, "details of another status"
        if opened.item_id is None and opened.call is None and not opened.done_items:
            assert response["output"] == [], "an item in response.done that was never added"
        assert opened.item_id is None or opened.is_item_done, "response.done before its item was done"
        assert opened.call is None, "response.done before its call was done"
        assert response["output"] == opened.done_items, "response.done shows what output_item.done did"
        if details.get("reason") == "turn_detected":
            assert not opened.had_audio_after_speech, "audio of an interrupted answer after speech_started"
        usage = response["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], (
            "a false sum of tokens"
        )
        self.response = None
        self.finished.append(response)

    def _open(self, event: Event) -> _Response:
        assert self.response is not None, f"{event['type']} outside a response"
        assert event["response_id"] == self.response.id, f"{event['type']} of a response that is not open"
        return self.response

    def _open_part(self, event: Event) -> _Response:
        response = self._open(event)
        assert response.is_part_open, f"{event['type']} before content_part.added"
        assert not response.is_part_done, f"{event['type']} after content_part.done"
        assert event["item_id"] == response.item_id, f"{event['type']} of another item"
        return response


_AFTER_RESUMED = {
    "session.resumed",
    "conversation.item.deleted",
    "conversation.item.truncated",
    "response.done",
}
OWN_EVENTS = {"session.resumed", "session.draining"}
"""Events that OpenAI does not have; only clients that ask for them, or resume, get them."""

_RULES: dict[str, Callable[[OrderChecker, Event], None]] = {
    "session.resumed": OrderChecker._resumed,
    "input_audio_buffer.speech_started": OrderChecker._speech_started,
    "input_audio_buffer.speech_stopped": OrderChecker._speech_stopped,
    "input_audio_buffer.committed": OrderChecker._committed,
    "input_audio_buffer.cleared": OrderChecker._cleared,
    "conversation.item.input_audio_transcription.completed": OrderChecker._transcribed,
    "conversation.item.input_audio_transcription.failed": OrderChecker._transcribed,
    "conversation.item.added": OrderChecker._item_added,
    "conversation.item.done": OrderChecker._item_done,
    "conversation.item.deleted": OrderChecker._item_deleted,
    "conversation.item.truncated": OrderChecker._item_truncated,
    "conversation.item.retrieved": OrderChecker._item_retrieved,
    "response.created": OrderChecker._response_created,
    "response.output_item.added": OrderChecker._output_item_added,
    "response.content_part.added": OrderChecker._part_added,
    "response.output_audio_transcript.delta": OrderChecker._words,
    "response.output_text.delta": OrderChecker._words,
    "response.output_audio.delta": OrderChecker._audio,
    "response.output_audio.done": OrderChecker._audio_done,
    "response.output_audio_transcript.done": OrderChecker._words_done,
    "response.output_text.done": OrderChecker._words_done,
    "response.content_part.done": OrderChecker._part_done,
    "response.function_call_arguments.delta": OrderChecker._arguments,
    "response.function_call_arguments.done": OrderChecker._arguments_done,
    "response.output_item.done": OrderChecker._output_item_done,
    "response.done": OrderChecker._response_done,
}
