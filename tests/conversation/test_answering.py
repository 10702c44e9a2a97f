from collections.abc import Callable
from typing import Any

from serve_app.conversation.answer import Order
from serve_app.conversation.answering import NOTHING_SYNTHESIZED, Answering
from serve_app.conversation.commands import (
    CancelWork,
    Command,
    Generate,
    Heard,
    ItemTruncated,
    Message,
    Play,
    Refused,
    ResponseDone,
    ResponseStarted,
    Synthesize,
    TranscriptDelta,
)
from serve_app.conversation.events import (
    ChunkId,
    Failure,
    GenerationFinished,
    ItemId,
    ResponseId,
    SegmentId,
    SpeechSynthesized,
    TokensGenerated,
    TruncationRequested,
    Usage,
    WordTime,
)
from serve_app.conversation.history import History
from serve_app.conversation.parameters import Ids, Parameters
from serve_app.conversation.timeline import TurnTimeline
from serve_app.conversation.wording import NOTHING_GENERATED

BROKEN = Failure("llm", "engine_failed", "broken")
HOPELESS = Failure("llm", "bad_request", "no", retryable=False)
ORDER = Order((Message("user", "hi"),), "audio", "af_heart", 1.0, 100, (("key", "value"),))
TEXT_ORDER = Order((Message("user", "hi"),), "text", "", 1.0, None, ())
RESPONSE, ITEM = ResponseId("resp_0_1"), ItemId("item_0_1")
CLAUSE, REST = "Yes, of course.", " I can do that."


class Agent:
    """An `Answering` whose engines and socket are the test; every act returns the commands that it brought."""

    def __init__(self, order: Order | None = ORDER, **parameters: Any) -> None:
        self.out: list[Command] = []
        self.history = History()
        self.answering = Answering(
            Parameters(**{"playout_lead_s": 0.25} | parameters), self.history, Ids("0"), self.out.append
        )
        self.now = 100.0
        self._chunk = 0
        if order is not None:
            self.start(order)

    def does(self, act: Callable[[], object]) -> list[Command]:
        before = len(self.out)
        act()
        self.answering.advance(self.now)
        return self.out[before:]

    def start(self, order: Order = ORDER) -> list[Command]:
        return self.does(lambda: self.answering.start(order, TurnTimeline({"last_speech": self.now - 1.0})))

    def tokens(self, *texts: str, response_id: ResponseId = RESPONSE) -> list[Command]:
        return self.does(
            lambda: [
                self.answering.tokens_generated(TokensGenerated(response_id, text), self.now)
                for text in texts
            ]
        )

    def generated(self, finish_reason: str = "stop", *, response_id: ResponseId = RESPONSE) -> list[Command]:
        event = GenerationFinished(response_id, finish_reason, Usage(7, 3))
        return self.does(lambda: self.answering.generation_finished(event, self.now))

    def sound(self, segment: int, duration_s: float = 0.5, word: WordTime | None = None) -> list[Command]:
        self._chunk += 1
        words = (word,) if word else ()
        event = SpeechSynthesized(RESPONSE, SegmentId(segment), ChunkId(self._chunk), duration_s, words)
        return self.does(lambda: self.answering.speech_synthesized(event, self.now))

    def synthesized(self, segment: int) -> list[Command]:
        return self.does(lambda: self.answering.synthesis_finished(RESPONSE, SegmentId(segment)))

    def sent(self) -> list[Command]:
        chunk_id = [c.chunk_id for c in self.out if isinstance(c, Play)][-1]
        return self.does(lambda: self.answering.audio_sent(chunk_id, self.now))

    def fails(self, failure: Failure = BROKEN) -> list[Command]:
        return self.does(lambda: self.answering.failed(RESPONSE, failure))

    def interrupted(self, *, after_s: float = 0.0) -> tuple[bool, list[Command]]:
        self.now += after_s
        was_unheard: list[bool] = []
        out = self.does(lambda: was_unheard.append(self.answering.interrupt(self.now)))
        return was_unheard[0], out

    def truncated(self, audio_end_ms: int, item_id: ItemId = ITEM) -> list[Command]:
        wish = TruncationRequested(item_id, audio_end_ms, "event_1")
        return self.does(lambda: self.answering.truncate(wish, self.now))

    def said(self) -> tuple[str, str]:
        item = self.history.get(ITEM)
        return item.text, item.status


def speaking() -> Agent:
    """An agent whose first clause, of half a second, has been sent and whose second is being synthesised."""
    agent = Agent()
    agent.tokens(CLAUSE, REST, " ")
    agent.sound(1, word=WordTime(0, 4, 0.0, 0.25))
    agent.sent()
    agent.synthesized(1)
    return agent


# --- the course of an answer ----------------------------------------------------------------------------------------


def test_an_answer_goes_from_tokens_to_sound_to_its_end() -> None:
    agent = Agent(None)
    assert agent.start() == [
        ResponseStarted(RESPONSE, ITEM, "audio", (("key", "value"),), "af_heart", 100),
        Generate(RESPONSE, ORDER.messages, 100),
    ]
    assert agent.tokens("Yes, of", " course.") == []
    assert agent.tokens(" I can") == [Synthesize(RESPONSE, 1, "Yes, of course.", "af_heart", 1.0)]
    assert agent.tokens(" do that.") == []
    assert agent.sound(1) == [
        TranscriptDelta(RESPONSE, ITEM, "Yes, of course.", None),
        Play(RESPONSE, ITEM, ChunkId(1)),
    ]
    assert agent.generated() == []
    assert agent.synthesized(1) == [Synthesize(RESPONSE, 2, " I can do that.", "af_heart", 1.0)]
    assert agent.sent() == []
    agent.now += 0.5
    assert agent.sound(2) == [
        TranscriptDelta(RESPONSE, ITEM, " I can do that.", None),
        Play(RESPONSE, ITEM, ChunkId(2)),
    ]
    assert agent.synthesized(2) == []
    (done,) = agent.sent()
    assert (done.outcome, done.text, done.heard) == ("completed", "Yes, of course. I can do that.", None)
    assert (done.usage, done.metadata) == (Usage(7, 3), (("key", "value"),))
    assert done.latency.total == 1.0
    assert agent.said() == ("Yes, of course. I can do that.", "completed")
    assert not agent.answering.is_active


def test_words_of_a_segment_are_not_shown_before_its_sound_is_due() -> None:
    agent = speaking()
    assert agent.sound(2) == [], "the first segment still sounds for longer than the lead"
    agent.now += 0.25
    assert agent.does(lambda: None) == [
        TranscriptDelta(RESPONSE, ITEM, REST, None),
        Play(RESPONSE, ITEM, ChunkId(2)),
    ]


def test_a_token_limit_leaves_the_answer_incomplete() -> None:
    agent = Agent()
    agent.tokens(CLAUSE)
    agent.generated("length")
    agent.sound(1)
    agent.synthesized(1)
    (done,) = agent.sent()
    assert done.outcome == "incomplete"
    assert agent.said() == (CLAUSE, "incomplete")


def test_text_is_shown_as_it_comes_and_never_spoken() -> None:
    agent = Agent(TEXT_ORDER)
    (delta,) = agent.tokens("Yes, of course. ")
    assert delta == TranscriptDelta(RESPONSE, ITEM, "Yes, of course. ", None)
    assert agent.tokens("I can.")[0].text == "I can."
    (done,) = agent.generated()
    assert (done.outcome, done.text) == ("completed", "Yes, of course. I can.")
    assert done.latency.total == 1.0
    assert agent.said() == ("Yes, of course. I can.", "completed")


def test_an_answer_with_nothing_to_say_in_it_ends_without_an_item() -> None:
    agent = Agent()
    agent.tokens("...")
    (done,) = agent.generated()
    assert (done.outcome, done.text) == ("completed", "")
    assert agent.history.items() == ()


def test_synthesis_does_not_run_far_ahead_of_the_sound() -> None:
    agent = Agent(synthesis_ahead_s=1.0)
    agent.tokens(CLAUSE, REST, " And more. Yes.")
    agent.sound(1)
    agent.sound(1, 1.0)
    assert agent.synthesized(1) == [], "1.5 s wait to be sent"
    assert [type(c) for c in agent.sent()] == [Synthesize]
    assert agent.answering.deadline == agent.now + 0.25


def test_what_is_not_the_answer_s_is_dropped() -> None:
    agent = speaking()
    other = ResponseId("resp_0_99")
    assert agent.tokens("late", response_id=other) == []
    assert agent.generated(response_id=other) == []
    assert agent.sound(99) == []
    assert agent.synthesized(99) == []
    assert agent.does(lambda: agent.answering.failed(other, BROKEN)) == []
    assert agent.does(lambda: agent.answering.audio_sent(ChunkId(99), agent.now)) == []


def test_tokens_behind_the_end_are_dropped() -> None:
    agent = Agent()
    agent.tokens(CLAUSE)
    agent.generated()
    assert agent.tokens(" Late.") == []
    agent.sound(1)
    agent.synthesized(1)
    (done,) = agent.sent()
    assert done.text == CLAUSE


def test_usage_is_counted_where_the_engine_does_not_say() -> None:
    agent = Agent(TEXT_ORDER)
    agent.tokens("one ", "two")
    event = GenerationFinished(RESPONSE, "stop", None)
    (done,) = agent.does(lambda: agent.answering.generation_finished(event, agent.now))
    assert done.usage == Usage(0, 2)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failure_before_anything_was_shown_is_tried_once_more() -> None:
    agent = Agent()
    assert agent.fails() == [CancelWork(RESPONSE), Generate(RESPONSE, ORDER.messages, 100)]
    cancelled, done = agent.fails()
    assert cancelled == CancelWork(RESPONSE)
    assert (done.outcome, done.failure, done.latency) == ("failed", BROKEN, None)
    assert not agent.answering.is_active


def test_the_second_try_begins_from_nothing() -> None:
    agent = Agent()
    agent.tokens(CLAUSE, REST)
    agent.fails()
    assert agent.sound(1) == [], "sound of the first try"
    assert agent.tokens("No, of course not. ") == [
        Synthesize(RESPONSE, 2, "No, of course not.", "af_heart", 1.0)
    ]


def test_sound_of_the_first_try_that_waited_behind_another_answer_is_dropped() -> None:
    agent = speaking()
    agent.generated()
    agent.does(agent.answering.cancel)
    agent.start()
    second = ResponseId("resp_0_2")
    agent.tokens(CLAUSE, " ", response_id=second)
    event = SpeechSynthesized(second, SegmentId(3), ChunkId(50), 0.5)
    assert agent.does(lambda: agent.answering.speech_synthesized(event, agent.now)) == [], (
        "the first still sounds"
    )
    agent.does(lambda: agent.answering.failed(second, BROKEN))
    assert agent.answering.deadline is None


def test_a_failure_after_the_first_words_ends_the_answer_with_what_was_sent() -> None:
    agent = speaking()
    cancelled, done = agent.fails()
    assert cancelled == CancelWork(RESPONSE)
    assert (done.outcome, done.text, done.heard) == ("failed", CLAUSE, None)
    assert agent.said() == (CLAUSE, "incomplete")


def test_a_failure_that_cannot_pass_is_not_tried_again() -> None:
    assert Agent().fails(HOPELESS)[-1].failure == HOPELESS


def test_a_model_that_says_nothing_has_failed() -> None:
    agent = Agent()
    agent.tokens(" ")
    assert [type(c) for c in agent.generated()] == [CancelWork, Generate]
    assert agent.generated()[-1].failure == NOTHING_GENERATED


def test_a_voice_that_gives_no_sound_has_failed() -> None:
    agent = Agent()
    agent.tokens(CLAUSE, " ")
    assert [type(c) for c in agent.synthesized(1)] == [CancelWork, Generate]
    agent.tokens(CLAUSE, " ")
    assert agent.synthesized(2)[-1].failure == NOTHING_SYNTHESIZED


def test_an_answer_can_fail_before_it_begins() -> None:
    agent = Agent(None)
    started, _, done = agent.does(lambda: agent.answering.refuse(ORDER, BROKEN))
    assert isinstance(started, ResponseStarted)
    assert (done.response_id, done.outcome, done.failure) == (RESPONSE, "failed", BROKEN)


# --- apologies ------------------------------------------------------------------------------------------------------

SORRY = "Sorry, that failed."
MUTE = Failure("tts", "engine_failed", "no voice")


def sorry(order: Order | None = ORDER) -> Agent:
    return Agent(order, apology=SORRY)


def speaks_apology(agent: Agent, segment: int, text: str = SORRY) -> ResponseDone:
    """The apology is synthesised and played; the end of the answer."""
    assert agent.out[-1] == Synthesize(RESPONSE, segment, text, "af_heart", 1.0)
    agent.now += 5.0
    delta, play = agent.sound(segment)
    assert (delta.text, type(play)) == (text, Play)
    agent.synthesized(segment)
    _, done = agent.sent()
    return done


def test_an_answer_that_fails_for_good_ends_in_an_apology() -> None:
    agent = sorry()
    agent.fails()
    agent.fails()
    done = speaks_apology(agent, 1)
    assert (done.outcome, done.failure, done.text, done.latency) == ("failed", BROKEN, SORRY, None)
    assert agent.said() == (SORRY, "incomplete")
    assert not agent.answering.is_active


def test_an_answer_that_breaks_off_is_played_as_far_as_it_goes_and_then_apologised_for() -> None:
    agent = sorry()
    agent.tokens(CLAUSE, REST, " And")
    agent.sound(1)
    agent.sent()
    assert agent.fails() == [], "its second sentence is being synthesised"
    agent.synthesized(1)
    assert agent.out[-1] == Synthesize(RESPONSE, 2, REST, "af_heart", 1.0)
    agent.now += 0.5
    agent.sound(2)
    agent.sent()
    agent.synthesized(2)
    done = speaks_apology(agent, 3, f" {SORRY}")
    assert (done.outcome, done.failure) == ("failed", BROKEN)
    assert done.text == f"{CLAUSE}{REST} {SORRY}"
    assert agent.said()[0] == f"{CLAUSE}{REST} {SORRY}"


def test_a_voice_that_breaks_off_apologises_in_place_of_what_it_should_have_said() -> None:
    agent = sorry()
    agent.tokens(CLAUSE, REST, " And more. ")
    agent.sound(1, word=WordTime(0, 4, 0.0, 0.5))
    agent.sent()
    agent.fails(MUTE)
    done = speaks_apology(agent, 4, f" {SORRY}")
    assert (done.outcome, done.failure) == ("failed", MUTE)
    assert agent.said()[0] == f"Yes, {SORRY}", "half of the clause was spoken"


def test_a_segment_that_never_sounded_leaves_no_words() -> None:
    agent = sorry()
    agent.tokens(CLAUSE, REST, " And more. ")
    agent.sound(1)
    agent.sent()
    agent.synthesized(1)
    agent.fails(MUTE)
    speaks_apology(agent, 4, f" {SORRY}")
    assert agent.said()[0] == f"{CLAUSE} {SORRY}"


def test_without_a_voice_there_is_no_apology() -> None:
    agent = sorry()
    agent.tokens(CLAUSE, " ")
    agent.fails(MUTE)
    agent.tokens(CLAUSE, " ")
    assert agent.fails(MUTE)[-1].failure == MUTE
    assert not agent.answering.is_active
    hopeless = Failure("tts", "bad_request", "no such voice", retryable=False)
    agent = sorry()
    agent.tokens(CLAUSE, " ")
    assert agent.fails(hopeless)[-1].failure == hopeless


def test_an_apology_is_tried_twice_and_its_own_failure_is_not_the_reason() -> None:
    agent = sorry()
    agent.fails()
    agent.fails()
    assert agent.fails(MUTE) == [Synthesize(RESPONSE, 2, SORRY, "af_heart", 1.0)]
    _, done = agent.fails(MUTE)
    assert (done.outcome, done.failure) == ("failed", BROKEN)


def test_a_model_that_goes_on_under_an_apology_changes_nothing() -> None:
    agent = sorry()
    agent.tokens(CLAUSE, REST)
    agent.sound(1)
    agent.sent()
    agent.fails(MUTE)
    assert agent.tokens(" Something else. ") == []
    assert agent.generated() == []
    assert agent.fails() == []
    assert speaks_apology(agent, 2, f" {SORRY}").text == f"{CLAUSE} {SORRY}"


def test_an_apology_can_be_interrupted() -> None:
    agent = sorry()
    agent.fails()
    agent.fails()
    agent.sound(1, 2.0)
    agent.sent()
    agent.interrupted(after_s=0.5)
    assert agent.out[-1].outcome == "interrupted"
    assert not agent.answering.is_active


def test_a_text_answer_has_no_apology() -> None:
    agent = sorry(TEXT_ORDER)
    agent.fails()
    assert agent.fails()[-1].outcome == "failed"


def test_an_answer_that_could_not_begin_is_apologised_for() -> None:
    agent = sorry(None)
    started, spoken = agent.does(lambda: agent.answering.refuse(ORDER, BROKEN))
    assert (started.response_id, spoken) == (RESPONSE, Synthesize(RESPONSE, 1, SORRY, "af_heart", 1.0))
    assert speaks_apology(agent, 1).failure == BROKEN


# --- interruptions --------------------------------------------------------------------------------------------------


def test_an_interruption_keeps_the_words_heard() -> None:
    agent = speaking()
    was_unheard, (cancelled, done) = agent.interrupted(after_s=0.3)
    assert not was_unheard
    assert cancelled == CancelWork(RESPONSE)
    assert (done.outcome, done.heard) == ("interrupted", Heard("Yes,", 300, is_estimated=False))
    assert done.text == CLAUSE
    assert agent.said() == ("Yes,", "incomplete")
    assert not agent.answering.is_audible(agent.now)


def test_an_interruption_before_the_first_word_says_so() -> None:
    agent = speaking()
    was_unheard, (_, done) = agent.interrupted(after_s=0.2)
    assert was_unheard
    assert done.heard == Heard("", 200, is_estimated=False)
    assert agent.said() == ("", "incomplete")


def test_an_interruption_when_all_that_was_sent_was_played_counts_all_of_it() -> None:
    agent = speaking()
    _, (_, done) = agent.interrupted(after_s=9.0)
    assert done.heard == Heard(CLAUSE, 500, is_estimated=False)


def test_the_sound_goes_on_after_the_answer_is_done_and_can_still_be_cut() -> None:
    agent = Agent()
    agent.tokens(CLAUSE)
    agent.generated()
    agent.sound(1, 1.0, WordTime(0, 4, 0.0, 0.25))
    agent.synthesized(1)
    assert isinstance(agent.sent()[-1], ResponseDone)
    assert agent.answering.is_audible(agent.now + 0.99)
    was_unheard, out = agent.interrupted(after_s=0.5)
    assert (was_unheard, out) == (False, [ItemTruncated(ITEM, 500)])
    assert agent.said() == ("Yes,", "incomplete")


def test_an_interrupted_text_answer_keeps_what_was_shown() -> None:
    agent = Agent(TEXT_ORDER)
    agent.tokens("Yes, of ")
    _, (_, done) = agent.interrupted()
    assert done.heard is None
    assert agent.said() == ("Yes, of", "incomplete")


def test_a_client_s_cancel_lets_what_was_sent_sound_to_its_end() -> None:
    agent = speaking()
    agent.sound(2)
    cancelled, done = agent.does(lambda: agent.answering.cancel_wish(None, None))
    assert cancelled == CancelWork(RESPONSE)
    assert (done.outcome, done.heard) == ("client_cancelled", None)
    assert agent.said() == (CLAUSE, "incomplete")
    assert agent.answering.is_audible(agent.now + 0.4)
    assert agent.answering.deadline is None


def test_only_the_response_under_way_can_be_cancelled() -> None:
    agent = speaking()
    (refusal,) = agent.does(lambda: agent.answering.cancel_wish(ResponseId("resp_0_99"), "event_1"))
    assert (refusal.code, refusal.event_id) == ("response_cancel_not_active", "event_1")
    assert agent.answering.is_active
    assert agent.does(lambda: agent.answering.cancel_wish(RESPONSE, None))[-1].outcome == "client_cancelled"
    (refusal,) = agent.does(lambda: agent.answering.cancel_wish(None, None))
    assert isinstance(refusal, Refused)


# --- the client's own word on what was heard ------------------------------------------------------------------------


def test_the_client_s_truncation_supersedes_the_server_s_up_and_down() -> None:
    agent = speaking()
    agent.interrupted(after_s=0.2)
    assert agent.said()[0] == ""
    assert agent.truncated(260) == [ItemTruncated(ITEM, 260)]
    assert agent.said() == ("Yes,", "incomplete")
    agent.truncated(240)
    assert agent.said()[0] == ""
    version = agent.history.version
    agent.truncated(500)
    assert agent.said()[0] == CLAUSE
    assert agent.history.version == version + 1


def test_a_truncation_past_the_end_is_clamped_to_what_was_sent() -> None:
    agent = speaking()
    agent.interrupted(after_s=0.3)
    assert agent.truncated(99_000) == [ItemTruncated(ITEM, 500)]
    assert agent.said()[0] == CLAUSE


def test_a_truncation_in_the_tail_ends_the_sound() -> None:
    agent = speaking()
    agent.does(agent.answering.cancel)
    agent.now += 0.3
    agent.truncated(300)
    assert not agent.answering.is_audible(agent.now)
    assert agent.interrupted(after_s=0.1) == (False, [])
    assert agent.said() == ("Yes,", "incomplete"), "the client's word stands"


def test_a_truncation_of_the_answer_under_way_outlasts_its_end() -> None:
    agent = speaking()
    agent.truncated(300)
    assert agent.answering.is_active
    agent.does(agent.answering.cancel)
    assert agent.said() == ("Yes,", "incomplete")


def test_the_client_s_word_outlasts_an_interruption_too() -> None:
    agent = speaking()
    agent.truncated(300)
    _, (_, done) = agent.interrupted(after_s=0.5)
    assert done.heard == Heard("Yes,", 300, is_estimated=False)
    assert agent.said()[0] == "Yes,"


def test_what_cannot_be_truncated_is_refused() -> None:
    agent = speaking()
    refusals = [*agent.truncated(-1), *agent.truncated(0, ItemId("nobody"))]
    assert [(r.code, r.param, r.event_id) for r in refusals] == [
        ("invalid_value", "audio_end_ms", "event_1"),
        ("item_not_found", "item_id", "event_1"),
    ]
    assert agent.history.get(ITEM).status == "in_progress"


def test_a_written_answer_cannot_be_truncated() -> None:
    agent = Agent(TEXT_ORDER)
    agent.tokens("Yes")
    assert [r.code for r in agent.truncated(0)] == ["item_not_truncatable"]


def test_closing_cancels_the_work_under_way() -> None:
    agent = speaking()
    assert agent.does(agent.answering.close) == [CancelWork(RESPONSE)]
    assert agent.does(agent.answering.close) == []
