"""What holds in every conversation, whatever the user, the client and the engines do.

A `Referee` watches every command against the rules and against its own account of what was heard; it knows nothing of
how the conversation keeps them. The examples are the same in every run; FUZZ_EXAMPLES=1000 draws that many new ones.
"""

import os
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import ClassVar

from conversation.script import CHUNK_S, LEAD_S, REPLY, Delays, World
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from serve_app.conversation.commands import (
    CallMade,
    CancelTranscription,
    CancelWork,
    Command,
    Generate,
    InputCleared,
    InsertSilence,
    ItemTruncated,
    Play,
    Prefill,
    Refused,
    ResponseDone,
    ResponseStarted,
    SettingsChanged,
    SpeechStarted,
    SpeechStopped,
    Synthesize,
    Transcribe,
    TranscriptCompleted,
    TranscriptDelta,
    TranscriptFailed,
    TranscriptGrown,
    TurnCommitted,
)
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import (
    AudioCleared,
    AudioCommitted,
    AudioSent,
    CallGenerated,
    CallId,
    CancelRequested,
    ChunkId,
    Closed,
    Event,
    Failure,
    GenerationFailed,
    GenerationFinished,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ItemRetrieved,
    JudgementId,
    ResponseId,
    ResponseRequested,
    SegmentId,
    ServerVad,
    SessionConfigured,
    Settings,
    SpeechSynthesized,
    SynthesisFailed,
    SynthesisFinished,
    TokensGenerated,
    Tool,
    ToolChoice,
    TranscriptFinished,
    TranscriptionFailed,
    TranscriptionId,
    TruncationRequested,
    TurnJudged,
)
from serve_app.conversation.interruption import AgentState
from serve_app.conversation.parameters import Parameters
from serve_app.conversation.turn_taking import UserState

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SHORT = "Yes, of course I can."
REPLIES = [REPLY, REPLY, SHORT, "Yes.", "...", ""]
BROKEN = Failure("llm", "engine_failed", "broken")
EXACT_SHIFT_S = 4096.0
"""All times of a script are sums of powers of two, so this moves them without rounding."""


class Referee:
    def __init__(self, world: World) -> None:
        self.world = world
        self.reached: Counter[str] = Counter()
        self.open: ResponseStarted | None = None
        self.done: set[ResponseId] = set()
        self.spoken: set[ItemId] = set()
        """Items of spoken answers that have ended."""
        self.truncated_s: dict[ItemId, float] = {}
        self.is_unanswered = False
        """There are words of the user that the server is to answer, and it has not begun to."""
        self.is_requested = False
        self.made: list[CallMade] = []
        """Every call that was told."""
        self._previous: Command | None = None
        self._generations: Counter[ResponseId] = Counter()
        self._has_floor = False
        """The user is in a turn, by the notices alone."""
        self._turn_spans: dict[ItemId, tuple[int, int]] = {}
        """In samples; the end is 0 until the turn has one."""
        self._transcribed: set[str] = set()
        self._turn: ItemId | None = None
        """Of the newest speech."""
        self._interims: set[TranscriptionId] = set()
        self._grown: dict[ItemId, str] = {}
        """What was shown of a turn while it was spoken."""
        self._put_into_words: set[ItemId] = set()
        self.draft: Generate | None = None
        """An answer begun before the end of the turn, of which nobody but the engines knows."""
        self._draft_segments = 0
        self._drafts_of: Counter[ItemId | None] = Counter()
        self._dropped: set[ResponseId] = set()
        self._begun: set[ItemId] = set()
        """Items of the responses that the client was told of."""
        self._wordless: set[ItemId] = set()
        """Committed turns whose words are not known yet."""
        self._excused: set[ItemId] = set()
        """Those of them whose answer the client has cancelled."""
        self._last_prompt: Prefill | None = None
        """Of the model, if all it was asked since it read it is nothing."""

    def watch(self, command: Command) -> None:
        previous, self._previous = self._previous, command
        if isinstance(previous, TranscriptDelta) and self.open is not None and self.open.modality == "audio":
            assert isinstance(command, Play), "words come just before their sound"
        assert getattr(command, "response_id", None) not in self._dropped, "a wrong draft leaves no trace"
        match command:
            case Generate() | Synthesize() if self._is_of_a_draft(command):
                self._drafted(command)
            case CancelWork():
                self._cancelled(command)
            case TranscriptGrown():
                self._more_words(command)
            case ResponseStarted():
                self._started(command, previous)
            case Play() | Generate() | Synthesize() | TranscriptDelta():
                self._is_for_the_open_response(command)
            case Prefill():
                self._read_ahead(command)
            case ResponseDone():
                self._ended(command)
            case TranscriptCompleted():
                self._words_known(command)
            case _:
                self._note_reached(command)

    def _is_for_the_open_response(self, command: Play | Generate | Synthesize | TranscriptDelta) -> None:
        assert self.open is not None
        assert command.response_id == self.open.response_id, "nothing is done for a response that is over"
        if isinstance(command, Generate):
            self._is_well_formed(command)
        self._generations[command.response_id] += isinstance(command, Generate)
        assert self._generations[command.response_id] <= 2, "one retry"

    def _is_well_formed(self, command: Generate) -> None:
        """As servers and chat templates want it: each call is followed by its output, and no output comes alone."""
        assert not command.must_call or command.tools
        awaited: list[str] = []
        for message in command.messages:
            if message.role == "tool":
                assert message.output_of == awaited.pop(0), "another output than the call's"
            else:
                assert not awaited, "a call without its output"
                assert message.text or message.calls, "a message that says nothing"
                assert message.role == "assistant" or not message.calls
                awaited = [call.call_id for call in message.calls]
        assert not awaited, "a call without its output"

    def _is_of_a_draft(self, command: Generate | Synthesize) -> bool:
        return self.open is None or command.response_id != self.open.response_id

    def _drafted(self, command: Generate | Synthesize) -> None:
        if isinstance(command, Synthesize):
            assert self.draft is not None
            assert command.response_id == self.draft.response_id
            self._draft_segments += 1
            assert self._draft_segments == 1, "no more than its first segment is synthesised"
            return
        assert self.draft is None, "one draft at a time"
        assert self.open is None, "no draft beside a response"
        assert self._has_floor, "a draft is begun within a turn"
        assert self.world.user is UserState.PAUSING, "and at a pause"
        settings = self.world.conversation.settings
        assert settings.modality == "audio"
        assert settings.turn_detection is not None
        assert settings.turn_detection.create_response
        self._drafts_of[self._turn] += 1
        assert self._drafts_of[self._turn] <= self.world.parameters.drafts_per_turn
        self._generations[command.response_id] += 1
        self.draft, self._draft_segments = command, 0

    def _cancelled(self, command: CancelWork) -> None:
        is_draft = self.draft is not None and command.response_id == self.draft.response_id
        assert (command.wasted_tokens is not None) == is_draft
        if is_draft:
            self._dropped.add(command.response_id)
            self.draft = None
            self.reached["draft dropped"] += 1

    def _confirmed(self, started: ResponseStarted) -> None:
        assert self.draft is not None
        assert started.response_id == self.draft.response_id
        settings = self.world.conversation.settings
        asked = self.world.conversation.history.messages(settings.instructions)
        told, since = asked[: len(self.draft.messages)], asked[len(self.draft.messages) :]
        assert self.draft.messages == told, "it answers what was asked, all of it and nothing else"
        assert all(message.calls or message.output_of for message in since), "its own calls, if it has ended"
        assert not self._has_floor, "it is told of when the turn has ended"
        self.draft = None
        self.reached["draft confirmed"] += 1

    def _more_words(self, grown: TranscriptGrown) -> None:
        assert self._has_floor, "only of a turn under way"
        assert grown.item_id == self._turn
        assert grown.item_id not in self._put_into_words, "never after it was completed"
        assert grown.delta.strip()
        self._grown[grown.item_id] = self._grown.get(grown.item_id, "") + grown.delta
        self.reached["shown while spoken"] += 1

    def _read_ahead(self, prefill: Prefill) -> None:
        conversation = self.world.conversation
        assert self.open is None, "no answer has to share the model with it"
        assert not self.is_requested
        assert not self._wordless
        assert not self.is_unanswered or self._has_floor
        settings = conversation.settings
        assert prefill.messages == conversation.history.messages(settings.instructions)
        assert prefill.tools == settings.tool_choice.offered(settings.tools)[0]
        assert prefill != self._last_prompt, "nothing is read twice"
        self._last_prompt = prefill
        self.reached["read ahead"] += 1

    def cancels_request(self) -> None:
        """The client takes back what it asked for, before it was begun."""
        self.is_requested = self.is_unanswered = False
        self._excused |= self._wordless
        self.reached["withdrawn"] += 1

    def _words_known(self, completed: TranscriptCompleted) -> None:
        assert completed.item_id not in self._put_into_words, "once"
        self._put_into_words.add(completed.item_id)
        assert completed.text.startswith(self._grown.get(completed.item_id, "")), "what was shown stays"
        words = set(completed.text.split())
        assert not words & self._transcribed, "no word is taken twice"
        self._transcribed |= words
        start, stop = self._turn_spans.get(completed.item_id, (0, 0))
        assert words >= set(self.world.said_between(start, stop)), "no word of a turn is lost"
        vad = self.world.conversation.settings.turn_detection
        is_answered = vad is not None and vad.create_response and completed.item_id not in self._excused
        self._wordless.discard(completed.item_id)
        if completed.text and completed.item_id in self.world.conversation.history and is_answered:
            self.is_unanswered = True

    def _note_reached(self, command: Command) -> None:
        match command:
            case SpeechStarted(item_id, audio_start_ms):
                self._has_floor = True
                self._turn = item_id
                self._turn_spans[item_id] = (audio_start_ms + 1) * 16, 0
                is_tail = self.open is None and self.world.listener.plays_until > self.world.now
                self.reached["tail interrupted"] += is_tail
            case SpeechStopped(item_id, audio_end_ms):
                self._has_floor = False
                self._turn_spans[item_id] = self._turn_spans[item_id][0], audio_end_ms * 16
            case InputCleared():
                self._has_floor = False
            case SettingsChanged(settings):
                self._has_floor &= settings.turn_detection is not None
            case TranscriptFailed(item_id):
                self._wordless.discard(item_id)
                self._put_into_words.add(item_id)
            case TurnCommitted(item_id):
                self._wordless.add(item_id)
                self.reached["committed by the client"] += item_id not in self._turn_spans
            case Transcribe(transcription_id, is_interim=True):
                self._interims.add(transcription_id)
            case CancelTranscription(transcription_id):
                self.reached["speech resumed"] += transcription_id not in self._interims
            case InsertSilence():
                self.reached["input stalled"] += 1

    def _started(self, started: ResponseStarted, previous: Command | None) -> None:
        assert self.open is None, "one response at a time"
        assert started.response_id not in self.done
        if started.was_drafted:
            self._confirmed(started)
        assert self.draft is None, "a draft is confirmed or dropped before another answer begins"
        has_failed = isinstance(previous, TranscriptFailed)
        assert self.is_unanswered or self.is_requested or has_failed, "nothing unasked"
        assert self.is_requested or has_failed or not self._has_floor, "the user is not talked over"
        self.open = started
        self._begun.add(started.item_id)
        self._last_prompt = None
        self.is_unanswered = self.is_requested = False

    def _ended(self, done: ResponseDone) -> None:
        assert self.open is not None
        assert done.response_id == self.open.response_id, "each ends once"
        self.done.add(done.response_id)
        self.reached[done.outcome] += 1
        self.reached["apologised"] += done.outcome == "failed" and done.text.endswith("that went wrong.")
        self.reached["retried"] += self._generations[done.response_id] > 1 and done.outcome == "completed"
        is_audio = self.open.modality == "audio"
        self.open = None
        self._told(done)
        if is_audio:
            self.spoken.add(done.item_id)
        if done.outcome != "interrupted":
            assert done.heard is None
            return
        assert (done.heard is not None) == is_audio
        heard = self.heard(done.item_id) if is_audio else done.text.split()
        if is_audio:
            assert done.heard.text.split() == heard
        vad = self.world.conversation.settings.turn_detection
        assert vad.interrupt_response
        is_unanswered = self.world.conversation.history.last_role() in ("user", "tool")
        if not heard and vad.create_response and is_unanswered:
            self.is_unanswered = True
            self.reached["owed again"] += 1

    def _told(self, done: ResponseDone) -> None:
        """Calls are told at the end of an answer that was not cut, once each, and are in the history then."""
        if done.outcome not in ("completed", "incomplete"):
            assert done.calls == ()
        history = self.world.conversation.history
        for made in done.calls:
            assert history.get(made.item.item_id) == made.item
            assert made.call.call_id not in {before.call.call_id for before in self.made}
            self.made.append(made)
            self.reached["called"] += 1
            self.reached["called after words"] += bool(done.text)

    def heard(self, item_id: ItemId) -> list[str]:
        """The words of an answer as the listener heard them, or as the client said that it did."""
        listener = self.world.listener
        if item_id in self.truncated_s:
            return listener.words_until(item_id, self.truncated_s[item_id])
        return listener.words(item_id)

    def check(self) -> None:
        """What holds between any two steps."""
        world, conversation = self.world, self.world.conversation
        assert max(world.sent_ahead, default=0.0) <= LEAD_S + CHUNK_S
        if world.listener.plays_until > world.now:
            assert world.agent is AgentState.SPEAKING, "until the end of playout"
        for item in conversation.history.items():
            is_said = item.role == "assistant" and item.modality == "audio"
            assert not is_said or item.item_id in self._begun, "nothing of a draft is in the history"
            if item.item_id in self.spoken:
                assert item.text.split() == self.heard(item.item_id)
                assert item.status != "in_progress"
        if self.draft is not None:
            assert self._has_floor, "a draft does not outlive its turn"
            assert world.user is UserState.PAUSING, "nor its pause"
        if self.open is not None:
            assert world.agent is not AgentState.IDLE
        deadline = conversation.deadline()
        assert deadline is None or deadline > world.now, "all that was due has been done"


class Talk(RuleBasedStateMachine):
    reached: ClassVar[Counter[str]] = Counter()

    @initialize(
        at_pause=st.booleans(),
        prefill_after_s=st.sampled_from([0.0, 1 / 8, 1 / 8]),
        apology=st.sampled_from(["", "Oh dear, that went wrong."]),
        socket_s=st.sampled_from([0.0, 0.0, 1 / 16, 1 / 2]),
        stt_s=st.sampled_from([0.0, 1 / 8, 1.0]),
        first_token_s=st.sampled_from([0.0, 1 / 8, 1.0]),
        first_audio_s=st.sampled_from([0.0, 1 / 8]),
        chunk_gap_s=st.sampled_from([0.0, 1 / 64, 1 / 8]),
        drafts=st.sampled_from([0, 1, 3]),
        interim_s=st.sampled_from([0.0, 0.25, 0.5]),
        opinion=st.sampled_from([None, 0.0, 1.0]),
    )
    def begin(
        self,
        at_pause: bool,
        apology: str,
        prefill_after_s: float,
        drafts: int,
        interim_s: float,
        opinion: float | None,
        **delays: float,
    ) -> None:
        parameters = Parameters(
            playout_lead_s=LEAD_S,
            max_turn_s=4.0,
            transcribe_at_pause=at_pause,
            drafts_per_turn=drafts,
            interim_s=interim_s,
            apology=apology,
            judges_turns=opinion is not None,
            prefill_after_s=prefill_after_s,
        )
        self.world = World(
            parameters=parameters,
            settings=Settings(instructions="Be brief.", tools=(Tool("f"), Tool("g"))),
            delays=Delays(token_gap_s=1 / 64, **delays),
        )
        self.world.opinion = opinion
        self.referee = Referee(self.world)
        self.world.on_command = self.referee.watch
        self.world.tick()  # as a session does when it starts
        self.words = (f"w{i}" for i in count(1))
        Talk.reached["conversations"] += 1

    # --- the user ---

    @rule(frames=st.sampled_from([1, 2, 3, 4, 8, 20, 150]), words=st.integers(0, 3))
    def the_user_speaks(self, frames: int, words: int) -> None:
        self.world.speaks(frames / 32, " ".join(next(self.words) for _ in range(words)))

    @rule(frames=st.integers(1, 14))
    def the_user_hesitates(self, frames: int) -> None:
        self.world.speaks(1 / 4, next(self.words))
        self.world.is_silent(frames / 32)
        self.world.speaks(1 / 4, next(self.words))

    @rule(frames=st.sampled_from([1, 4, 10, 20, 64]))
    def the_user_is_silent(self, frames: int) -> None:
        self.world.is_silent(frames / 32)

    @rule(seconds=st.sampled_from([1 / 16, 1.5, 4.0]))
    def the_microphone_gives_nothing(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(frames=st.sampled_from([0, 0, 10, 60]), reply=st.sampled_from([REPLY, SHORT]))
    def an_answer_is_brought_about(self, frames: int, reply: str) -> None:
        """The express way to where the deep states begin."""
        self.world.reply = reply
        self.world.speaks(1 / 2, next(self.words))
        for _ in range(96):
            if self.referee.open is not None:
                break
            self.world.is_silent(1 / 32)
        if frames:
            self.world.is_silent(frames / 32)

    @precondition(lambda self: self.world.agent is AgentState.SPEAKING)
    @rule(
        frames=st.integers(0, 20),
        has_words=st.booleans(),
        is_tail=st.sampled_from([True, False, True]),
        audio_end_ms=st.sampled_from([None, None, 0, 500, 99_000, 99_000]),
    )
    def the_user_barges_in(
        self, frames: int, has_words: bool, is_tail: bool, audio_end_ms: int | None
    ) -> None:
        """And the client may say where it stopped."""
        if is_tail:
            for _ in range(400):
                if self.referee.open is None:
                    break
                self.world.is_silent(1 / 32)
        elif frames:
            self.world.is_silent(frames / 32)
        self.world.speaks(1 / 4, next(self.words) if has_words else "")
        if audio_end_ms is not None:
            self._truncate(self.world.last(ResponseStarted).item_id, audio_end_ms)

    # --- the engines ---

    @rule(
        reply=st.sampled_from(REPLIES),
        finish_reason=st.sampled_from(["stop", "stop", "length"]),
        calls=st.sampled_from([(), (), ("f",), ("f", "g")]),
    )
    def the_model_will_say(self, reply: str, finish_reason: str, calls: tuple[str, ...]) -> None:
        self.world.reply, self.world.finish_reason, self.world.calls = reply, finish_reason, calls

    @rule(
        stage=st.sampled_from(["stt", "llm", "tts"]),
        times=st.integers(1, 2),
        is_final=st.booleans(),
        is_asked=st.booleans(),
    )
    def a_stage_will_fail(self, stage: str, times: int, is_final: bool, is_asked: bool) -> None:
        self.world.failing[stage] = times
        self.world.is_failure_retryable = not is_final
        if is_asked:
            self.an_answer_is_brought_about(150, SHORT)

    # --- the client ---

    @rule(
        output=st.sampled_from(["done", ""]),
        place=st.sampled_from(["end", "root"]),
        asks=st.booleans(),
        is_wrong=st.booleans(),
    )
    def the_client_gives_an_output(self, output: str, place: str, asks: bool, is_wrong: bool) -> None:
        history = self.world.conversation.history
        ids = [made.call.call_id for made in self.referee.made]
        call_id = CallId("unknown") if is_wrong or not ids else ids[-1]
        is_welcome = history.call(call_id) is not None and not history.has_output(call_id)
        before = ItemId("root") if place == "root" else None
        told = self.world.tell(ItemCreated("tool", output, None, before, output_of=call_id))
        assert any(isinstance(command, Refused) for command in told) != is_welcome
        self.referee.reached["output given"] += is_welcome
        if asks and is_welcome:
            self.the_client_asks_for_a_response(None)

    @rule(takes_request_back=st.booleans())
    def the_client_commits(self, takes_request_back: bool) -> None:
        """And may ask for an answer and take that back while it waits for words."""
        if takes_request_back:
            self.world.speaks(1 / 2, next(self.words))
        self.world.tell(AudioCommitted())
        if takes_request_back and self.referee.open is None:
            self.the_client_asks_for_a_response(None)
            if self.referee.open is None and self.referee.is_requested:
                self._cancel_request()

    @rule()
    def the_client_clears_its_audio(self) -> None:
        self.world.tell(AudioCleared())

    @rule(modality=st.sampled_from([None, "text", "audio"]))
    def the_client_asks_for_a_response(self, modality: str | None) -> None:
        # A granted request may open its response within the same step.
        was_requested, self.referee.is_requested = self.referee.is_requested, True
        commands = self.world.tell(ResponseRequested(modality=modality))
        if any(isinstance(command, Refused) for command in commands):
            self.referee.is_requested = was_requested

    @rule(data=st.data())
    def the_client_cancels(self, data: st.DataObject) -> None:
        current = [self.referee.open.response_id] if self.referee.open else []
        ids = [None, *current, *sorted(self.referee.done)[-2:], ResponseId("resp_0_999")]
        response_id = data.draw(st.sampled_from(ids))
        was_open = self.referee.open
        if self.referee.is_requested and was_open is None and response_id is None:
            self._cancel_request()
            return
        self.world.tell(CancelRequested(response_id))
        is_granted = was_open is not None and response_id in (None, was_open.response_id)
        assert self.world.all(Refused) or is_granted
        if is_granted:
            assert was_open.response_id in self.referee.done

    def _cancel_request(self) -> None:
        self.referee.cancels_request()
        self.referee.is_requested = True  # for the response that is opened to be cancelled
        commands = self.world.tell(CancelRequested())
        ends = [c for c in commands if isinstance(c, ResponseStarted | ResponseDone)]
        assert [type(c) for c in ends] == [ResponseStarted, ResponseDone]

    @rule(data=st.data(), audio_end_ms=st.sampled_from([-1, 0, 100, 250, 700, 1000, 2000, 99_000]))
    def the_client_truncates(self, data: st.DataObject, audio_end_ms: int) -> None:
        item_id = data.draw(self._item_ids())
        if audio_end_ms < 0:
            (refusal,) = self.world.tell(TruncationRequested(item_id, audio_end_ms))
            assert isinstance(refusal, Refused)
        else:
            self._truncate(item_id, audio_end_ms)

    def _truncate(self, item_id: ItemId, audio_end_ms: int) -> None:
        before = self.world.conversation.history.get(item_id)
        (answer,) = [
            c for c in self.world.truncates(item_id, audio_end_ms) if isinstance(c, ItemTruncated | Refused)
        ]
        if isinstance(answer, Refused):
            return
        assert answer.audio_end_ms <= audio_end_ms
        sent = [sound for sound in self.world.listener.received if sound.item_id == item_id]
        assert answer.audio_end_ms == min(audio_end_ms, round(len(sent) * CHUNK_S * 1000))
        self.referee.truncated_s[item_id] = (answer.audio_end_ms + 0.5) / 1000
        words = len(self.referee.heard(item_id)) - len(before.text.split())
        if before.status != "in_progress":
            self.referee.reached["truncated up"] += words > 0
            self.referee.reached["truncated down"] += words < 0

    @rule(data=st.data(), role=st.sampled_from(["user", "system", "assistant"]), own_id=st.booleans())
    def the_client_creates_an_item(self, data: st.DataObject, role: str, own_id: bool) -> None:
        item_id = data.draw(self._item_ids()) if own_id else None
        self.world.tell(ItemCreated(role, next(self.words), item_id, data.draw(st.none() | self._item_ids())))

    @rule(data=st.data())
    def the_client_asks_for_an_item(self, data: st.DataObject) -> None:
        self.world.tell(ItemRetrieved(data.draw(self._item_ids())))

    @rule(data=st.data())
    def the_client_deletes_an_item(self, data: st.DataObject) -> None:
        self.world.tell(ItemDeleted(data.draw(self._item_ids())))

    @rule(
        vad=st.sampled_from(
            [
                ServerVad(),
                ServerVad(),
                ServerVad(interrupt_response=False),
                ServerVad(create_response=False),
                ServerVad(eagerness="high"),
                ServerVad(silence_duration_ms=200, prefix_padding_ms=0),
                None,
            ]
        ),
        modality=st.sampled_from(["audio", "audio", "text"]),
        instructions=st.sampled_from(["Be brief.", "Be brief.", "Be long.", ""]),
        choice=st.sampled_from(
            [
                ToolChoice(),
                ToolChoice("none"),
                ToolChoice("required"),
                ToolChoice(function="f"),
                ToolChoice(function="h"),
            ]
        ),
    )
    def the_client_configures_the_session(
        self, vad: ServerVad | None, modality: str, instructions: str, choice: ToolChoice
    ) -> None:
        changed = replace(
            self.world.conversation.settings,
            turn_detection=vad,
            modality=modality,
            instructions=instructions,
            tool_choice=choice,
        )
        self.world.tell(SessionConfigured(changed))

    def _item_ids(self) -> st.SearchStrategy[ItemId]:
        """Of the history, of those that once were or are about to be, of nothing."""
        current = [item.item_id for item in self.world.conversation.history.items()][-3:]
        known = [started.item_id for started in self.world.all(ResponseStarted)][-2:]
        opened = [started.item_id for started in self.world.all(SpeechStarted)][-1:]
        return st.sampled_from([*reversed(current), *known, *opened, ItemId("item_0_999"), ItemId("mine")])

    # --- news that must change nothing ---

    @precondition(lambda self: self.world.stale)
    @rule()
    def late_news_come(self) -> None:
        event = self.world.stale.popleft()
        is_current = (
            self.referee.open is not None
            and getattr(event, "response_id", None) == self.referee.open.response_id
        )
        if not is_current:  # a session never delivers news of a try that it has cancelled
            self.referee.reached["late news"] += 1
            self._changes_nothing(event)

    @rule(
        event=st.sampled_from(
            [
                TranscriptFinished(TranscriptionId(999), "ghost"),
                TranscriptionFailed(TranscriptionId(999), BROKEN),
                TurnJudged(JudgementId(999), 1.0),
                TokensGenerated(ResponseId("resp_0_999"), "ghost"),
                CallGenerated(ResponseId("resp_0_999"), None, "f", "{}"),
                GenerationFinished(ResponseId("resp_0_999"), "stop", None),
                GenerationFailed(ResponseId("resp_0_999"), BROKEN),
                SpeechSynthesized(ResponseId("resp_0_999"), SegmentId(1), ChunkId(99_999), 1.0),
                SynthesisFinished(ResponseId("resp_0_999"), SegmentId(1)),
                SynthesisFailed(ResponseId("resp_0_999"), SegmentId(1), BROKEN),
                AudioSent(ChunkId(99_999)),
            ]
        )
    )
    def news_of_the_unborn_come(self, event: Event) -> None:
        self._changes_nothing(event)

    def _changes_nothing(self, event: Event) -> None:
        before = self._seen()
        assert self.world.tell(event) == []
        assert self._seen() == before

    @rule()
    def the_timer_rings_early(self) -> None:
        before = self._seen()
        assert self.world.tick() == []
        assert self._seen() == before

    def _seen(self) -> tuple[object, ...]:
        conversation = self.world.conversation
        history = conversation.history
        return (
            history.items(),
            history.version,
            conversation.deadline(),
            self.world.agent,
            conversation.user_state,
        )

    # --- what holds ---

    @invariant()
    def the_rules_are_kept(self) -> None:
        if hasattr(self, "referee"):
            self.referee.check()

    def teardown(self) -> None:
        if not hasattr(self, "referee"):
            return
        note(f"history: {self.world.history()}")
        self._everything_comes_to_rest()
        self.world.tell(Closed())
        assert self.world.conversation.deadline() is None
        for shift_s in (0.0, EXACT_SHIFT_S):
            self._is_replayed(shift_s)
        Talk.reached += self.referee.reached

    def _everything_comes_to_rest(self) -> None:
        """Whatever came before: once the user is silent and the engines work, all that is owed is given."""
        self.world.failing.clear()
        self.world.reply, self.world.calls = SHORT, ()
        self.world.is_silent(1.0)
        self.world.until(lambda: self.world.agent is AgentState.IDLE, within_s=60.0)
        self.world.wait(2.0)
        self.referee.check()
        assert self.referee.open is None
        assert self.referee.draft is None
        assert not self.referee.is_unanswered, "an answer is owed"
        assert not self.referee.is_requested, "an answer was asked for"
        assert (
            len(self.world.all(ResponseStarted))
            == len(self.world.all(ResponseDone))
            == len(self.referee.done)
        )

    def _is_replayed(self, shift_s: float) -> None:
        again = Conversation(self.world.parameters, self.world.settings)
        for at, event, commands in self.world.facts:
            now = at + shift_s
            assert tuple(again.tick(now) if event is None else again.handle(event, now)) == commands


def test_the_rules_hold_in_every_conversation_and_the_deep_states_are_reached() -> None:
    Talk.reached.clear()
    run_state_machine_as_test(
        Talk,
        settings=settings(
            derandomize=not EXAMPLES,
            max_examples=EXAMPLES or 400,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    expected = [
        "completed",
        "interrupted",
        "client_cancelled",
        "incomplete",
        "failed",
        "tail interrupted",
        "owed again",
        "retried",
        "apologised",
        "truncated up",
        "truncated down",
        "committed by the client",
        "speech resumed",
        "input stalled",
        "late news",
        "called",
        "called after words",
        "output given",
        "draft confirmed",
        "draft dropped",
        "shown while spoken",
        "read ahead",
        "withdrawn",
    ]
    assert {name: Talk.reached[name] for name in expected if Talk.reached[name] < 2} == {}
