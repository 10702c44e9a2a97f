"""The agent's half: one answer at a time, from its start to its last chunk handed to the socket.

Decided here: which answer is under way, what is spoken next, and how it ends. Its words are the business of `Wording`:
they come in segments, which are synthesised one after the other, and their chunks are paced by `Playout`. An answer is
done when its last chunk was sent; its sound goes on for the lead, and an interruption in that time still cuts what was
heard (`interrupt`, `Truncation`).

What the agent calls, it calls at the end: a call is told, and enters the history, together with `ResponseDone`, after
the last sound of the words before it was sent. So whoever says "no!" to "I cancel your order now" is in time: a call of
an answer that was cut or failed was never made. One that was told stays, whatever is cut of the words before it.

An answer that cannot be given ends in an apology, spoken after what there is of it, so that nobody waits in silence.

A draft is an answer begun at a pause of the user, before the turn has ended. It is no response: no event tells of it,
its first segment is synthesised and held. `start` goes on with it if it answers exactly what is now asked.
"""

from collections.abc import Callable

from .answer import Answer, Ended, Order
from .commands import CancelWork, Command, Heard, Outcome, Play, Refused, Synthesize
from .events import (
    CallGenerated,
    ChunkId,
    Failure,
    GenerationFinished,
    ResponseId,
    Returned,
    SegmentId,
    SpeechSynthesized,
    TokensGenerated,
    TruncationRequested,
)
from .history import History
from .parameters import Ids, Parameters
from .playout import Playout, Utterance
from .snapshot import OpenResponse, SpokenAnswer
from .timeline import TurnTimeline
from .truncation import Truncation
from .wording import Wording

NOTHING_SYNTHESIZED = Failure("tts", "engine_failed", "the voice gave no sound")
APOLOGIES = 2
"""A voice that has failed may fail its apology too: it is asked twice."""


class Answering:
    def __init__(
        self, parameters: Parameters, history: History, ids: Ids, emit: Callable[[Command], None]
    ) -> None:
        self._parameters = parameters
        self._ids = ids
        self._emit = emit
        self._playout = Playout(parameters.playout_lead_s)
        self._wording = Wording(history, ids, emit)
        self._truncation = Truncation(self._playout, history, parameters.playout_lead_s, emit)
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
        return spoken, answer.open_response() if answer else self._lost

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
        return self._truncation.end_lost(lost, returned)

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
        self._wording.ask(answer)

    def draft(self, order: Order) -> None:
        """Begin an answer that may come to nothing; the client does not learn of it."""
        self._draft = self._new(order, TurnTimeline())
        self._wording.ask(self._draft)

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
        self._emit(answer.started(was_drafted=was_drafted))

    def refuse(self, order: Order, failure: Failure) -> None:
        """An answer that fails before it begins, so that whoever waits for one is told."""
        answer = self._new(order, TurnTimeline())
        self._open(answer)
        self._apologize(answer, failure)

    def withdraw(self, order: Order) -> None:
        """An answer that the client cancels before it begins: it asked for one and is told how that ended."""
        self._open(self._new(order, TurnTimeline()))
        self.finish("client_cancelled")

    def _current(self, response_id: ResponseId) -> Answer | None:
        """The one place where news of an answer that is no longer wanted are dropped."""
        for answer in (self._answer, self._draft):
            if answer is not None and answer.response_id == response_id:
                return answer
        return None

    def tokens_generated(self, event: TokensGenerated, now: float) -> None:
        answer = self._current(event.response_id)
        if answer is not None:
            self._wording.take_tokens(answer, event, now)

    def call_generated(self, event: CallGenerated, now: float) -> None:
        answer = self._current(event.response_id)
        if answer is not None:
            self._wording.take_call(answer, event, now)

    def generation_finished(self, event: GenerationFinished, now: float) -> None:
        answer = self._current(event.response_id)
        failure = self._wording.take_end(answer, event, now) if answer else None
        if failure is not None:
            self.failed(event.response_id, failure)

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
                answer.break_off()
                self._apologize(answer, answer.apology_for)
            return
        if answer.has_failed or answer.shown or not failure.retryable:
            self._give_up(answer, failure)
            return
        self._emit(CancelWork(response_id))
        self._playout.drop(answer.utterance)
        self._answer = answer.begun_anew()
        self._wording.ask(self._answer)

    def _give_up(self, answer: Answer, failure: Failure) -> None:
        if failure.stage != "tts":
            self._apologize(answer, failure)
        elif answer.has_failed or not failure.retryable:  # there is no voice to apologise with
            self.finish("failed", failure=failure)
        else:
            answer.break_off()
            self._apologize(answer, failure)

    def _apologize(self, answer: Answer, failure: Failure) -> None:
        """What was made of the answer is played, then the user is told that it went wrong, and it ends as failed."""
        text = self._parameters.apology
        if not text or answer.order.modality == "text" or answer.apologies == APOLOGIES:
            self.finish("failed", failure=failure)
            return
        answer.end_in_apology(failure, self._ids.segment(), text)

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
                self._wording.show(answer, segment.text)
            self._emit(Play(answer.response_id, answer.item_id, chunk.chunk_id))
        if answer is not None and answer.is_made and self._playout.is_empty(answer.utterance):
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

    def audio_sent(self, chunk_id: ChunkId, now: float) -> None:
        chunk = self._playout.sent(chunk_id, now)
        if chunk is not None and self._answer is not None:
            self._answer.timeline.mark("first_sent", now)

    # --- ends -------------------------------------------------------------------------------------------------------

    def interrupt(self, now: float) -> bool:
        """The user takes the floor. Returns whether an answer was cut of which no word had been heard."""
        answer = self._answer
        self._truncation.cut_playing(now, answer.utterance if answer else None)
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
        is_whole = outcome in ("completed", "incomplete")
        if not is_whole:
            self._emit(CancelWork(answer.response_id))
            self._playout.drop(answer.utterance)
        self._wording.keep(answer, "completed" if outcome == "completed" else "incomplete")
        calls = self._wording.make_calls(answer) if is_whole else ()
        self._emit(answer.done(outcome, heard, failure, calls))

    def truncate(self, event: TruncationRequested, now: float) -> None:
        """The client's own word on what was heard, up or down from the server's estimate, within what was sent."""
        utterance = self._truncation.truncate(event)
        if utterance is not None and self._answer is None:
            self._playout.fall_silent(utterance, now)

    def close(self) -> None:
        self.drop_draft()
        if self._answer is not None:
            self._emit(CancelWork(self._answer.response_id))
            self._answer = None
