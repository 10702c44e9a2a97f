"""The agent's half: one answer at a time, from its first token to its last chunk handed to the socket.

Tokens are cut into segments, segments are synthesised one after the other, their chunks are paced by `Playout`. The
words of a segment are shown with its first sound, never before. An answer is done when its last chunk was sent; its
sound goes on for the lead, and an interruption in that time still cuts what was heard (`interrupt`).

What the agent calls, it calls at the end: a call is told, and enters the history, together with `ResponseDone`, after
the last sound of the words before it was sent. So whoever says "no!" to "I cancel your order now" is in time: a call of
an answer that was cut or failed was never made. One that was told stays, whatever is cut of the words before it.

An answer that cannot be given ends in an apology, spoken after what there is of it, so that nobody waits in silence.

A draft is an answer begun at a pause of the user, before the turn has ended. It is no response: no event tells of it,
its first segment is synthesised and held. `start` goes on with it if it answers exactly what is now asked.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from .commands import (
    CallMade,
    CancelWork,
    Command,
    Generate,
    Heard,
    Item,
    ItemStatus,
    ItemTruncated,
    Message,
    Outcome,
    Play,
    Refused,
    ResponseDone,
    ResponseLost,
    ResponseStarted,
    Synthesize,
    TranscriptDelta,
)
from .events import (
    Call,
    CallGenerated,
    ChunkId,
    Failure,
    GenerationFinished,
    ItemId,
    Modality,
    ResponseId,
    Returned,
    SegmentId,
    SpeechSynthesized,
    Tool,
    TruncationRequested,
    Usage,
)
from .history import History
from .parameters import Ids, Parameters
from .playout import Playout, Segment, Utterance
from .segmentation import SpeechSegmenter
from .snapshot import OpenResponse, SpokenAnswer
from .timeline import TurnTimeline

NOTHING_GENERATED = Failure("llm", "engine_failed", "the language model gave no answer")
NOTHING_SYNTHESIZED = Failure("tts", "engine_failed", "the voice gave no sound")
APOLOGIES = 2
"""A voice that has failed may fail its apology too: it is asked twice."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an answer is to be, settled when it starts."""

    messages: tuple[Message, ...]
    modality: Modality
    voice: str
    speed: float
    max_output_tokens: int | None
    metadata: tuple[tuple[str, str], ...]
    tools: tuple[Tool, ...] = ()
    must_call: bool = False


@dataclass(slots=True)
class Answer:
    response_id: ResponseId
    item_id: ItemId
    order: Order
    timeline: TurnTimeline
    utterance: Utterance
    segmenter: SpeechSegmenter = field(default_factory=SpeechSegmenter)
    waiting: deque[tuple[SegmentId, str]] = field(default_factory=deque)
    synthesizing: tuple[SegmentId, str] | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """None while tokens are still to come."""
    usage: Usage = field(default_factory=Usage)
    held: list[tuple[Segment, ChunkId, float]] = field(default_factory=list)
    """Of a draft: sound that waits for the end of the turn."""
    shown: list[str] = field(default_factory=list)
    is_generated: bool = False
    """The language model was asked."""
    calls: list[CallGenerated] = field(default_factory=list)
    """What it calls, to be told at its end."""
    has_tokens: bool = False
    """Something was generated: words, or a call."""
    has_failed: bool = False
    """A stage has failed once and was tried again."""
    apology_for: Failure | None = None
    """What ended the answer; an apology is its last segment."""
    apologies: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer for which the language model was asked is over."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    outcome: Outcome


class Answering:
    def __init__(
        self, parameters: Parameters, history: History, ids: Ids, emit: Callable[[Command], None]
    ) -> None:
        self._parameters = parameters
        self._history = history
        self._ids = ids
        self._emit = emit
        self._playout = Playout(parameters.playout_lead_s)
        self._answer: Answer | None = None
        self._draft: Answer | None = None
        """An answer to words that may not be all: no wire event, no sound, the first segment at most."""
        self.has_draft_failed = False
        """Since the last answer: there, the stage gets its second chance, and the client is told."""
        self._ended: list[Ended] = []
        self._lost: OpenResponse | None = None
        """Under way when the conversation's last socket was lost."""

    # --- its lives --------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[tuple[SpokenAnswer, ...], OpenResponse | None]:
        answer, spoken = self._answer, tuple(map(SpokenAnswer.of, self._playout.sounded))
        if answer is None:
            return spoken, self._lost
        started = answer.response_id, answer.item_id, answer.order.modality, answer.order.metadata
        return spoken, OpenResponse(*started, "".join(answer.shown))

    @property
    def mark(self) -> object:
        """Differs when `snapshot` has come to hold noticeably more: another segment, or another second of sound."""
        answer, sounded = self._answer, self._playout.sounded
        sent_s = int(sounded[-1].sent_s) if sounded else 0
        return (answer.response_id, len(answer.shown), sent_s) if answer else (None, 0, 0)

    def restore(self, spoken: tuple[SpokenAnswer, ...], response: OpenResponse | None) -> None:
        self._playout.restore(answer.utterance() for answer in spoken)
        self._lost = response

    def end_lost(self, returned: Returned) -> bool:
        """Cut what was being played when the socket was lost. Returns whether an answer was lost of which nothing was heard."""
        lost, self._lost = self._lost, None
        heard = None
        sounded = self._playout.sounded
        for utterance in sounded:
            is_open = lost is not None and utterance.item_id == lost.item_id
            end_s = self._position_of(utterance, returned, is_last=utterance is sounded[-1])
            if is_open and utterance.cut_s is not None:  # the client has said where it stopped
                end_s = utterance.cut_s
            elif is_open and end_s is None:
                end_s = max(0.0, utterance.sent_s - self._parameters.playout_lead_s)
            if end_s is not None and (is_open or end_s < utterance.sent_s):
                self._history.set_text(utterance.item_id, utterance.cut_to(end_s), status="incomplete")
                self._emit(ItemTruncated(utterance.item_id, round(end_s * 1000)))
            if is_open:
                heard = utterance.heard(end_s or 0.0)
        if lost is None:
            return False
        if lost.text and (heard is None or lost.modality == "text"):  # no sound of it was sent
            said = lost.text.strip() if lost.modality == "text" else ""
            self._history.set_text(lost.item_id, said, status="incomplete")
        self._emit(
            ResponseLost(lost.response_id, lost.item_id, lost.modality, lost.text, heard, lost.metadata)
        )
        return not (lost.text if lost.modality == "text" else heard and heard.text)

    def _position_of(self, utterance: Utterance, returned: Returned, *, is_last: bool) -> float | None:
        """Where the client says that its playback of `utterance` had come to, within what it can have got."""
        is_meant = is_last if returned.item_id is None else utterance.item_id == returned.item_id
        if returned.audio_end_ms is None or not is_meant or utterance.cut_s is not None:
            return None
        return min(max(0, returned.audio_end_ms) / 1000, utterance.longest_s)

    # --- what it knows ----------------------------------------------------------------------------------------------

    @property
    def is_active(self) -> bool:
        """A response has been started and is not done."""
        return self._answer is not None

    def is_audible(self, now: float) -> bool:
        return self._playout.is_audible(now)

    @property
    def deadline(self) -> float | None:
        return self._playout.due()

    def take_ended(self) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    # --- an answer's course -----------------------------------------------------------------------------------------

    @property
    def has_draft(self) -> bool:
        return self._draft is not None

    def start(self, order: Order, timeline: TurnTimeline) -> None:
        """Begin the answer, or go on with the draft if it answers the same."""
        draft = self._draft
        if draft is not None and draft.order == order:
            self._confirm(draft, timeline)
            return
        self.drop_draft()
        answer = self._new(order, timeline)
        self._open(answer)
        self._generate(answer)

    def draft(self, order: Order) -> None:
        """Begin an answer that may come to nothing; the client does not learn of it."""
        self._draft = self._new(order, TurnTimeline())
        self._generate(self._draft)

    def drop_draft(self) -> None:
        draft, self._draft = self._draft, None
        if draft is not None:
            self._emit(CancelWork(draft.response_id, wasted_tokens=draft.usage.output_tokens))

    def _confirm(self, draft: Answer, timeline: TurnTimeline) -> None:
        """The turn has ended as the draft expected: what was done ahead costs nothing any more."""
        self._draft = None
        for cut, at in draft.timeline.cuts.items():
            timeline.mark(cut, at)
        draft.timeline = timeline
        self._open(draft, was_drafted=True)
        for segment, chunk_id, duration_s in draft.held:
            self._playout.push(draft.utterance, segment, chunk_id, duration_s)
        draft.held.clear()

    def _new(self, order: Order, timeline: TurnTimeline) -> Answer:
        response_id, item_id = self._ids.response(), self._ids.item()
        return Answer(response_id, item_id, order, timeline, Utterance(item_id, response_id))

    def _open(self, answer: Answer, *, was_drafted: bool = False) -> None:
        self._answer = answer
        self.has_draft_failed = False
        self._playout.admit(answer.utterance)
        order = answer.order
        self._emit(
            ResponseStarted(
                answer.response_id,
                answer.item_id,
                order.modality,
                order.metadata,
                order.voice,
                order.max_output_tokens,
                was_drafted,
            )
        )

    def refuse(self, order: Order, failure: Failure) -> None:
        """An answer that fails before it begins, so that whoever waits for one is told."""
        answer = self._new(order, TurnTimeline())
        self._open(answer)
        self._apologize(answer, failure)

    def withdraw(self, order: Order) -> None:
        """An answer that the client cancels before it begins: it asked for one and is told how that ended."""
        self._open(self._new(order, TurnTimeline()))
        self.finish("client_cancelled")

    def _generate(self, answer: Answer) -> None:
        answer.is_generated = True
        order = answer.order
        self._emit(
            Generate(
                answer.response_id, order.messages, order.max_output_tokens, order.tools, order.must_call
            )
        )

    def _current(self, response_id: ResponseId) -> Answer | None:
        """The one place where news of an answer that is no longer wanted are dropped."""
        for answer in (self._answer, self._draft):
            if answer is not None and answer.response_id == response_id:
                return answer
        return None

    def tokens_generated(self, response_id: ResponseId, text: str, now: float) -> None:
        answer = self._current(response_id)
        if answer is None or answer.finish_reason is not None:
            return
        answer.timeline.mark("first_token", now)
        answer.has_tokens |= bool(text.strip())
        answer.usage = Usage(answer.usage.input_tokens, answer.usage.output_tokens + 1)
        if answer.order.modality == "text":
            self._show(answer, text)
            for cut in ("first_segment", "first_audio", "first_sent"):
                answer.timeline.mark(cut, now)
        else:
            self._queue(answer, answer.segmenter.push(text), now)

    def call_generated(self, event: CallGenerated, now: float) -> None:
        answer = self._current(event.response_id)
        if answer is None or answer.finish_reason is not None or answer.apology_for is not None:
            return
        answer.timeline.mark("first_token", now)
        answer.has_tokens = True
        answer.calls.append(event)

    def generation_finished(self, event: GenerationFinished, now: float) -> None:
        answer = self._current(event.response_id)
        if answer is None or answer.apology_for is not None:
            return
        if (
            not answer.has_tokens and event.finish_reason == "stop"
        ):  # else the limit may have cut its only call
            self.failed(event.response_id, NOTHING_GENERATED)
            return
        answer.finish_reason = event.finish_reason
        answer.usage = event.usage or answer.usage
        if answer.order.modality == "audio":
            self._queue(answer, answer.segmenter.flush(), now)

    def _queue(self, answer: Answer, segments: list[str], now: float) -> None:
        for text in segments:
            answer.timeline.mark("first_segment", now)
            answer.waiting.append((self._ids.segment(), text))

    def speech_synthesized(self, event: SpeechSynthesized, now: float) -> None:
        answer = self._current(event.response_id)
        segment = answer.utterance.segment(event.segment_id) if answer else None
        if answer is None or segment is None:
            return
        answer.timeline.mark("first_audio", now)
        segment.words += event.words
        if answer is self._draft:
            answer.held.append((segment, event.chunk_id, event.duration_s))
        else:
            self._playout.push(answer.utterance, segment, event.chunk_id, event.duration_s)

    def synthesis_finished(self, response_id: ResponseId, segment_id: SegmentId) -> None:
        answer = self._current(response_id)
        segment = answer.utterance.segment(segment_id) if answer else None
        if answer is None or segment is None:
            return
        if segment.duration_s == 0.0 and not answer.held:
            self.failed(response_id, NOTHING_SYNTHESIZED)
            return
        segment.is_finished = True
        answer.synthesizing = None

    def failed(self, response_id: ResponseId, failure: Failure) -> None:
        """One more try if nothing of the answer has been shown; else the answer ends as failed, with an apology."""
        answer = self._current(response_id)
        if answer is None:
            return
        if answer is self._draft:
            self.drop_draft()
            self.has_draft_failed = True
            return
        if answer.apology_for is not None:
            if failure.stage == "tts":
                self._break_off(answer)
                self._apologize(answer, answer.apology_for)
            return
        if answer.has_failed or answer.shown or not failure.retryable:
            self._give_up(answer, failure)
            return
        self._emit(CancelWork(response_id))
        self._playout.drop(answer.utterance)
        answer.utterance.segments.clear()
        self._answer = Answer(
            response_id, answer.item_id, answer.order, answer.timeline, answer.utterance, has_failed=True
        )
        self._generate(self._answer)

    def _give_up(self, answer: Answer, failure: Failure) -> None:
        if failure.stage != "tts":
            self._apologize(answer, failure)
        elif answer.has_failed or not failure.retryable:  # there is no voice to apologise with
            self.finish("failed", failure=failure)
        else:
            self._break_off(answer)
            self._apologize(answer, failure)

    def _break_off(self, answer: Answer) -> None:
        """The voice has failed in the middle: what came of the segment is played, what should follow is not."""
        assert answer.synthesizing is not None
        answer.utterance.break_off(answer.synthesizing[0])
        answer.synthesizing = None
        answer.waiting.clear()

    def _apologize(self, answer: Answer, failure: Failure) -> None:
        """What was made of the answer is played, then the user is told that it went wrong, and it ends as failed."""
        text = self._parameters.apology
        if not text or answer.order.modality == "text" or answer.apologies == APOLOGIES:
            self.finish("failed", failure=failure)
            return
        answer.apologies += 1
        answer.apology_for, answer.finish_reason = failure, "stop"
        if not answer.shown:
            answer.timeline = TurnTimeline()  # how long an apology took is no latency of an answer
        follows = bool(answer.utterance.segments or answer.waiting)
        answer.waiting.append((self._ids.segment(), f" {text}" if follows else text))

    # --- playing ----------------------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Whatever can go on: the next segment to the voice, the next chunk to the socket, the end of the answer."""
        if self._draft is not None and not self._draft.utterance.segments:
            self._synthesize_next(self._draft)
        answer = self._answer
        if answer is not None:
            self._synthesize_next(answer)
        chunk = self._playout.pop(now)
        if chunk is not None and answer is not None:
            if chunk.is_first_of_segment:
                segment = chunk.utterance.segment(chunk.segment_id)
                assert segment is not None
                self._show(answer, segment.text)
            self._emit(Play(answer.response_id, answer.item_id, chunk.chunk_id))
        if answer is not None and self._is_complete(answer):
            if answer.apology_for is not None:
                self.finish("failed", failure=answer.apology_for)
                return
            self.finish("incomplete" if answer.finish_reason == "length" else "completed")

    def _synthesize_next(self, answer: Answer) -> None:
        if answer.synthesizing is not None or not answer.waiting:
            return
        if self._playout.unsent_s(answer.utterance) > self._parameters.synthesis_ahead_s:
            return
        answer.synthesizing = segment_id, text = answer.waiting.popleft()
        answer.utterance.add_segment(segment_id, text)
        self._emit(Synthesize(answer.response_id, segment_id, text, answer.order.voice, answer.order.speed))

    def _is_complete(self, answer: Answer) -> bool:
        return (
            answer.finish_reason is not None
            and answer.synthesizing is None
            and not answer.waiting
            and self._playout.is_empty(answer.utterance)
        )

    def audio_sent(self, chunk_id: ChunkId, now: float) -> None:
        chunk = self._playout.sent(chunk_id, now)
        if chunk is not None and self._answer is not None:
            self._answer.timeline.mark("first_sent", now)

    def _show(self, answer: Answer, text: str) -> None:
        previous = None
        if not answer.shown:
            item = Item(answer.item_id, "assistant", "", answer.order.modality, "in_progress")
            previous = self._history.append(item)
        answer.shown.append(text)
        self._emit(TranscriptDelta(answer.response_id, answer.item_id, text, previous))

    # --- ends -------------------------------------------------------------------------------------------------------

    def interrupt(self, now: float) -> bool:
        """The user takes the floor. Returns whether an answer was cut of which no word had been heard."""
        answer = self._answer
        for cut, heard in self._playout.cut(now):
            self._history.set_text(cut.item_id, heard.text, status="incomplete")
            if (answer is None or cut is not answer.utterance) and cut.item_id in self._history:
                self._emit(ItemTruncated(cut.item_id, heard.audio_ms))
        if answer is None:
            return False
        utterance = answer.utterance
        if utterance.cut_s is None:  # else the client has said where it stopped
            utterance.cut_s = utterance.played_s(now)
        heard = utterance.heard(utterance.cut_s)
        self.finish("interrupted", heard=heard if answer.order.modality == "audio" else None)
        return not heard.text

    def cancel(self) -> None:
        """The client wants no more of it; what was sent goes on sounding, unless the client truncates it too."""
        self.finish("client_cancelled")

    def cancel_wish(self, response_id: ResponseId | None, event_id: str | None) -> None:
        if self._answer is None or response_id not in (None, self._answer.response_id):
            self._emit(
                Refused(
                    "response_cancel_not_active",
                    "there is no such response under way",
                    "response_id",
                    event_id,
                )
            )
            return
        self.cancel()

    def finish(self, outcome: Outcome, *, heard: Heard | None = None, failure: Failure | None = None) -> None:
        answer = self._answer
        assert answer is not None
        self._answer = None
        if answer.is_generated:
            self._ended.append(Ended(answer.order.messages, answer.order.tools, outcome))
        if outcome not in ("completed", "incomplete"):
            self._emit(CancelWork(answer.response_id))
            self._playout.drop(answer.utterance)
        text = "".join(answer.shown)
        said = text.strip() if answer.order.modality == "text" else answer.utterance.sent_text()
        status: ItemStatus = "completed" if outcome == "completed" else "incomplete"
        if answer.shown:
            self._history.set_text(answer.item_id, said, status=status)
        is_whole = outcome in ("completed", "incomplete")
        calls = tuple(self._make(call) for call in answer.calls) if is_whole else ()
        self._emit(
            ResponseDone(
                answer.response_id,
                answer.item_id,
                outcome,
                text,
                heard,
                answer.usage,
                answer.timeline.latency(),
                failure,
                answer.order.metadata,
                calls,
            )
        )

    def _make(self, generated: CallGenerated) -> CallMade:
        """The engine's own id is kept where it can be: some models' templates want ids of their own shape."""
        call_id = generated.call_id
        if call_id is None or self._history.call(call_id) is not None:
            call_id = self._ids.call()
        call = Call(call_id, generated.name, generated.arguments)
        item = Item(self._ids.item(), "assistant", "", "text", call=call)
        return CallMade(item, call, self._history.append(item))

    def truncate(self, event: TruncationRequested, now: float) -> None:
        """The client's own word on what was heard, up or down from the server's estimate, within what was sent."""
        utterance = self._playout.utterance(event.item_id)
        item = self._history.get(event.item_id)
        if event.audio_end_ms < 0:
            refusal = "invalid_value", "audio_end_ms cannot be negative", "audio_end_ms"
        elif item is None:
            refusal = "item_not_found", f"there is no item {event.item_id!r}", "item_id"
        elif utterance is None or item.modality != "audio" or item.role != "assistant":
            refusal = "item_not_truncatable", "only the agent's last spoken item can be truncated", "item_id"
        else:
            self._cut_at(utterance, event.audio_end_ms, now)
            return
        self._emit(Refused(*refusal, event.event_id))

    def _cut_at(self, utterance: Utterance, end_ms: int, now: float) -> None:
        sent_ms = round(utterance.sent_s * 1000)
        end_ms = min(end_ms, sent_ms)
        utterance.cut_s = utterance.sent_s if end_ms == sent_ms else end_ms / 1000
        if self._answer is None:
            self._playout.fall_silent(utterance, now)
        self._history.set_text(utterance.item_id, utterance.sent_text(), status="incomplete")
        self._emit(ItemTruncated(utterance.item_id, end_ms))

    def close(self) -> None:
        self.drop_draft()
        if self._answer is not None:
            self._emit(CancelWork(self._answer.response_id))
            self._answer = None
