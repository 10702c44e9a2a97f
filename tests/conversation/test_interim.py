"""The transcript while the user still speaks: only words that are there to stay, and never in the way of a final one."""

from conversation.script import LEAD_S, Delays, World

from serve_app.conversation.commands import (
    CancelTranscription,
    Transcribe,
    TranscriptCompleted,
    TranscriptGrown,
)
from serve_app.conversation.parameters import Parameters

GROWING = Parameters(playout_lead_s=LEAD_S, interim_s=0.5)
WORDS = "one two three four five six seven eight"


def grown(world: World) -> str:
    return "".join(notice.delta for notice in world.all(TranscriptGrown))


def test_words_that_agree_twice_are_shown_while_the_user_speaks() -> None:
    world = World(parameters=GROWING)
    world.speaks(4.0, WORDS)
    interims = [work for work in world.all(Transcribe) if work.is_interim]
    assert len(interims) >= 4
    assert {work.start for work in interims} == {interims[0].start}, "each from the beginning of the turn"
    assert WORDS.startswith(grown(world))
    assert 3 <= len(grown(world).split()) < 8
    world.is_silent(3)
    assert [notice.text for notice in world.all(TranscriptCompleted)] == [WORDS]


def test_words_that_change_are_not_shown() -> None:
    world = World(parameters=GROWING)
    world.hears = lambda said: " ".join(reversed(said.split()))
    world.speaks(3.0, WORDS)
    assert grown(world) == ""


def test_none_is_made_where_none_is_wanted() -> None:
    world = World()
    world.speaks(3.0, WORDS)
    assert world.all(Transcribe) == []


def test_the_first_silence_takes_the_place_of_an_interim() -> None:
    world = World(parameters=GROWING, delays=Delays(stt_s=0.5))
    world.speaks(0.6, "one two")
    world.is_silent(0.2)
    first, second = world.all(Transcribe)
    assert (first.is_interim, second.is_interim) == (True, False)
    assert [work.transcription_id for work in world.all(CancelTranscription)] == [first.transcription_id]


def test_a_slow_engine_is_asked_less_often() -> None:
    asked = []
    for stt_s in (0.05, 1.0):
        world = World(parameters=GROWING, delays=Delays(stt_s=stt_s))
        world.speaks(8.0, WORDS)
        asked.append(len(world.all(Transcribe)))
    assert asked[0] >= 12
    assert 3 <= asked[1] <= 5


def test_an_engine_without_room_for_interims_costs_nothing_but_them() -> None:
    world = World(parameters=GROWING)
    world.failing["stt"] = 3
    world.speaks(4.0, WORDS)
    world.is_silent(3)
    assert [notice.text for notice in world.all(TranscriptCompleted)] == [WORDS]
