"""A second opinion on the end of a turn: it moves the wait where the wait follows the words, and decides nothing alone."""

import pytest
from conversation.script import LEAD_S, Delays, World

from serve_app.conversation.commands import JudgeTurn, SpeechStarted, SpeechStopped, TurnCommitted
from serve_app.conversation.endpointing import WAITS, EndpointingPolicy
from serve_app.conversation.events import JudgementId, ServerVad, TurnJudged
from serve_app.conversation.parameters import Parameters

JUDGING = Parameters(playout_lead_s=LEAD_S, judges_turns=True)
MEDIUM = ServerVad(eagerness="medium", create_response=False)


def world(opinion: float | None, *, vad: ServerVad = MEDIUM, parameters: Parameters = JUDGING) -> World:
    one = World(vad=vad, parameters=parameters)
    one.opinion = opinion
    return one


def waited(one: World, words: str = "two cats") -> float:
    """From the last word to the commit."""
    one.speaks(0.5, words)
    last = one.now
    one.is_silent(4)
    [at] = one.times(TurnCommitted)
    return at - last


def test_it_is_asked_for_at_each_pause_of_a_turn_with_its_last_eight_seconds() -> None:
    one = world(None)
    one.speaks(9.0, "on and on")
    one.is_silent(0.2)
    one.speaks(0.5, "and on")
    one.is_silent(0.2)
    first, second = one.all(JudgeTurn)
    assert first.judgement_id != second.judgement_id
    assert second.stop - second.start == 8 * 16_000
    assert second.stop <= one.position


def test_it_is_not_given_sound_from_before_the_turn() -> None:
    one = world(None)
    one.is_silent(3)
    one.speaks(0.5, "yes")
    one.is_silent(0.2)
    [asked] = one.all(JudgeTurn)
    [started] = one.all(SpeechStarted)
    assert asked.start // 16 == started.audio_start_ms


def test_what_sounds_complete_is_waited_for_less_and_what_does_not_longer() -> None:
    alone, complete, incomplete = (waited(world(opinion)) for opinion in (None, 1.0, 0.0))
    assert complete < alone < incomplete


def test_it_is_not_asked_where_the_silence_is_fixed_or_no_model_is_there() -> None:
    fixed = world(1.0, vad=ServerVad(create_response=False))
    assert waited(fixed) == waited(world(None, vad=ServerVad(create_response=False)))
    assert fixed.all(JudgeTurn) == []
    without = world(1.0, parameters=Parameters(playout_lead_s=LEAD_S))
    assert waited(without) == waited(world(None))
    assert without.all(JudgeTurn) == []


def test_an_opinion_on_a_pause_that_is_over_counts_for_nothing() -> None:
    for late in (JudgementId(1), JudgementId(99)):
        one = world(None)
        one.speaks(0.5, "two")
        one.is_silent(0.2)
        one.speaks(0.25, "cats")
        one.tell(TurnJudged(late, 1.0))
        one.is_silent(0.2)
        one.tell(TurnJudged(late, 1.0))
        last = one.now - 6 / 32
        one.is_silent(4)
        assert one.times(TurnCommitted)[0] - last == pytest.approx(waited(world(None)))


def test_an_opinion_that_comes_late_still_ends_a_turn_that_waits() -> None:
    slow = World(vad=MEDIUM, parameters=JUDGING, delays=Delays(opinion_s=0.4))
    slow.opinion = 1.0
    assert waited(slow) < waited(world(None))


def test_it_never_decides_alone() -> None:
    """However sure it is: no turn without silence, and none goes on past the longest wait."""
    one = world(1.0)
    one.speaks(3.0, "on and on and on")
    assert one.all(SpeechStopped) == []
    for eagerness, waits in WAITS.items():
        policy = EndpointingPolicy(0, eagerness)
        for words in ("Yes.", "two cats", "well and", None):
            for opinion in (0.0, 0.5, 1.0):
                assert waits.finished * 16 <= policy.delay(words, opinion) <= waits.open * 16
            assert policy.delay(words, 0.5) == policy.delay(words)
            assert policy.delay(words, 1.0) <= policy.delay(words) <= policy.delay(words, 0.0)
        assert policy.delay("well and", 1.0) > policy.delay("two cats")
        assert policy.delay("two cats", 1.0) > policy.delay("Yes.")
    assert (
        EndpointingPolicy(500).delay("two cats", 1.0) == EndpointingPolicy(500).delay("two cats", 0.0) == 8000
    )
