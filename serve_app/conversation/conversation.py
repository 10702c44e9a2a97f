"""Who has the floor: every decision of a voice conversation, as a synchronous state machine.

Everything that affects the floor lives here and in the machines it owns: `Hearing` (the user's half), `Answering` (the
agent's half), `History`. No clock, no I/O, no tasks, no randomness: facts come in through `handle` with the time at
which they were learned, commands come out, and the same facts at the same times give the same commands, so a recorded
conversation can be replayed. `now` is in seconds of any clock that does not go back.

Theory of operation. `handle` lets the half that the fact is about take it in, then `_settle` lets everything go on
that now can: the turns heard, the next transcription, the next segment, the next chunk, the next answer. News of work
that is no longer wanted are dropped by their id inside the halves, so a cancelled engine is never waited for.

Rules that must survive edits:
- One answer at a time, and each ends in exactly one `ResponseDone`.
- An answer is owed (`_is_owed`) from the moment words of the user are known until an answer starts; it is owed again
  when an answer was cut of which nothing was heard. It is given as soon as no turn is open, none awaits its words, and
  no answer is under way. So a cough that cancels an answer does not swallow it, and nothing is answered twice.
- The language model reads ahead (`Prefill`) only while no answer is under way, drafted, owed or asked for: whatever it
  would read, that answer's prompt begins with.
- A wish of the client that cannot be granted is `Refused`, and nothing else changes.
"""

from typing import assert_never

from .answer import Order
from .answering import Answering
from .commands import (
    Command,
    HistoryRestored,
    Item,
    ItemAdded,
    ItemRemoved,
    ItemShown,
    Refused,
    SettingsChanged,
    TranscriptCompleted,
    TranscriptFailed,
)
from .events import (
    AudioCleared,
    AudioCommitted,
    AudioSent,
    CallGenerated,
    CancelRequested,
    Closed,
    Event,
    Fact,
    Failure,
    FrameScored,
    GenerationFailed,
    GenerationFinished,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ItemRetrieved,
    ResponseRequested,
    Returned,
    SessionConfigured,
    Settings,
    SpeechSynthesized,
    SynthesisFailed,
    SynthesisFinished,
    TokensGenerated,
    TranscriptFinished,
    TranscriptionFailed,
    TruncationRequested,
    TurnJudged,
    Wish,
)
from .hearing import Hearing, TurnHeard
from .history import ROOT, History
from .interruption import AgentState, InterruptionPolicy, Verdict
from .parameters import Counts, Ids, Parameters
from .snapshot import Snapshot
from .timeline import TurnTimeline
from .turn_taking import INPUT_RATE, UserState
from .warmth import Warmth


class Conversation:
    def __init__(
        self,
        parameters: Parameters,
        settings: Settings,
        *,
        name: str = "0",
        epoch: int = 0,
        snapshot: Snapshot | None = None,
    ) -> None:
        """`name` makes the ids of items and responses unique; it should name the session.

        With `snapshot` (of a conversation of this name, with its settings) it goes on where that one was; `Returned`
        must be the first thing it is told. `epoch` must be new then if the conversation may have gone on after it.
        """
        self._out: list[Command] = []
        self._emit = self._out.append  # no method: the parts must not know the whole
        self._settings = settings
        self._ids = Ids(name, epoch=epoch, counts=snapshot.counts if snapshot else Counts())
        self.history = History(snapshot.items, snapshot.history_version) if snapshot else History()
        self._hearing = Hearing(parameters, settings, self.history, self._ids, self._emit)
        self._answering = Answering(parameters, self.history, self._ids, self._emit)
        self._interruption = InterruptionPolicy(parameters.interruption_min_ms)
        self._drafts_per_turn = parameters.drafts_per_turn
        self._warmth = Warmth(parameters.prefill_after_s, self.history, self._emit)
        self._is_owed = False
        self._requested: ResponseRequested | None = None
        self._timeline = TurnTimeline()
        """Of the turn that the next answer will answer."""
        self._is_closed = False
        self._restored = snapshot
        """Until the client's return is known."""
        if snapshot is not None:
            self._is_owed = snapshot.is_owed
            self._answering.restore(snapshot.spoken, snapshot.response)

    # --- what it shows ----------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def user_state(self) -> UserState:
        return self._hearing.user_state

    @property
    def input_needed_from(self) -> int:
        """No `Transcribe` will ask for input before this sample."""
        return self._hearing.needed_from

    def is_at_rest(self, now: float) -> bool:
        """Nobody speaks and nothing is owed: a moment at which the session can move without anyone hearing it."""
        hearing = self._hearing
        is_open = self.user_state is not UserState.SILENT or hearing.has_turn or hearing.hears_something(now)
        return not is_open and self._requested is None and self.agent_state(now) is AgentState.IDLE

    @property
    def mark(self) -> object:
        """Differs from before when `snapshot` has come to hold something that is worth keeping."""
        hearing, history = self._hearing, self.history
        heard = hearing.open_turn_id, hearing.unheard, self._is_owed
        return (history.version, len(history), heard, self._answering.mark, self._settings)

    def snapshot(self) -> Snapshot:
        """From which another `Conversation` goes on; what is under way is in it as far as the client knows of it."""
        if self._restored is not None:
            return self._restored
        spoken, response = self._answering.snapshot()
        return Snapshot(
            settings=self._settings,
            items=self.history.items(),
            history_version=self.history.version,
            counts=self._ids.counts,
            is_owed=self._is_owed or self._requested is not None,
            spoken=spoken,
            response=response,
            open_turn=self._hearing.open_turn_id,
            unheard=self._hearing.unheard,
        )

    def agent_state(self, now: float) -> AgentState:
        if self._answering.is_audible(now):
            return AgentState.SPEAKING
        if self._answering.is_active or self._is_owed or self._hearing.is_awaiting_words:
            return AgentState.THINKING
        return AgentState.IDLE

    def deadline(self) -> float | None:
        """When `tick` must be called at the latest; None: not before the next fact."""
        if self._is_closed:
            return None
        first = self._answering.deadline
        for at in (self._hearing.deadline, self._warmth.deadline):
            if at is not None and (first is None or at < first):
                first = at
        return first

    # --- the two ways in --------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Command]:
        """What is to be done about `event`, in this order."""
        if self._is_closed:
            return []
        match event:
            case FrameScored():  # nearly all of them
                self._hear_frame(event, now)
            case (
                SessionConfigured()
                | AudioCommitted()
                | AudioCleared()
                | ItemCreated()
                | ItemDeleted()
                | ItemRetrieved()
                | TruncationRequested()
                | ResponseRequested()
                | CancelRequested()
                | Closed()
            ):
                self._grant(event, now)
            case Returned():
                self._go_on(event)
            case _:
                self._note(event, now)
        self._settle(now)
        return self._take()

    def tick(self, now: float) -> list[Command]:
        """What time alone brings. Calling it early or twice does nothing more. The first call of all starts the timers."""
        if self._is_closed:
            return []
        stall = self._hearing.deadline
        if stall is not None and now >= stall:
            self._hearing.insert_silence(now)
        self._settle(now)
        return self._take()

    def _take(self) -> list[Command]:
        out = self._out.copy()
        self._out.clear()
        return out

    # --- facts ------------------------------------------------------------------------------------------------------

    def _hear_frame(self, frame: FrameScored, now: float) -> None:
        self._hearing.push(frame.samples, frame.speech_probability, now)
        if self._hearing.wants_floor:
            verdict = self._interruption.judge(self._hearing.speech, self.agent_state(now))
            if verdict is Verdict.INTERRUPT:
                self._give_floor(now)

    def _give_floor(self, now: float) -> None:
        """The user's speech becomes a turn; an answer under way is cut to what was heard of it."""
        self._hearing.open_turn()
        vad = self._settings.turn_detection
        if vad is not None and vad.interrupt_response and self._answering.interrupt(now):
            self._is_owed |= vad.create_response and self.history.last_role() in ("user", "tool")

    def _note(self, fact: Fact, now: float) -> None:
        match fact:
            case FrameScored():
                self._hear_frame(fact, now)
            case TranscriptFinished() | TranscriptionFailed() | TurnJudged():
                self._note_of_a_turn(fact, now)
            case TokensGenerated() | CallGenerated() | GenerationFinished():
                self._note_generated(fact, now)
            case SpeechSynthesized():
                self._answering.speech_synthesized(fact, now)
            case SynthesisFinished(response_id, segment_id):
                self._answering.synthesis_finished(response_id, segment_id)
            case GenerationFailed(response_id, failure) | SynthesisFailed(response_id, _, failure):
                self._answering.failed(response_id, failure)
            case AudioSent(chunk_id):
                self._answering.audio_sent(chunk_id, now)
            case _:
                assert_never(fact)

    def _note_generated(self, fact: TokensGenerated | CallGenerated | GenerationFinished, now: float) -> None:
        match fact:
            case TokensGenerated():
                self._answering.tokens_generated(fact, now)
            case CallGenerated():
                self._answering.call_generated(fact, now)
            case GenerationFinished():
                self._answering.generation_finished(fact, now)
            case _:
                assert_never(fact)

    def _note_of_a_turn(
        self, fact: TranscriptFinished | TranscriptionFailed | TurnJudged, now: float
    ) -> None:
        match fact:
            case TranscriptFinished(transcription_id, text):
                self._hearing.transcript_finished(transcription_id, text, now)
            case TranscriptionFailed(transcription_id, failure):
                self._hearing.transcription_failed(transcription_id, failure, now)
            case TurnJudged(judgement_id, completeness):
                self._hearing.turn_judged(judgement_id, completeness)
            case _:
                assert_never(fact)

    # --- going on ---------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        for heard in self._hearing.take_heard():
            self._hear_words(heard)
        self._hearing.pump(now)
        self._answering.advance(now)
        if (self._is_owed or self._requested is not None) and self._may_answer():
            self._start_answer()
            self._answering.advance(now)
        self._keep_draft()
        self._keep_warm(now)

    def _keep_warm(self, now: float) -> None:
        for ended in self._answering.take_ended():
            self._warmth.answered(ended, self._settings)
        is_generating = self._answering.is_active or self._answering.has_draft
        is_about_to = self._is_owed or self._requested is not None or self._hearing.is_awaiting_words
        if is_generating or is_about_to:
            self._warmth.hold()
        else:
            self._warmth.advance(self._settings, now)

    def _keep_draft(self) -> None:
        """An answer is begun at a pause, in case it is the end of the turn, and dropped if it was not."""
        turn = self._hearing.paused_turn
        if turn is None:
            self._answering.drop_draft()
        elif not self._answering.has_draft and turn.drafts < self._drafts_per_turn and self._may_draft():
            turn.drafts += 1
            self._answering.draft(self._order(ResponseRequested(), and_then=turn.transcript or ""))
            self._warmth.read(self._settings)

    def _may_draft(self) -> bool:
        vad = self._settings.turn_detection
        is_answered = vad is not None and vad.create_response and self._settings.modality == "audio"
        is_busy = self._answering.is_active or self._hearing.is_awaiting_words or self._requested is not None
        return is_answered and not is_busy and not self._answering.has_draft_failed

    def _hear_words(self, heard: TurnHeard) -> None:
        turn, result = heard.turn, heard.result
        is_answered = (
            self._settings.turn_detection is not None and self._settings.turn_detection.create_response
        )
        if isinstance(result, Failure):
            self._emit(TranscriptFailed(turn.item_id, result))
            is_another_due = self._is_owed or self._requested is not None or self._answering.is_active
            if is_answered and not turn.is_excused and not is_another_due:
                self._answering.refuse(self._order(ResponseRequested()), result)
            return
        audio_s, latency_s = (turn.stop - turn.start) / INPUT_RATE, turn.timeline.transcript_s()
        self._emit(TranscriptCompleted(turn.item_id, result, audio_s, latency_s))
        if turn.item_id not in self.history:
            return
        if result or self._is_owed:
            self._timeline = turn.timeline
        if not result:
            self.history.remove(turn.item_id)
            self._emit(ItemRemoved(turn.item_id))
            return
        self.history.set_text(turn.item_id, result)
        self._is_owed |= is_answered and not turn.is_excused

    def _may_answer(self) -> bool:
        if self._answering.is_active or self._hearing.is_awaiting_words:
            return False
        return self._requested is not None or not self._hearing.has_turn

    def _start_answer(self) -> None:
        order = self._order(self._requested or ResponseRequested())
        self._is_owed, self._requested = False, None
        timeline, self._timeline = self._timeline, TurnTimeline()
        self._answering.start(order, timeline)

    def _order(self, wish: ResponseRequested, *, and_then: str = "") -> Order:
        settings = self._settings
        choice = wish.tool_choice or settings.tool_choice
        tools, must_call = choice.offered(settings.tools if wish.tools is None else wish.tools)
        return Order(
            messages=self.history.messages(wish.instructions or settings.instructions, and_then=and_then),
            modality=wish.modality or settings.modality,
            voice=wish.voice or settings.voice,
            speed=settings.speed,
            max_output_tokens=wish.max_output_tokens or settings.max_output_tokens,
            metadata=wish.metadata,
            tools=tools,
            must_call=must_call,
        )

    # --- wishes -----------------------------------------------------------------------------------------------------

    def _grant(self, wish: Wish, now: float) -> None:
        match wish:
            case SessionConfigured(settings):
                self._settings = settings
                self._hearing.configure(settings)
                self._answering.drop_draft()  # it was begun in another voice or format
                self._emit(SettingsChanged(settings))
            case AudioCommitted(event_id):
                self._hearing.commit(event_id, now)
            case AudioCleared():
                self._hearing.clear()
            case ItemCreated():
                self._create_item(wish)
            case ItemDeleted(item_id, event_id) | ItemRetrieved(item_id, event_id):
                self._find_item(wish, item_id, event_id)
            case TruncationRequested():
                self._answering.truncate(wish, now)
            case ResponseRequested():
                self._request(wish)
            case CancelRequested():
                self._cancel(wish)
            case Closed():
                self._hearing.close()
                self._answering.close()
                self._is_closed = True
            case _:
                assert_never(wish)

    def _go_on(self, returned: Returned) -> None:
        """The words of turns that were open are lost; an answer that was under way ends where its listener stopped."""
        snapshot, self._restored = self._restored, None
        if snapshot is None:
            return
        lost = [*snapshot.unheard, *([snapshot.open_turn] if snapshot.open_turn else [])]
        before = len(self._out)
        for item_id in snapshot.unheard:
            if item_id in self.history:
                self.history.remove(item_id)
                self._emit(ItemRemoved(item_id))
        is_unheard = self._answering.end_lost(returned)
        vad = self._settings.turn_detection
        is_answered = vad is not None and vad.create_response
        self._is_owed |= is_unheard and is_answered and self.history.last_role() == "user"
        # First of all, and yet with the history as all that leaves it.
        self._out.insert(before, HistoryRestored(self.history.items(), tuple(lost)))

    def _create_item(self, wish: ItemCreated) -> None:
        item = Item(
            wish.item_id or self._ids.item(),
            wish.role,
            wish.text.strip(),
            "text",
            call=wish.call,
            output_of=wish.output_of,
        )
        if wish.item_id is not None and self._is_taken(wish.item_id):
            self._emit(
                Refused("item_id_taken", f"the id {wish.item_id!r} is taken", "item.id", wish.event_id)
            )
        elif (refusal := self._refused_call(wish)) is not None:
            self._emit(refusal)
        elif wish.previous_item_id not in (None, ROOT) and wish.previous_item_id not in self.history:
            self._emit(_not_found(wish.previous_item_id, "previous_item_id", wish.event_id))
        else:
            previous = self.history.append(item, wish.previous_item_id)
            self._emit(ItemAdded(item, previous))

    def _refused_call(self, wish: ItemCreated) -> Refused | None:
        """Why the call, or the output of one, cannot be taken in."""
        output_of = wish.output_of
        if wish.call is not None and self.history.call(wish.call.call_id) is not None:
            code, message = "call_id_taken", f"the call {wish.call.call_id!r} is there already"
        elif output_of is not None and self.history.call(output_of) is None:
            code, message = "call_not_found", f"there is no call {output_of!r}"
        elif output_of is not None and self.history.has_output(output_of):
            code, message = "call_has_output", f"the call {output_of!r} has its output already"
        else:
            return None
        return Refused(code, message, "item.call_id", wish.event_id)

    def _is_taken(self, item_id: ItemId) -> bool:
        return item_id in self.history or item_id == ROOT or self._ids.is_reserved(item_id)

    def _find_item(self, wish: ItemDeleted | ItemRetrieved, item_id: ItemId, event_id: str | None) -> None:
        item = self.history.get(item_id)
        if item is None:
            self._emit(_not_found(item_id, "item_id", event_id))
        elif isinstance(wish, ItemDeleted):
            self.history.remove(item_id)
            self._emit(ItemRemoved(item_id))
        else:
            self._emit(ItemShown(item))

    def _request(self, wish: ResponseRequested) -> None:
        if self._answering.is_active or self._requested is not None:
            message = "a response is under way; cancel it or wait for response.done"
            self._emit(Refused("conversation_already_has_active_response", message, None, wish.event_id))
        else:
            self._requested = wish

    def _cancel(self, wish: CancelRequested) -> None:
        requested = self._requested
        if requested is None or wish.response_id is not None:
            self._answering.cancel_wish(wish.response_id, wish.event_id)
            return
        # It waits for words and has no id yet. Nothing is left to be answered of what it would have answered.
        self._answering.withdraw(self._order(requested))
        self._is_owed, self._requested = False, None
        self._hearing.excuse()


def _not_found(item_id: ItemId | None, param: str, event_id: str | None) -> Refused:
    return Refused("item_not_found", f"there is no item {item_id!r}", param, event_id)
