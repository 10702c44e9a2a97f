"""Whole conversations, as scripts."""

import pytest
from conversation.script import CHUNK_S, FRAME, FRAME_S, LEAD_S, REPLY, WORD_S, Delays, World

from serve_app.conversation.commands import (
    CancelTranscription,
    CancelWork,
    Generate,
    InputCleared,
    InsertSilence,
    ItemAdded,
    ItemRemoved,
    ItemShown,
    ItemTruncated,
    Message,
    Play,
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
    TurnCommitted,
)
from serve_app.conversation.events import (
    AudioCleared,
    AudioCommitted,
    AudioSent,
    CancelRequested,
    ChunkId,
    Closed,
    FrameScored,
    GenerationFailed,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ItemRetrieved,
    ResponseId,
    ResponseRequested,
    SegmentId,
    ServerVad,
    SessionConfigured,
    Settings,
    SynthesisFailed,
    TokensGenerated,
    TranscriptFinished,
    TranscriptionId,
    TruncationRequested,
)
from serve_app.conversation.events import Failure as StageFailure
from serve_app.conversation.interruption import AgentState
from serve_app.conversation.parameters import Parameters
from serve_app.conversation.turn_taking import UserState

SHORT = "Yes, of course I can."
COUGH_S = 1 / 16
BREATH_S = 1 / 4
INTERRUPTION_S = 1 / 4


def words(text: str) -> list[str]:
    return text.split()


# --- a turn and its answer ------------------------------------------------------------------------------------------


def test_a_spoken_turn_is_answered() -> None:
    world = World(reply=SHORT)
    world.asks("what can you do")
    world.until(lambda: world.agent is AgentState.IDLE)
    assert world.outcomes() == ["completed"]
    assert world.history() == [("user", "what can you do"), ("assistant", SHORT)]
    assert world.only(Generate).messages == (Message("user", "what can you do"),)
    assert world.played(world.only(ResponseStarted).item_id) == words(SHORT)


def test_the_notices_of_a_turn_come_in_the_order_that_clients_rely_on() -> None:
    world = World(reply=SHORT)
    world.asks()
    world.until(world.outcomes)
    notices = [
        type(command)
        for _, command in world.log
        if not isinstance(command, Transcribe | Generate | Synthesize | Play)
    ]
    assert notices == [
        SpeechStarted,
        SpeechStopped,
        TurnCommitted,
        TranscriptCompleted,
        ResponseStarted,
        TranscriptDelta,
        ResponseDone,
    ]


def test_the_states_of_both_sides_follow_the_turn() -> None:
    world = World()
    assert (world.conversation.user_state, world.agent) == (UserState.SILENT, AgentState.IDLE)
    world.speaks(0.5, "hello")
    assert world.conversation.user_state is UserState.SPEAKING
    world.is_silent(0.125)
    assert world.conversation.user_state is UserState.PAUSING
    world.until(lambda: world.all(ResponseStarted))
    assert (world.conversation.user_state, world.agent) == (UserState.SILENT, AgentState.THINKING)
    world.until(lambda: world.all(Play))
    assert world.agent is AgentState.SPEAKING


def test_no_words_are_shown_before_their_sound() -> None:
    world = World()
    world.asks()
    world.until(world.outcomes)
    commands = [command for _, command in world.log]
    deltas = [i for i, command in enumerate(commands) if isinstance(command, TranscriptDelta)]
    assert len(deltas) == len(world.all(Synthesize)) == 2
    assert all(isinstance(commands[i + 1], Play) for i in deltas)
    assert "".join(delta.text for delta in world.all(TranscriptDelta)) == REPLY


def test_the_response_is_opened_only_once_there_are_words_to_answer() -> None:
    world = World(delays=Delays(stt_s=1.0))
    world.speaks(0.5, "hello")
    world.until(lambda: world.all(TurnCommitted))
    assert world.agent is AgentState.THINKING
    assert not world.all(ResponseStarted)
    world.until(lambda: world.all(ResponseStarted))
    assert world.times(TranscriptCompleted) == world.times(ResponseStarted)


def test_nothing_comes_from_nothing() -> None:
    world = World()
    world.speaks(0.5, "")
    world.is_silent(3.0)
    assert world.only(TranscriptCompleted).text == ""
    assert world.only(ItemRemoved).item_id == world.only(TurnCommitted).item_id
    assert not world.all(ResponseStarted)
    assert world.history() == []


def test_a_pause_within_a_turn_is_not_its_end() -> None:
    world = World()
    world.speaks(0.5, "I would like")
    world.is_silent(3 / 8)
    world.speaks(0.5, "some tea")
    world.until(world.outcomes)
    assert world.only(TranscriptCompleted).text == "I would like some tea"
    assert len(world.all(Transcribe)) == 2


def test_resumed_speech_drops_the_early_transcript_even_when_it_is_late() -> None:
    world = World(delays=Delays(stt_s=3 / 8))
    world.speaks(0.5, "I would like")
    world.is_silent(BREATH_S)
    world.speaks(0.5, "some tea")
    (stale,) = world.stale
    assert world.only(CancelTranscription).transcription_id == stale.transcription_id
    assert world.tell(stale) == []
    world.until(world.outcomes)
    assert world.only(TranscriptCompleted).text == "I would like some tea"


def test_who_goes_on_after_the_endpoint_has_said_one_thing() -> None:
    world = World()
    world.asks("I would like")
    world.speaks(0.5, "some tea")
    world.until(lambda: "completed" in world.outcomes())
    assert world.outcomes() == ["interrupted", "completed"]
    assert world.last(Generate).messages == (Message("user", "I would like some tea"),)


def test_the_audio_is_paced_to_the_lead() -> None:
    world = World()
    world.asks()
    world.until(world.outcomes)
    assert max(world.sent_ahead) == LEAD_S + CHUNK_S
    plays = world.times(Play)
    assert plays[-1] - plays[0] == len(words(REPLY)) * WORD_S - LEAD_S - CHUNK_S


def test_a_slow_socket_slows_the_pacing_and_loses_nothing() -> None:
    world = World(reply=SHORT, delays=Delays(socket_s=0.125))
    world.asks()
    world.until(lambda: world.agent is AgentState.IDLE)
    assert world.outcomes() == ["completed"]
    assert world.played(world.only(ResponseStarted).item_id) == words(SHORT)


# --- who has the floor ----------------------------------------------------------------------------------------------


def test_a_barge_in_ends_the_answer_in_one_step() -> None:
    world = World()
    world.asks()
    world.until_heard(5)
    began = world.now
    world.speaks(INTERRUPTION_S, "stop")
    (at,) = world.times(SpeechStarted)[1:]
    assert at - began == 3 * FRAME_S, "the first frame past interruption_min_ms"
    assert [type(c) for t, c in world.log if t == at and not isinstance(c, Play)] == [
        SpeechStarted,
        CancelWork,
        ResponseDone,
    ]
    assert world.agent is AgentState.IDLE


def test_a_barge_in_keeps_only_the_words_heard() -> None:
    world = World()
    world.asks()
    world.until_heard(5)
    world.speaks(INTERRUPTION_S, "stop")
    done = world.only(ResponseDone)
    assert done.outcome == "interrupted"
    assert words(done.heard.text) == world.played(done.item_id) == words(REPLY)[:5]
    assert world.history()[1] == ("assistant", "Well, that is easy. It")
    assert done.text == REPLY, "all that was shown"


def test_no_sound_of_an_interrupted_answer_follows_and_its_late_news_change_nothing() -> None:
    world = World()
    world.asks()
    world.until_heard(2)
    world.speaks(INTERRUPTION_S, "stop")
    assert world.stale
    before = world.history()
    for event in list(world.stale):
        assert world.tell(event) == []
    assert world.history() == before
    world.is_silent(0.25)
    assert max(world.times(Play)) < world.times(SpeechStarted)[-1]


def test_the_agent_speaks_until_the_end_of_its_sound_and_can_be_cut_in_its_tail() -> None:
    world = World(reply=SHORT)
    world.asks()
    world.until(world.outcomes)
    assert world.agent is AgentState.SPEAKING, "a lead is still to be heard"
    world.speaks(INTERRUPTION_S, "stop")
    done = world.only(ResponseDone)
    assert done.outcome == "completed"
    heard = world.played(done.item_id)
    assert heard == words(SHORT)[: len(heard)] != words(SHORT)
    assert words(world.history()[1][1]) == heard
    truncated = world.only(ItemTruncated)
    assert truncated.item_id == done.item_id
    assert world.listener.words_until(done.item_id, (truncated.audio_end_ms + 0.5) / 1000) == heard


def test_a_cut_before_the_answer_is_done_is_told_by_its_end_alone() -> None:
    world = World()
    world.asks()
    world.until_heard(2)
    world.speaks(INTERRUPTION_S, "stop")
    assert world.outcomes() == ["interrupted"]
    assert world.all(ItemTruncated) == []


def test_a_barge_in_cuts_the_last_answer_heard_though_another_was_begun_and_cancelled_since() -> None:
    world = World(reply=SHORT)
    world.asks()
    world.until(world.outcomes)
    for wish in (ResponseRequested(), CancelRequested(), ResponseRequested()):
        world.tell(wish)
    world.speaks(INTERRUPTION_S, "stop")
    assert world.outcomes() == ["completed", "client_cancelled", "interrupted"]
    item_id = world.all(ResponseDone)[0].item_id
    assert words(world.history()[1][1]) == world.played(item_id) != words(SHORT)


def test_a_cough_over_the_tail_takes_longer_than_over_an_idle_agent() -> None:
    world = World(reply=SHORT)
    world.asks()
    world.until(world.outcomes)
    world.speaks(COUGH_S)
    assert len(world.all(SpeechStarted)) == 1


def test_short_speech_over_the_agent_leaves_no_item() -> None:
    world = World()
    world.asks()
    world.until_heard(2)
    world.speaks(COUGH_S, "hm")
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]
    assert len(world.all(SpeechStarted)) == 1
    assert [role for role, _ in world.history()] == ["user", "assistant"]


def test_coughs_do_not_add_up_to_an_interruption() -> None:
    world = World()
    world.asks()
    world.until_heard(2)
    for _ in range(4):
        world.speaks(COUGH_S)
        world.is_silent(BREATH_S)
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]


def test_short_speech_that_outlasts_the_agent_gets_the_floor_with_its_true_start() -> None:
    world = World(reply=SHORT, parameters=Parameters(playout_lead_s=LEAD_S, interruption_min_ms=5000))
    world.asks()
    world.until_heard(3)
    began = world.position
    world.speaks(2.0, "and another thing")
    at, started = [(at, c) for at, c in world.log if isinstance(c, SpeechStarted)][-1]
    assert world.listener.plays_until <= at <= world.listener.plays_until + FRAME_S
    assert started.audio_start_ms == began // 16 - 300
    assert world.outcomes() == ["completed"]
    world.until(lambda: len(world.all(TranscriptCompleted)) == 2)
    assert world.last(TranscriptCompleted).text == "and another thing"


def test_an_agent_that_may_not_be_interrupted_finishes_and_then_answers() -> None:
    world = World(vad=ServerVad(interrupt_response=False))
    world.asks("one")
    world.until_heard(1)
    world.speaks(0.5, "two")
    world.until(lambda: len(world.outcomes()) == 2)
    assert world.outcomes() == ["completed", "completed"]
    assert len(world.all(SpeechStarted)) == 2
    assert world.last(Generate).messages[-1] == Message("user", "two")
    started, done = world.times(ResponseStarted)[1], world.times(ResponseDone)[0]
    assert started == done


def test_nothing_is_answered_unasked_where_the_client_answers() -> None:
    world = World(vad=ServerVad(create_response=False))
    world.speaks(0.5, "hello")
    world.is_silent(3.0)
    assert world.history() == [("user", "hello")]
    assert not world.all(ResponseStarted)
    world.tell(ResponseRequested(metadata=(("topic", "x"),)))
    world.until(world.outcomes)
    assert world.only(ResponseDone).metadata == (("topic", "x"),)


def test_an_unheard_answer_that_the_client_asked_for_is_not_given_again_unasked() -> None:
    world = World(vad=ServerVad(create_response=False), delays=Delays(first_token_s=2.0))
    world.speaks(0.5, "hello")
    world.is_silent(1.0)
    world.tell(ResponseRequested())
    world.speaks(0.5, "wait")
    world.is_silent(5.0)
    assert world.outcomes() == ["interrupted"]
    assert len(world.all(ResponseStarted)) == 1


# --- what is owed ---------------------------------------------------------------------------------------------------


def test_a_cough_that_cancels_an_answer_does_not_swallow_it() -> None:
    world = World(delays=Delays(first_token_s=1.0))
    world.asks("what is the time")
    world.speaks(INTERRUPTION_S, "")
    assert world.outcomes() == ["interrupted"]
    world.until(lambda: len(world.outcomes()) == 2)
    assert world.outcomes() == ["interrupted", "completed"]
    assert world.last(Generate).messages == (Message("user", "what is the time"),)


def test_a_cough_over_words_already_heard_does_not_bring_the_answer_again() -> None:
    world = World()
    world.asks()
    world.until_heard(3)
    world.speaks(INTERRUPTION_S, "")
    world.is_silent(5.0)
    assert world.outcomes() == ["interrupted"]
    assert world.agent is AgentState.IDLE


def test_a_cough_that_is_cleared_gives_the_answer_back_at_once() -> None:
    world = World(delays=Delays(first_token_s=1.0))
    world.asks()
    world.speaks(INTERRUPTION_S)
    world.tell(AudioCleared())
    assert world.all(InputCleared)
    assert len(world.all(ResponseStarted)) == 2


def test_words_spoken_while_others_are_transcribed_are_answered_together() -> None:
    world = World(delays=Delays(stt_s=1.0))
    world.speaks(0.5, "one")
    world.is_silent(0.75)
    world.speaks(0.5, "two")
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]
    assert world.only(Generate).messages == (Message("user", "one two"),)


def test_each_turn_is_answered_once() -> None:
    world = World(reply=SHORT)
    for question in ("one", "two", "three"):
        world.asks(question)
        world.until(lambda: world.agent is AgentState.IDLE)
    world.is_silent(5.0)
    assert world.outcomes() == ["completed"] * 3
    assert [role for role, _ in world.history()] == ["user", "assistant"] * 3


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_a_microphone_that_stops_in_a_turn_ends_it_after_a_second() -> None:
    world = World(reply=SHORT)
    world.speaks(0.5, "hello")
    stopped = world.now
    world.wait(8.0)
    assert world.times(InsertSilence) == world.times(TurnCommitted) == [stopped + 1.0]
    assert world.outcomes() == ["completed"]


def test_a_microphone_that_stops_outside_a_turn_is_no_matter() -> None:
    world = World()
    world.is_silent(1.0)
    assert world.conversation.deadline() is None
    world.wait(60.0)
    assert world.log == []


def test_the_timer_is_for_what_comes_first() -> None:
    world = World(vad=ServerVad(interrupt_response=False))
    world.asks()
    world.until_heard(2)
    world.speaks(0.5, "hello")
    stall = world.now + 1.0
    assert world.conversation.deadline() < stall
    world.tell(CancelRequested())
    assert world.conversation.deadline() == stall


def test_ticking_early_or_twice_does_nothing_more() -> None:
    world = World()
    world.asks()
    world.until_heard(1)
    assert world.conversation.deadline() > world.now
    assert world.tick() == []
    world.now = world.conversation.deadline()
    assert [type(command) for command in world.tick()] == [Play]
    assert world.tick() == []


def test_endless_speech_is_taken_in_pieces_and_none_is_lost() -> None:
    spoken = " ".join(f"w{i}" for i in range(40))
    world = World(parameters=Parameters(playout_lead_s=LEAD_S, max_turn_s=2.0))
    world.speaks(8.0, spoken)
    world.until(lambda: "completed" in world.outcomes())
    assert " ".join(text for role, text in world.history() if role == "user") == spoken
    assert len(world.all(TurnCommitted)) >= 4
    assert all(c.stop - c.start <= 2 * 16000 + FRAME for c in world.all(Transcribe))


def test_the_latency_account_sums_to_the_time_from_the_last_speech_to_the_first_sound() -> None:
    world = World(
        delays=Delays(stt_s=1.0, first_token_s=0.5, token_gap_s=1 / 16, first_audio_s=0.25, socket_s=1 / 8)
    )
    world.speaks(0.5, "hello")
    spoken = world.now
    world.until(world.outcomes)
    latency = world.only(ResponseDone).latency
    assert latency.total == world.listener.sounds[0].end - CHUNK_S - spoken
    assert latency.endpointing == 0.5
    assert latency.stt == 1.0 + 3 * FRAME_S - 0.5
    assert (latency.llm_ttft, latency.first_segment) == (0.5, 4 / 16)
    assert (latency.tts_ttfb, latency.overhead) == (0.25, 1 / 8)


def test_a_cough_long_ago_is_not_where_a_written_turn_s_latency_begins() -> None:
    world = World(reply=SHORT)
    world.speaks(0.5, "")
    world.is_silent(20.0)
    world.tell(ItemCreated("user", "hello"))
    world.tell(ResponseRequested())
    world.until(world.outcomes)
    assert world.only(ResponseDone).latency is None


def test_an_answer_given_after_a_cough_counts_from_the_cough() -> None:
    world = World(reply=SHORT, delays=Delays(first_token_s=1.0))
    world.asks()
    world.speaks(INTERRUPTION_S, "")
    coughed = world.now
    world.until(lambda: len(world.outcomes()) == 2)
    first_sound = min(sound.end for sound in world.listener.sounds) - CHUNK_S
    assert world.last(ResponseDone).latency.total == first_sound - coughed


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["stt", "llm", "tts"])
def test_a_stage_that_fails_once_is_not_noticed(stage: str) -> None:
    world = World(reply=SHORT)
    world.failing[stage] = 1
    world.asks("hello")
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]
    assert world.history() == [("user", "hello"), ("assistant", SHORT)]
    assert not world.all(TranscriptFailed)


@pytest.mark.parametrize(("stage", "work"), [("stt", Transcribe), ("llm", Generate), ("tts", Synthesize)])
def test_a_stage_that_stays_broken_fails_the_response_after_two_tries_and_the_next_turn_works(
    stage: str, work: type
) -> None:
    world = World(reply=SHORT)
    world.failing[stage] = 99
    world.asks("one")
    world.until(world.outcomes)
    done = world.only(ResponseDone)
    assert (done.outcome, done.failure.stage) == ("failed", stage)
    assert len(world.all(work)) == 2
    world.is_silent(5.0)
    assert len(world.all(work)) == 2
    assert world.agent is AgentState.IDLE
    world.failing.clear()
    world.asks("two")
    world.until(lambda: len(world.outcomes()) == 2)
    assert world.outcomes() == ["failed", "completed"]


def test_a_failure_that_cannot_pass_is_told_at_once() -> None:
    world = World()
    world.failing["llm"], world.is_failure_retryable = 1, False
    world.asks()
    world.until(world.outcomes)
    assert len(world.all(Generate)) == 1
    assert world.only(ResponseDone).failure.message == "llm is broken"


def test_a_model_that_yields_nothing_has_failed() -> None:
    world = World(reply="")
    world.asks()
    world.until(world.outcomes)
    assert world.only(ResponseDone).failure.code == "engine_failed"
    assert len(world.all(Generate)) == 2


def test_a_failed_transcription_does_not_add_a_response_to_the_one_that_was_asked_for() -> None:
    world = World()
    world.failing["stt"] = 2
    world.speaks(0.5, "one")
    world.tell(AudioCommitted())
    world.tell(ResponseRequested())
    world.is_silent(1.0)
    assert world.all(TranscriptFailed)
    assert len(world.all(ResponseStarted)) == 1


def test_a_turn_that_could_not_be_transcribed_is_told_and_does_not_stop_the_words_before_it() -> None:
    world = World(delays=Delays(stt_s=1.25))
    world.speaks(0.5, "one")
    world.is_silent(1.0)
    world.failing["stt"] = 2
    world.speaks(0.5, "two")
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]
    assert world.only(TranscriptFailed).failure.stage == "stt"


def test_where_the_client_answers_a_failed_transcription_is_only_told() -> None:
    world = World(vad=ServerVad(create_response=False))
    world.failing["stt"] = 2
    world.speaks(0.5, "one")
    world.is_silent(3.0)
    assert world.all(TranscriptFailed)
    assert not world.all(ResponseStarted)


def test_a_voice_that_breaks_after_the_first_words_ends_the_answer_with_what_was_said() -> None:
    world = World()
    world.asks()
    world.until(lambda: world.all(Play))
    world.failing["tts"] = 1
    world.until(world.outcomes)
    done = world.only(ResponseDone)
    assert (done.outcome, done.failure.stage) == ("failed", "tts")
    assert done.text.startswith(world.history()[1][1])
    assert words(world.history()[1][1]) == world.listener.words(done.item_id)


# --- the client's wishes --------------------------------------------------------------------------------------------


def test_the_client_may_cancel_and_what_was_sent_is_kept() -> None:
    world = World()
    world.asks()
    world.until_heard(2)
    world.tell(CancelRequested())
    done = world.only(ResponseDone)
    assert done.outcome == "client_cancelled"
    world.is_silent(2.0)
    assert words(world.history()[1][1]) == world.listener.words(done.item_id)
    assert max(world.times(Play)) <= world.times(ResponseDone)[0]


def test_a_request_that_waits_for_words_can_be_cancelled() -> None:
    world = World(vad=None, delays=Delays(stt_s=1.0))
    world.speaks(1.0, "what is the time")
    world.tell(AudioCommitted())
    world.tell(ResponseRequested(metadata=(("key", "value"),)))
    assert world.all(ResponseStarted) == []
    started, _, done = world.tell(CancelRequested())
    assert isinstance(started, ResponseStarted)
    assert isinstance(done, ResponseDone)
    assert (done.response_id, done.outcome) == (started.response_id, "client_cancelled")
    assert done.metadata == (("key", "value"),)
    world.is_silent(4.0)
    assert world.history() == [("user", "what is the time")]
    assert world.all(Generate) == []
    assert world.agent is AgentState.IDLE
    world.tell(ResponseRequested())
    world.is_silent(8.0)
    assert world.outcomes() == ["client_cancelled", "completed"]


def test_a_cancelled_request_takes_the_servers_own_answer_with_it() -> None:
    """One answer would have served both."""
    world = World(delays=Delays(stt_s=1.0))
    world.speaks(0.5, "what is the time")
    world.until(lambda: world.all(TurnCommitted))
    world.tell(ResponseRequested())
    world.tell(CancelRequested())
    world.is_silent(4.0)
    assert [item for _, item in world.history()] == ["what is the time"]
    assert world.outcomes() == ["client_cancelled"]
    assert world.agent is AgentState.IDLE
    world.asks("and now")
    world.is_silent(8.0)
    assert world.outcomes() == ["client_cancelled", "completed"]


def test_a_failed_transcription_whose_answer_was_cancelled_is_told_once() -> None:
    world = World(delays=Delays(stt_s=1.0))
    world.failing["stt"] = 2
    world.speaks(0.5, "what is the time")
    world.until(lambda: world.all(TurnCommitted))
    world.tell(ResponseRequested())
    world.tell(CancelRequested())
    world.is_silent(4.0)
    assert len(world.all(TranscriptFailed)) == 1
    assert world.outcomes() == ["client_cancelled"]


def test_a_waiting_request_is_not_cancelled_by_the_id_of_another() -> None:
    world = World(vad=None, delays=Delays(stt_s=1.0))
    world.speaks(1.0, "what is the time")
    world.tell(AudioCommitted())
    world.tell(ResponseRequested())
    [refused] = world.tell(CancelRequested(ResponseId("resp_0_999"), "event_1"))
    assert isinstance(refused, Refused)
    assert refused.code == "response_cancel_not_active"
    world.is_silent(8.0)
    assert world.outcomes() == ["completed"]


def test_there_is_nothing_to_cancel_when_no_response_is_under_way() -> None:
    world = World()
    (refusal,) = world.tell(CancelRequested(event_id="event_1"))
    assert (refusal.code, refusal.event_id) == ("response_cancel_not_active", "event_1")


def test_the_client_s_truncation_after_a_barge_in_is_taken_up_and_down_and_clamped() -> None:
    world = World()
    world.asks()
    world.until_heard(6)
    world.speaks(INTERRUPTION_S, "stop")
    item_id = world.only(ResponseDone).item_id
    texts = []
    for end_ms in (760, 1250, 60_000):
        (truncated,) = world.truncates(item_id, end_ms)
        texts.append((truncated.audio_end_ms, len(words(world.history()[1][1]))))
    sent_ms = texts[-1][0]
    assert texts == [(760, 3), (1250, 5), (sent_ms, sent_ms // 250)]
    assert 1500 <= sent_ms <= 2000


def test_a_late_truncation_of_the_answer_before_does_not_hasten_the_next() -> None:
    world = World(reply=SHORT, delays=Delays(first_token_s=0.0, first_audio_s=0.0))
    world.asks("one")
    world.until(lambda: world.agent is AgentState.IDLE)
    world.asks("two")
    world.until(lambda: len(world.outcomes()) == 2)
    world.truncates(world.all(ResponseDone)[0].item_id, 500)
    assert world.agent is AgentState.SPEAKING
    world.tell(ResponseRequested())
    world.until(lambda: len(world.outcomes()) == 3)
    assert max(world.sent_ahead) == LEAD_S + CHUNK_S


def test_a_truncation_of_an_item_long_gone_is_refused() -> None:
    world = World(reply=SHORT)
    for question in ("one", "two", "three"):
        world.asks(question)
        world.until(lambda: world.agent is AgentState.IDLE)
    first = world.all(ResponseDone)[0].item_id
    (refusal,) = world.truncates(first, 100)
    assert refusal.code == "item_not_truncatable"
    assert world.history()[1] == ("assistant", SHORT)


def test_a_user_s_item_cannot_be_truncated_and_none_at_a_negative_time() -> None:
    world = World(reply=SHORT)
    world.asks()
    world.until(world.outcomes)
    refused = [
        *world.tell(TruncationRequested(world.only(TurnCommitted).item_id, 10)),
        *world.tell(TruncationRequested(world.only(ResponseDone).item_id, -1)),
        *world.tell(TruncationRequested(ItemId("nobody"), 10)),
    ]
    assert [r.code for r in refused] == ["item_not_truncatable", "invalid_value", "item_not_found"]
    assert not world.all(ItemTruncated)


def test_written_turns_work() -> None:
    world = World(settings=Settings(instructions="be kind"), reply=SHORT)
    world.tell(ItemCreated("user", " hello "))
    assert not world.all(ResponseStarted), "the client asks for the answer"
    world.tell(ResponseRequested(modality="text"))
    world.wait(2.0)
    assert not world.all(Synthesize)
    assert world.only(ResponseDone).text == SHORT
    assert world.only(Generate).messages == (Message("system", "be kind"), Message("user", "hello"))
    assert world.history() == [("user", "hello"), ("assistant", SHORT)]


def test_a_request_says_what_this_answer_is_to_be() -> None:
    world = World(settings=Settings(instructions="be kind"))
    world.tell(ItemCreated("user", "hello"))
    world.tell(ResponseRequested("be brief", "audio", "bella", 7))
    world.wait(1.0)
    assert world.only(Generate).messages[0] == Message("system", "be brief")
    assert world.only(Generate).max_output_tokens == 7
    assert world.all(Synthesize)[0].voice == "bella"
    started = world.only(ResponseStarted)
    assert (started.voice, started.max_output_tokens) == ("bella", 7)


def test_a_second_response_is_refused_while_one_is_under_way() -> None:
    world = World()
    world.asks()
    (refusal,) = world.tell(ResponseRequested(event_id="event_2"))
    assert (refusal.code, refusal.event_id) == ("conversation_already_has_active_response", "event_2")
    assert len(world.all(ResponseStarted)) == 1


def test_a_request_waits_for_the_words_of_a_committed_turn_and_only_one_can_wait() -> None:
    world = World(vad=None)
    world.speaks(0.5, "hello")
    world.tell(AudioCommitted())
    world.tell(ResponseRequested())
    assert not world.all(ResponseStarted)
    (refusal,) = world.tell(ResponseRequested())
    assert refusal.code == "conversation_already_has_active_response"
    world.wait(1.0)
    assert world.only(Generate).messages == (Message("user", "hello"),)


def test_without_turn_detection_the_client_commits_and_asks() -> None:
    world = World(vad=None, reply=SHORT)
    world.speaks(1.0, "hello")
    world.is_silent(2.0)
    assert world.log == []
    world.tell(AudioCommitted())
    world.wait(1.0)
    assert world.history() == [("user", "hello")]
    assert not world.all(ResponseStarted)
    assert not world.all(SpeechStarted)


def test_settings_may_change_while_the_client_s_audio_waits() -> None:
    world = World(vad=None)
    world.speaks(1.0, "hello")
    world.tell(SessionConfigured(Settings(instructions="be kind", turn_detection=None)))
    assert world.only(SettingsChanged).settings.instructions == "be kind"
    assert world.conversation.settings.instructions == "be kind"
    assert world.tell(AudioCommitted())[0] == TurnCommitted(ItemId("item_0_1"), None)
    world.wait(1.0)
    assert world.history() == [("user", "hello")]


def test_a_commit_without_speech_is_refused() -> None:
    world = World()
    world.is_silent(1.0)
    (refusal,) = world.tell(AudioCommitted("event_1"))
    assert (refusal.code, refusal.event_id) == ("input_audio_buffer_commit_empty", "event_1")


def test_items_can_be_created_shown_and_deleted() -> None:
    world = World()
    (a,) = world.tell(ItemCreated("user", "a", ItemId("a")))
    (first,) = world.tell(ItemCreated("system", "first", None, ItemId("root")))
    (behind,) = world.tell(ItemCreated("assistant", "behind", ItemId("b"), ItemId("a")))
    assert [added.previous_item_id for added in (a, first, behind)] == [None, None, "a"]
    assert world.history() == [("system", "first"), ("user", "a"), ("assistant", "behind")]
    assert world.tell(ItemRetrieved(ItemId("b"))) == [ItemShown(behind.item)]
    assert world.tell(ItemDeleted(ItemId("b"))) == [ItemRemoved(ItemId("b"))]
    assert [
        r.code for r in (*world.tell(ItemDeleted(ItemId("b"))), *world.tell(ItemRetrieved(ItemId("b"))))
    ] == [
        "item_not_found",
        "item_not_found",
    ]


@pytest.mark.parametrize("item_id", ["a", "root", "item_0_1", "item_0_999"])
def test_a_client_s_id_may_not_be_that_of_another_item_nor_one_that_the_server_gives(item_id: str) -> None:
    world = World()
    world.tell(ItemCreated("user", "a", ItemId("a")))
    world.speaks(0.25, "hello")
    (refusal,) = world.tell(ItemCreated("user", "b", ItemId(item_id), event_id="event_1"))
    assert (refusal.code, refusal.param, refusal.event_id) == ("item_id_taken", "item.id", "event_1")
    assert world.history() == [("user", "a")]
    world.until(world.outcomes)


def test_an_item_behind_an_unknown_one_is_refused() -> None:
    (refusal,) = World().tell(ItemCreated("user", "a", None, ItemId("nobody")))
    assert (refusal.code, refusal.param) == ("item_not_found", "previous_item_id")


def test_a_turn_that_was_deleted_before_its_words_came_is_not_answered() -> None:
    world = World(delays=Delays(stt_s=1.0))
    world.speaks(0.5, "hello")
    world.until(lambda: world.all(TurnCommitted))
    world.tell(ItemDeleted(world.only(TurnCommitted).item_id))
    world.is_silent(3.0)
    assert world.only(TranscriptCompleted).text == "hello"
    assert not world.all(ResponseStarted)


def test_an_answer_whose_item_is_deleted_goes_on() -> None:
    world = World()
    world.asks()
    world.until_heard(1)
    world.tell(ItemDeleted(world.only(ResponseStarted).item_id))
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]
    assert [role for role, _ in world.history()] == ["user"]


# --- the end --------------------------------------------------------------------------------------------------------


def test_closing_cancels_all_work_and_nothing_follows() -> None:
    world = World()
    world.asks()
    world.until_heard(1)
    world.speaks(COUGH_S)
    assert world.tell(Closed()) == [CancelWork(world.only(ResponseStarted).response_id)]
    assert world.conversation.deadline() is None
    assert world.conversation.tick(world.now + 9.0) == []
    assert world.tell(FrameScored(FRAME, 0.9)) == []


def test_news_of_work_that_never_was_change_nothing() -> None:
    world = World()
    world.asks()
    world.until_heard(1)
    history, failure = world.history(), StageFailure("llm", "engine_failed", "broken")
    for event in (
        TranscriptFinished(TranscriptionId(99), "ghost"),
        TokensGenerated(ResponseId("resp_0_99"), "ghost"),
        GenerationFailed(ResponseId("resp_0_99"), failure),
        SynthesisFailed(ResponseId("resp_0_99"), SegmentId(1), failure),
        AudioSent(ChunkId(9999)),
    ):
        assert world.conversation.handle(event, world.now) == []
    assert world.history() == history
    world.until(world.outcomes)
    assert world.outcomes() == ["completed"]


def test_a_refused_wish_changes_nothing() -> None:
    world = World()
    world.asks()
    before = world.conversation.history.items(), world.conversation.history.version, world.agent
    for wish in (
        ResponseRequested(),
        CancelRequested(ResponseId("no")),
        ItemDeleted(ItemId("no")),
        AudioCommitted(),
    ):
        (refusal,) = world.conversation.handle(wish, world.now)
        assert isinstance(refusal, Refused)
    assert (world.conversation.history.items(), world.conversation.history.version, world.agent) == before
    assert not world.all(ItemAdded)
