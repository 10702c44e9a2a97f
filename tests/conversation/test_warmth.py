"""The language model reads ahead what was changed behind its back, once, and only while nobody is answered."""

from dataclasses import replace

import pytest
from conversation.script import LEAD_S, Delays, World

from serve_app.conversation.commands import Generate, Message, Prefill, ResponseDone, TranscriptCompleted
from serve_app.conversation.events import (
    AudioCommitted,
    CancelRequested,
    Closed,
    ItemCreated,
    ItemDeleted,
    ResponseRequested,
    ServerVad,
    SessionConfigured,
    Settings,
)
from serve_app.conversation.parameters import Parameters

AFTER_S = 1 / 8
WARMING = Parameters(playout_lead_s=LEAD_S, prefill_after_s=AFTER_S)
SYSTEM = Message("system", "Be brief.")
SHORT = "Yes, of course I can."


def world(**fields: object) -> World:
    one = World(**({"parameters": WARMING, "settings": Settings(instructions="Be brief.")} | fields))  # type: ignore[arg-type]
    one.tick()
    return one


def prompts(one: World) -> list[tuple[Message, ...]]:
    return [command.messages for command in one.all(Prefill)]


def configured(one: World, **changes: object) -> None:
    one.tell(SessionConfigured(replace(one.conversation.settings, **changes)))  # type: ignore[arg-type]


def test_the_instructions_are_read_when_the_session_starts() -> None:
    one = world(settings=Settings(instructions="Be brief."))
    assert one.conversation.deadline() == AFTER_S
    assert prompts(one) == []
    one.is_silent(2)
    assert prompts(one) == [(SYSTEM,)]
    assert one.times(Prefill) == [AFTER_S]


def test_no_instructions_are_not_read() -> None:
    one = world(settings=Settings())
    one.is_silent(1)
    assert prompts(one) == []


def test_reading_ahead_can_be_turned_off() -> None:
    one = world(parameters=Parameters(playout_lead_s=LEAD_S))
    one.tell(ItemCreated("system", "The guest is Ann."))
    one.is_silent(1)
    assert prompts(one) == []
    assert one.conversation.deadline() is None


def test_a_burst_of_changes_is_read_once() -> None:
    one = world()
    configured(one, instructions="Be long.")
    for text in ("My name is Ann.", "I like tea."):
        one.wait(AFTER_S / 2)
        one.tell(ItemCreated("user", text))
    one.is_silent(1)
    assert prompts(one) == [(Message("system", "Be long."), Message("user", "My name is Ann. I like tea."))]


def test_the_prompt_is_bounded_as_the_answers_will_be() -> None:
    one = world()
    configured(one, instructions="Be long.", max_output_tokens=17)
    one.is_silent(1)
    assert one.only(Prefill).max_output_tokens == 17


def test_what_changes_no_prompt_is_not_read() -> None:
    one = world()
    one.is_silent(1)
    configured(one, voice="bella", speed=1.5)
    one.tell(ItemDeleted("nobody"))  # type: ignore[arg-type]
    one.speaks(1 / 8, "")
    one.is_silent(2)
    assert len(prompts(one)) == 1


def test_an_answer_given_whole_leaves_nothing_to_read() -> None:
    one = world()
    one.is_silent(1)
    for words in ("hello there", "and again"):
        one.asks(words)
        one.is_silent(12)
    assert [done.outcome for done in one.all(ResponseDone)] == ["completed"] * 2
    assert len(prompts(one)) == 1


def test_a_cut_answer_is_read_as_it_was_heard() -> None:
    one = world()
    one.is_silent(1)
    one.asks()
    one.until_heard(3)
    one.speaks(1.0, "no stop")
    heard = one.history()[1][1]
    assert prompts(one)[1:] == [(SYSTEM, Message("user", "what is the time"), Message("assistant", heard))]
    interrupted_at = one.times(ResponseDone)[0]
    assert one.times(Prefill)[1] == interrupted_at + AFTER_S


def test_the_clients_own_word_on_a_cut_is_read_and_not_the_servers_guess() -> None:
    one = world()
    one.is_silent(1)
    one.asks()
    one.until_heard(4)
    one.speaks(1 / 8, "no")
    item_id = one.only(ResponseDone).item_id
    one.truncates(item_id, 300)
    one.speaks(1 / 2, "stop")
    assert len(prompts(one)) == 2
    assert prompts(one)[1][-1] == Message("assistant", one.history()[1][1])
    assert len(one.history()[1][1].split()) == 1


def test_a_cut_in_the_tail_is_read() -> None:
    one = world(reply=SHORT)
    one.is_silent(1)
    one.asks()
    one.until(lambda: bool(one.all(ResponseDone)))
    one.speaks(1.0, "stop it")
    assert len(prompts(one)) == 2
    assert prompts(one)[1][-1].text != SHORT


def test_an_answer_cancelled_before_its_first_word_is_read() -> None:
    one = world(delays=Delays(first_token_s=4.0))
    one.is_silent(1)
    one.asks()
    one.tell(CancelRequested())
    one.is_silent(1)
    assert prompts(one)[1:] == [(SYSTEM, Message("user", "what is the time"))]


def test_an_answer_with_instructions_of_its_own_leaves_the_sessions_to_be_read() -> None:
    one = world(reply=SHORT)
    one.is_silent(1)
    one.tell(ItemCreated("user", "Hello."))
    one.tell(ResponseRequested(instructions="Speak French."))
    one.is_silent(6)
    assert [done.outcome for done in one.all(ResponseDone)] == ["completed"]
    assert prompts(one)[1:] == [(SYSTEM, Message("user", "Hello."), Message("assistant", SHORT))]


@pytest.mark.parametrize("stage", ["llm", "tts"])
def test_a_failed_answer_of_which_nothing_was_said_changes_nothing(stage: str) -> None:
    one = world()
    one.is_silent(1)
    one.failing[stage] = 2
    one.asks()
    one.is_silent(4)
    assert [done.outcome for done in one.all(ResponseDone)] == ["failed"]
    assert len(prompts(one)) == 1


def test_items_put_in_and_taken_out_are_read() -> None:
    one = world()
    one.is_silent(1)
    one.tell(ItemCreated("system", "The guest is Ann.", "mine"))  # type: ignore[arg-type]
    one.is_silent(1)
    one.tell(ItemDeleted("mine"))  # type: ignore[arg-type]
    one.is_silent(1)
    assert [len(prompt) for prompt in prompts(one)] == [1, 2, 1]


def test_an_item_that_is_asked_about_at_once_is_not_read_ahead() -> None:
    one = world()
    one.is_silent(1)
    one.tell(ItemCreated("user", "Hello."))
    one.wait(AFTER_S / 2)
    one.tell(ResponseRequested())
    one.is_silent(12)
    assert len(prompts(one)) == 1
    assert len(one.all(Generate)) == 1


def test_nothing_is_read_while_words_or_an_answer_are_awaited() -> None:
    one = world(vad=None, delays=Delays(stt_s=1.0, first_token_s=1.0))
    one.is_silent(1)
    one.speaks(0.5, "hello there")
    one.tell(AudioCommitted())
    one.tell(ResponseRequested())
    one.tell(ItemCreated("system", "The guest is Ann."))
    one.is_silent(1.5)
    assert len(prompts(one)) == 1
    configured(one, instructions="Be long.")
    one.is_silent(12)
    generated, read = one.times(Generate)[0], one.times(Prefill)
    assert len(read) == 2
    assert read[1] > one.times(ResponseDone)[0] > generated
    assert prompts(one)[1][0] == Message("system", "Be long.")


def test_words_that_nobody_answers_are_read() -> None:
    """The client will ask for the answer when it is ready for it."""
    one = world(vad=ServerVad(create_response=False))
    one.is_silent(1)
    one.speaks(0.5, "hello there")
    one.until(lambda: bool(one.all(TranscriptCompleted)))
    one.is_silent(1)
    assert prompts(one)[1:] == [(SYSTEM, Message("user", "hello there"))]


def test_a_draft_goes_before_reading_and_has_read_what_came_before_it() -> None:
    quick = Delays(stt_s=1 / 32, first_token_s=1 / 32, first_audio_s=1 / 32)
    one = world(parameters=replace(WARMING, drafts_per_turn=3, prefill_after_s=1.0), delays=quick)
    one.speaks(0.5, "please call")
    one.is_silent(0.375)
    assert len(one.all(Generate)) == 1
    one.speaks(3.0, "stella")
    assert prompts(one) == []


def test_closing_forgets_it() -> None:
    one = world()
    one.tell(Closed())
    one.wait(1)
    assert prompts(one) == []
    assert one.conversation.deadline() is None


def test_instructions_that_were_gone_for_a_while_are_not_read_again() -> None:
    one = world()
    for instructions in ("Be brief.", "", "Be brief."):
        configured(one, instructions=instructions)
        one.is_silent(1)
    assert len(prompts(one)) == 1
