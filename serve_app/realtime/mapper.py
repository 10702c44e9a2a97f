"""Notices of the conversation to server events, in the order that clients rely on; and requests to wishes.

The order of one answer, whatever its modality and however it ends (the indented part comes only if the
answer got as far as a first word):

    response.created
        response.output_item.added, conversation.item.added        the item, in progress, empty
        response.content_part.added
        response.output_audio_transcript.delta / response.output_audio.delta ...     or response.output_text.delta ...
        response.output_audio.done, response.output_audio_transcript.done            or response.output_text.done
        response.content_part.done
        response.output_item.done, conversation.item.done
        for each call, as a further output item:
            response.output_item.added, conversation.item.added
            response.function_call_arguments.delta, response.function_call_arguments.done
            response.output_item.done, conversation.item.done
    response.done

A call is whole when it is told, so its arguments come as one delta: half a JSON object is of no use to a client, and a
call that had to be taken back would be of harm.

`tests/realtime/order.py` checks it from the outside. The mapper keeps only what this order needs: the number of the
last event, the open response, and the session's configuration as the wire shows it.

Pure: no clock, no I/O; the same calls give the same events, ids included.
"""

from dataclasses import dataclass, replace
from typing import assert_never

from serve_app.conversation.commands import (
    CallMade,
    HistoryRestored,
    InputCleared,
    ItemAdded,
    ItemRemoved,
    ItemShown,
    ItemTruncated,
    Notice,
    Refused,
    ResponseDone,
    ResponseLost,
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
from serve_app.conversation.events import ItemId, SessionConfigured, Wish

from .client_events import Request, SessionUpdate
from .codec import encode_audio_delta
from .errors import ProtocolError
from .server_events import (
    ItemStatus,
    ServerEvent,
    answer_content,
    answer_part,
    call_item,
    closing_fields,
    failure_error,
    lost_response,
    message_item,
    open_response,
    shown_item,
    spoken_content,
)
from .session_config import SessionConfig, apply_update, to_wire
from .wishes import to_wish


@dataclass(slots=True)
class _Answer:
    """The response that is open on the wire."""

    started: ResponseStarted
    response: dict[str, object]
    """As `response.created` showed it."""
    has_item: bool = False
    previous_item_id: ItemId | None = None


class Mapper:
    """One session's side of the wire.

    `events` must be given every notice, in order, and what it returns must be sent in order, `audio_delta` included:
    the ids count up and the order of one answer is kept only then.
    """

    def __init__(self, session_id: str, config: SessionConfig) -> None:
        self.session_id = session_id
        self.config = config
        """In force from the next event on; `input_format` and `output_format` are the session's to act on."""
        self._conversation_id = f"conv_{session_id}"
        self._event_count = 0
        self._answer: _Answer | None = None
        self._grown: tuple[ItemId | None, str] = (None, "")
        """The turn whose words were last shown while it was spoken, and those words."""

    def wish(self, request: Request) -> Wish:
        """What the client asks for as a fact; a `session.update` is merged into `config` at once.

        Raises: ProtocolError for what this server does not do; then nothing has changed.
        """
        if isinstance(request, SessionUpdate):
            self.config = apply_update(self.config, request)
            return SessionConfigured(self.config.settings, request.event_id)
        return to_wish(request, self.config)

    def session_created(self, resume: ServerEvent | None = None) -> ServerEvent:
        """`resume`: the token and its time, where the session can be resumed."""
        session = to_wire(self.config, self.session_id)
        return self._event("session.created", session=session, **({"resume": resume} if resume else {}))

    def session_draining(self, grace_s: float) -> ServerEvent:
        """An event of our own: only for clients that have asked for such, for some break at a type that they do not know."""
        return self._event("session.draining", session_id=self.session_id, grace_s=grace_s)

    def error(self, error: ProtocolError) -> ServerEvent:
        return self._error(error.code, error.message, error.param, error.event_id)

    def audio_delta(self, response_id: str, item_id: str, encoded: bytes) -> str:
        """The text frame of `response.output_audio.delta`; `encoded` in the session's output format.

        Must follow the first `TranscriptDelta` of the response, which opens the part that the audio belongs to.
        """
        return encode_audio_delta(self._next_id(), response_id, item_id, encoded)

    def events(self, notice: Notice) -> list[ServerEvent]:
        match notice:
            case SettingsChanged():
                self.config = replace(self.config, settings=notice.settings)
                return [self._event("session.updated", session=to_wire(self.config, self.session_id))]
            case ResponseStarted():
                return [self._response_created(notice)]
            case TranscriptDelta():
                return self._words(notice)
            case ResponseDone():
                return self._response_done(notice)
            case HistoryRestored() | ResponseLost():
                return [self._after_return(notice)]
            case Refused():
                return [self._error(notice.code, notice.message, notice.param, notice.event_id)]
            case SpeechStarted() | SpeechStopped() | TurnCommitted() | InputCleared():
                return self._input_events(notice)
            case TranscriptCompleted() | TranscriptFailed() | TranscriptGrown():
                return [*self._rest_of_the_words(notice), self._transcription(notice)]
            case ItemAdded() | ItemShown() | ItemRemoved() | ItemTruncated():
                return self._item_events(notice)
            case _:
                assert_never(notice)

    # --- the user's side ---

    def _input_events(
        self, notice: SpeechStarted | SpeechStopped | TurnCommitted | InputCleared
    ) -> list[ServerEvent]:
        match notice:
            case SpeechStarted(item_id, audio_start_ms):
                kind = "input_audio_buffer.speech_started"
                return [self._event(kind, item_id=item_id, audio_start_ms=audio_start_ms)]
            case SpeechStopped(item_id, audio_end_ms):
                kind = "input_audio_buffer.speech_stopped"
                return [self._event(kind, item_id=item_id, audio_end_ms=audio_end_ms)]
            case TurnCommitted(item_id, previous):
                item = message_item(item_id, "user", "completed", [spoken_content(None)])
                kind = "input_audio_buffer.committed"
                committed = self._event(kind, item_id=item_id, previous_item_id=previous)
                return [committed, *self._whole_item(item, previous)]
            case InputCleared():
                return [self._event("input_audio_buffer.cleared")]
            case _:
                assert_never(notice)

    def _rest_of_the_words(
        self, notice: TranscriptCompleted | TranscriptFailed | TranscriptGrown
    ) -> list[ServerEvent]:
        """In a transcription session the deltas add up to the transcript, unless it contradicts what was shown."""
        item_id, shown = self._grown
        shown = shown if item_id == notice.item_id else ""
        if isinstance(notice, TranscriptGrown):
            self._grown = notice.item_id, shown + notice.delta
            return []
        if self.config.kind == "realtime" or isinstance(notice, TranscriptFailed):
            return []
        rest = notice.text.removeprefix(shown)
        if not rest or not notice.text.startswith(shown):
            return []
        return [self._transcription(TranscriptGrown(notice.item_id, rest))]

    def _transcription(self, notice: TranscriptCompleted | TranscriptFailed | TranscriptGrown) -> ServerEvent:
        kind = "conversation.item.input_audio_transcription"
        item_id = notice.item_id
        if isinstance(notice, TranscriptGrown):
            return self._event(f"{kind}.delta", item_id=item_id, content_index=0, delta=notice.delta)
        if isinstance(notice, TranscriptFailed):
            error = {**failure_error(notice.failure), "param": None}
            return self._event(f"{kind}.failed", item_id=item_id, content_index=0, error=error)
        usage = {"type": "duration", "seconds": round(notice.audio_s, 3)}
        return self._event(
            f"{kind}.completed", item_id=item_id, content_index=0, transcript=notice.text, usage=usage
        )

    def _item_events(self, notice: ItemAdded | ItemShown | ItemRemoved | ItemTruncated) -> list[ServerEvent]:
        match notice:
            case ItemAdded(item, previous):
                return self._whole_item(shown_item(item), previous)
            case ItemShown(item):
                return [self._event("conversation.item.retrieved", item=shown_item(item))]
            case ItemRemoved(item_id):
                return [self._event("conversation.item.deleted", item_id=item_id)]
            case ItemTruncated(item_id, audio_end_ms):
                kind = "conversation.item.truncated"
                return [self._event(kind, item_id=item_id, content_index=0, audio_end_ms=audio_end_ms)]
            case _:
                assert_never(notice)

    def _whole_item(self, item: dict[str, object], previous: ItemId | None) -> list[ServerEvent]:
        return [
            self._event("conversation.item.added", previous_item_id=previous, item=item),
            self._event("conversation.item.done", previous_item_id=previous, item=item),
        ]

    # --- after a loss of the socket ---

    def _after_return(self, notice: HistoryRestored | ResponseLost) -> ServerEvent:
        if isinstance(notice, ResponseLost):
            response = lost_response(notice, self._conversation_id, self.config.output_format)
            return self._event("response.done", response=response)
        items = [shown_item(item) for item in notice.items]
        lost = list(notice.lost_items)
        return self._event("session.resumed", session_id=self.session_id, items=items, lost_items=lost)

    # --- the answer ---

    def _response_created(self, started: ResponseStarted) -> ServerEvent:
        assert self._answer is None, "one response at a time"
        response = open_response(started, self._conversation_id, self.config.output_format)
        self._answer = _Answer(started, response)
        return self._event("response.created", response=response)

    def _words(self, delta: TranscriptDelta) -> list[ServerEvent]:
        answer = self._open_answer(delta)
        opening = []
        if not answer.has_item:
            answer.has_item, answer.previous_item_id = True, delta.previous_item_id
            opening = self._item_opened(answer)
        modality = answer.started.modality
        kind = "output_audio_transcript" if modality == "audio" else "output_text"
        return [*opening, self._part_event(answer, f"response.{kind}.delta", delta=delta.text)]

    def _item_opened(self, answer: _Answer) -> list[ServerEvent]:
        started = answer.started
        item = message_item(started.item_id, "assistant", "in_progress", [])
        return [
            self._output_item_event(answer, "response.output_item.added", item),
            self._event("conversation.item.added", previous_item_id=answer.previous_item_id, item=item),
            self._part_event(answer, "response.content_part.added", part=answer_part(started.modality, "")),
        ]

    def _response_done(self, done: ResponseDone) -> list[ServerEvent]:
        answer = self._open_answer(done)
        self._answer = None
        events: list[ServerEvent] = []
        output: list[dict[str, object]] = []
        if answer.has_item:
            status: ItemStatus = "completed" if done.outcome == "completed" else "incomplete"
            content = answer_content(answer.started.modality, done.text)
            item = message_item(done.item_id, "assistant", status, [content])
            output = [item]
            events = self._item_closed(answer, done.text, item)
        for made in done.calls:
            events += self._call_made(answer, made, len(output))
            output.append(shown_item(made.item))
        response = answer.response | closing_fields(done, output)
        return [*events, self._event("response.done", response=response)]

    def _call_made(self, answer: _Answer, made: CallMade, output_index: int) -> list[ServerEvent]:
        call, item_id, previous = made.call, made.item.item_id, made.previous_item_id
        place: dict[str, object] = {
            "response_id": answer.started.response_id,
            "output_index": output_index,
        }
        named = place | {"item_id": item_id, "call_id": call.call_id}
        begun, whole = call_item(item_id, call, "in_progress"), shown_item(made.item)
        arguments = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", **place, item=begun),
            self._event("conversation.item.added", previous_item_id=previous, item=begun),
            self._event(f"{arguments}.delta", **named, delta=call.arguments),
            self._event(f"{arguments}.done", **named, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", **place, item=whole),
            self._event("conversation.item.done", previous_item_id=previous, item=whole),
        ]

    def _item_closed(self, answer: _Answer, text: str, item: dict[str, object]) -> list[ServerEvent]:
        modality = answer.started.modality
        if modality == "audio":
            streams = [
                self._part_event(answer, "response.output_audio.done"),
                self._part_event(answer, "response.output_audio_transcript.done", transcript=text),
            ]
        else:
            streams = [self._part_event(answer, "response.output_text.done", text=text)]
        return [
            *streams,
            self._part_event(answer, "response.content_part.done", part=answer_part(modality, text)),
            self._output_item_event(answer, "response.output_item.done", item),
            self._event("conversation.item.done", previous_item_id=answer.previous_item_id, item=item),
        ]

    def _open_answer(self, notice: TranscriptDelta | ResponseDone) -> _Answer:
        answer = self._answer
        assert answer is not None, "a response is open"
        started = answer.started
        assert (notice.response_id, notice.item_id) == (started.response_id, started.item_id), (
            "it is this one"
        )
        return answer

    # --- one event ---

    def _part_event(self, answer: _Answer, kind: str, **fields: object) -> ServerEvent:
        started = answer.started
        return self._event(
            kind,
            response_id=started.response_id,
            item_id=started.item_id,
            output_index=0,
            content_index=0,
            **fields,
        )

    def _output_item_event(self, answer: _Answer, kind: str, item: dict[str, object]) -> ServerEvent:
        return self._event(kind, response_id=answer.started.response_id, output_index=0, item=item)

    def _error(self, code: str, message: str, param: str | None, event_id: str | None) -> ServerEvent:
        error = {
            "type": "invalid_request_error",
            "code": code,
            "message": message,
            "param": param,
            "event_id": event_id,
        }
        return self._event("error", error=error)

    def _event(self, kind: str, **fields: object) -> ServerEvent:
        return {"type": kind, "event_id": self._next_id(), **fields}

    def _next_id(self) -> str:
        self._event_count += 1
        return f"event_{self._event_count}"
