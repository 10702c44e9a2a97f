"""An answer begun before the turn has ended: confirmed it costs no time, dropped it leaves no trace."""

import pytest
from conversation.script import LEAD_S, Delays, World

from serve_app.conversation.commands import (
    CancelWork,
    Generate,
    Notice,
    Play,
    ResponseDone,
    ResponseStarted,
    Synthesize,
    TranscriptCompleted,
)
from serve_app.conversation.events import (
    Closed,
    ItemCreated,
    ResponseRequested,
    ServerVad,
    SessionConfigured,
    Settings,
)
from serve_app.conversation.parameters import Parameters

DRAFTING = Parameters(playout_lead_s=LEAD_S, drafts_per_turn=3)
QUICK = Delays(stt_s=1 / 32, first_token_s=1 / 32, first_audio_s=1 / 32)


def world(**fields: object) -> World:
    return World(
        **({"parameters": DRAFTING, "delays": QUICK, "reply": "Well, that is easy. Ten minutes."} | fields)
    )  # type: ignore[arg-type]


def ends_of(one: World) -> list[str]:
    return [done.outcome for done in one.all(ResponseDone)]


def test_a_draft_that_was_right_makes_the_answer_sound_at_the_endpoint() -> None:
    slow = Delays(stt_s=1 / 32, first_token_s=1 / 8, first_audio_s=1 / 8)
    drafted, undrafted = world(delays=slow), world(delays=slow, parameters=Parameters(playout_lead_s=LEAD_S))
    for one in (drafted, undrafted):
        one.speaks(0.5, "hello there")
        one.is_silent(6)
        assert ends_of(one) == ["completed"]
        assert len(one.all(Generate)) == 1
    assert drafted.all(ResponseStarted)[0].was_drafted
    assert not undrafted.all(ResponseStarted)[0].was_drafted
    with_draft, without = (one.all(ResponseDone)[0].latency for one in (drafted, undrafted))
    assert with_draft is not None
    assert without is not None
    assert with_draft.total == pytest.approx(with_draft.endpointing)
    assert without.total == pytest.approx(without.endpointing + 1 / 8 + 1 / 8 + without.first_segment)
    assert drafted.history() == undrafted.history()


def test_nothing_of_a_draft_is_told_before_the_turn_has_ended() -> None:
    one = world()
    one.speaks(0.5, "hello there")
    one.is_silent(0.4)
    assert len(one.all(Generate)) == 1
    assert len(one.all(Synthesize)) == 1, "the first segment only"
    told = [command for _, command in one.log if isinstance(command, Notice | Play)]
    assert [type(command).__name__ for command in told] == ["SpeechStarted"]


def test_a_draft_to_half_a_sentence_leaves_no_trace() -> None:
    one = world()
    one.speaks(0.5, "please call")
    one.is_silent(0.4)
    [wrong] = one.all(Generate)
    one.speaks(0.5, "stella")
    one.is_silent(6)
    dropped = [work for work in one.all(CancelWork) if work.response_id == wrong.response_id]
    assert len(dropped) == 1
    assert dropped[0].wasted_tokens > 0
    [started] = one.all(ResponseStarted)
    assert started.response_id != wrong.response_id
    assert [c.text for c in one.all(TranscriptCompleted)] == ["please call stella"]
    assert {play.response_id for play in one.all(Play)} == {started.response_id}
    assert one.all(Generate)[-1].messages[-1].text == "please call stella"


def test_at_most_so_many_drafts_are_made_of_a_turn() -> None:
    one = world()
    for word in ("one", "two", "three", "four", "five"):
        one.speaks(0.3, word)
        one.is_silent(0.3)
    assert len(one.all(Generate)) == 3
    one.is_silent(6)
    assert ends_of(one) == ["completed"]
    assert len(one.all(Generate)) == 4


def test_a_draft_that_failed_is_forgotten_and_the_answer_still_has_its_second_chance() -> None:
    one = world()
    one.failing["llm"] = 2
    one.speaks(0.5, "hello there")
    one.is_silent(5)
    assert len(one.all(Generate)) == 3
    assert ends_of(one) == ["completed"]


def test_what_changes_the_question_meanwhile_makes_the_draft_worthless() -> None:
    one = world()
    one.speaks(0.5, "hello there")
    one.is_silent(0.4)
    one.tell(ItemCreated("system", "Speak French."))
    one.is_silent(6)
    [started] = one.all(ResponseStarted)
    assert not started.was_drafted
    assert len(one.all(Generate)) == 2
    assert ends_of(one) == ["completed"]


def test_a_request_of_the_client_goes_before_a_draft() -> None:
    one = world()
    one.speaks(0.5, "hello there")
    one.is_silent(0.3)
    one.tell(ResponseRequested(instructions="Say hello."))
    one.is_silent(6)
    assert len(one.all(ResponseStarted)) == len(one.all(ResponseDone)) == 2
    assert not one.all(ResponseStarted)[0].was_drafted


@pytest.mark.parametrize(
    "settings",
    [
        Settings(modality="text", turn_detection=ServerVad()),
        Settings(turn_detection=ServerVad(create_response=False)),
        Settings(turn_detection=None),
    ],
)
def test_no_draft_where_no_spoken_answer_will_follow(settings: Settings) -> None:
    one = world()
    one.tell(SessionConfigured(settings))
    one.speaks(0.5, "hello there")
    one.is_silent(0.4)
    assert one.all(Generate) == []


def test_closing_stops_a_draft() -> None:
    one = world()
    one.speaks(0.5, "hello there")
    one.is_silent(0.4)
    [draft] = one.all(Generate)
    one.tell(Closed())
    assert one.all(CancelWork)[-1].response_id == draft.response_id
