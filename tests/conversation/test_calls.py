"""Functions that the agent calls: when a call is told, what is left of one that was cut, and what a model learns of it."""

import pytest
from conversation.script import LEAD_S, Delays, World

from serve_app.conversation.commands import (
    CallMade,
    CancelWork,
    Command,
    Generate,
    Item,
    ItemAdded,
    ItemRemoved,
    Message,
    Play,
    Refused,
    ResponseDone,
    ResponseStarted,
)
from serve_app.conversation.events import (
    Call,
    CallGenerated,
    CallId,
    CancelRequested,
    GenerationFinished,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ResponseRequested,
    Settings,
    Tool,
    ToolChoice,
)
from serve_app.conversation.history import NO_OUTPUT_YET, History
from serve_app.conversation.parameters import Parameters

WEATHER, TIME = Tool("get_weather"), Tool("get_time")
WITH_TOOLS = Settings(tools=(WEATHER, TIME))


def world(*, calls: tuple[str, ...] = ("get_weather",), reply: str = "", **fields: object) -> World:
    one = World(**({"settings": WITH_TOOLS, "reply": reply} | fields))  # type: ignore[arg-type]
    one.calls = calls
    return one


def called(one: World) -> list[CallMade]:
    return [made for done in one.all(ResponseDone) for made in done.calls]


def gives_output(one: World, output: str = "Sunny.", *, call_id: CallId | None = None) -> list[Command]:
    call_id = called(one)[-1].call.call_id if call_id is None else call_id
    return one.tell(ItemCreated("tool", output, output_of=call_id))


# --- when a call is told --------------------------------------------------------------------------------------------


def test_an_answer_that_only_calls_is_complete_and_is_not_owed_again() -> None:
    one = world()
    one.asks("what is the weather")
    one.is_silent(5)
    done = one.only(ResponseDone)
    (made,) = done.calls
    assert (done.outcome, done.text, made.call.name, made.call.arguments) == (
        "completed",
        "",
        "get_weather",
        "{}",
    )
    assert one.conversation.history.get(made.item.item_id) == made.item
    assert made.previous_item_id == one.conversation.history.items()[0].item_id
    assert len(one.all(ResponseStarted)) == 1
    assert one.history() == [("user", "what is the weather"), ("assistant", "")]


def test_words_before_a_call_sound_first() -> None:
    one = world(reply="Let me see what the weather is.", calls=("get_weather", "get_time"))
    one.asks()
    one.is_silent(5)
    done = one.only(ResponseDone)
    assert [made.call.name for made in done.calls] == ["get_weather", "get_time"]
    assert one.times(ResponseDone)[0] >= one.times(Play)[-1]
    message, first, second = one.conversation.history.items()[1:]
    assert message.text == "Let me see what the weather is."
    assert [made.previous_item_id for made in done.calls] == [message.item_id, first.item_id]
    assert second == done.calls[1].item


@pytest.mark.parametrize("words_heard", [0, 3])
def test_whoever_interrupts_the_words_before_a_call_is_in_time(words_heard: int) -> None:
    one = world(reply="I will now cancel all of your orders.")
    one.asks()
    if words_heard:
        one.until_heard(words_heard)
    one.calls = ()
    one.speaks(0.5, "no wait")
    done = one.last(ResponseDone)
    assert (done.outcome, done.calls) == ("interrupted", ())
    assert all(item.call is None for item in one.conversation.history.items())
    one.is_silent(8)
    assert called(one) == []


def test_a_call_that_was_told_stays_when_the_words_before_it_are_cut() -> None:
    one = world(reply="Let me see what the weather is.", parameters=Parameters(playout_lead_s=2.0))
    one.asks()
    one.until(lambda: bool(one.all(ResponseDone)))
    assert one.listener.plays_until > one.now, "it still sounds"
    one.speaks(0.3, "hello")
    message, call = one.conversation.history.items()[1:3]
    assert message.status == "incomplete"
    assert call.call is not None
    assert len(message.text.split()) < 7


def test_a_call_of_an_answer_that_the_client_cancelled_was_never_made() -> None:
    one = world(reply="Let me see what the weather is.")
    one.asks()
    one.until_heard(2)
    one.tell(CancelRequested())
    assert one.last(ResponseDone).outcome == "client_cancelled"
    one.is_silent(4)
    assert called(one) == []


def test_an_answer_that_was_tried_again_calls_once() -> None:
    one = world(reply="Let me see.")
    one.failing["tts"] = 1
    one.asks()
    one.is_silent(5)
    assert len(one.all(Generate)) == 2
    assert len(called(one)) == 1


def test_an_answer_cut_by_the_token_limit_keeps_the_calls_that_were_whole() -> None:
    one = world(reply="Let me see.")
    one.finish_reason = "length"
    one.asks()
    one.is_silent(5)
    assert one.outcomes() == ["incomplete"]
    assert len(called(one)) == 1


def test_a_limit_that_cut_the_only_call_leaves_an_incomplete_answer() -> None:
    one = world(calls=())
    one.finish_reason = "length"
    one.asks()
    one.is_silent(5)
    assert one.outcomes() == ["incomplete"]
    assert len(one.all(Generate)) == 1


def test_a_cough_that_cuts_the_answer_to_an_output_does_not_swallow_it() -> None:
    one = world()
    one.asks("what is the weather")
    one.is_silent(2)
    gives_output(one)
    one.calls, one.reply, one.delays.first_token_s = (), "It is sunny.", 1.0
    one.tell(ResponseRequested())
    one.is_silent(0.25)
    one.speaks(0.25)  # no words
    one.is_silent(6)
    assert one.outcomes() == ["completed", "interrupted", "completed"]
    assert one.history()[-1] == ("assistant", "It is sunny.")


# --- drafts ---------------------------------------------------------------------------------------------------------

DRAFTING = Parameters(playout_lead_s=LEAD_S, drafts_per_turn=3)
QUICK = Delays(stt_s=1 / 32, first_token_s=1 / 32, first_audio_s=1 / 32)


def test_a_draft_calls_nothing_before_it_is_an_answer() -> None:
    one = world(parameters=DRAFTING, delays=QUICK)
    one.speaks(0.5, "what is the weather")
    one.is_silent(0.4)
    assert len(one.all(Generate)) == 1
    assert one.all(ResponseStarted) == one.all(ResponseDone) == []
    assert one.history() == []
    one.is_silent(1)
    assert one.only(ResponseStarted).was_drafted
    assert len(called(one)) == 1


def test_the_call_of_a_wrong_draft_leaves_no_trace() -> None:
    one = world(parameters=DRAFTING, delays=QUICK)
    one.speaks(0.5, "cancel")
    one.is_silent(0.4)
    one.calls, one.reply = (), "All right."
    one.speaks(0.5, "nothing")
    one.is_silent(5)
    assert len(one.all(CancelWork)) == 1
    assert called(one) == []
    assert one.history() == [("user", "cancel nothing"), ("assistant", "All right.")]


# --- what the model is offered --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "offered", "must_call"),
    [
        (None, (WEATHER, TIME), False),
        (ToolChoice("none"), (), False),
        (ToolChoice("required"), (WEATHER, TIME), True),
        (ToolChoice(function="get_time"), (TIME,), True),
        (ToolChoice(function="gone"), (WEATHER, TIME), False),
    ],
)
def test_a_choice_is_what_is_offered(
    choice: ToolChoice | None, offered: tuple[Tool, ...], must_call: bool
) -> None:
    one = world()
    one.tell(ResponseRequested(tool_choice=choice))
    generate = one.last(Generate)
    assert (generate.tools, generate.must_call) == (offered, must_call)


def test_a_response_may_have_tools_of_its_own() -> None:
    one = world()
    one.tell(ResponseRequested(tools=(Tool("other"),)))
    assert one.last(Generate).tools == (Tool("other"),)
    one.is_silent(3)
    one.tell(ResponseRequested(tools=(), tool_choice=ToolChoice("required")))
    assert (one.last(Generate).tools, one.last(Generate).must_call) == ((), False)


# --- the client's side ----------------------------------------------------------------------------------------------


def test_the_output_of_a_call_goes_to_the_model() -> None:
    one = world(reply="Let me see.")
    one.asks("what is the weather")
    one.is_silent(3)
    (added,) = gives_output(one)
    assert isinstance(added, ItemAdded)
    assert len(one.all(ResponseStarted)) == 1, "an answer to it is asked for"
    one.calls, one.reply = (), "It is sunny."
    one.tell(ResponseRequested())
    call = called(one)[0].call
    assert one.last(Generate).messages == (
        Message("user", "what is the weather"),
        Message("assistant", "Let me see.", (call,)),
        Message("tool", "Sunny.", output_of=call.call_id),
    )
    one.is_silent(3)
    assert one.outcomes() == ["completed", "completed"]


def test_who_speaks_while_the_function_works_is_answered() -> None:
    one = world()
    one.asks("what is the weather")
    one.is_silent(2)
    one.calls, one.reply = (), "One moment."
    one.asks("are you there")
    call = called(one)[0].call
    assert one.last(Generate).messages[1:] == (
        Message("assistant", "", (call,)),
        Message("tool", NO_OUTPUT_YET, output_of=call.call_id),
        Message("user", "are you there"),
    )


def test_what_cannot_be_taken_is_refused_and_nothing_else_changes() -> None:
    one = world()
    one.asks("what is the weather")
    one.is_silent(2)
    before = one.conversation.history.items()
    call = called(one)[0].call
    assert gives_output(one, call_id=CallId("nobody's")) == [
        Refused("call_not_found", 'there is no call "nobody\'s"', "item.call_id", None)
    ]
    (taken,) = one.tell(ItemCreated("assistant", "", call=call, event_id="e1"))
    assert isinstance(taken, Refused)
    assert (taken.code, taken.event_id) == ("call_id_taken", "e1")
    assert one.conversation.history.items() == before
    gives_output(one)
    (again,) = gives_output(one, "Rainy.")
    assert isinstance(again, Refused)
    assert again.code == "call_has_output"


def test_an_engines_id_that_is_taken_is_replaced() -> None:
    one = world()
    for _ in range(2):
        one.tell(ResponseRequested())
        response_id = one.last(ResponseStarted).response_id
        one.tell(CallGenerated(response_id, CallId("call_0"), "get_time", "{}"))
        one.tell(CallGenerated(response_id, None, "get_time", "{}"))
        one.tell(GenerationFinished(response_id, "stop", None))
    ids = [made.call.call_id for made in called(one)]
    assert ids[0] == "call_0"
    assert len(set(ids)) == 4


def test_an_output_whose_call_was_deleted_is_told_no_more() -> None:
    one = world()
    one.asks("what is the weather")
    one.is_silent(2)
    gives_output(one)
    assert one.tell(ItemDeleted(called(one)[0].item.item_id)) == [ItemRemoved(called(one)[0].item.item_id)]
    assert one.conversation.history.messages("") == (Message("user", "what is the weather"),)


# --- the history by itself ------------------------------------------------------------------------------------------

A, B = Call(CallId("a"), "f", "{}"), Call(CallId("b"), "g", "{}")


def history(*items: Item) -> History:
    made = History()
    for item in items:
        made.append(item)
    return made


def words(name: str, role: str, text: str) -> Item:
    return Item(ItemId(name), role, text, "text")  # type: ignore[arg-type]


def call(call: Call) -> Item:
    return Item(ItemId(f"call {call.call_id}"), "assistant", "", "text", call=call)


def output(call: Call, text: str = "done") -> Item:
    return Item(ItemId(f"output {call.call_id}"), "tool", text, "text", output_of=call.call_id)


def told(call: Call, text: str = "done") -> Message:
    return Message("tool", text, output_of=call.call_id)


def test_calls_made_together_are_one_message_and_their_outputs_follow_in_order() -> None:
    made = history(words("u", "user", "go"), call(A), call(B), output(B, "second"), output(A, ""))
    assert made.messages("") == (
        Message("user", "go"),
        Message("assistant", "", (A, B)),
        told(A, ""),
        told(B, "second"),
    )


def test_a_call_after_an_output_is_a_message_of_its_own() -> None:
    made = history(call(A), output(A), call(B), output(B))
    assert made.messages("") == (
        Message("assistant", "", (A,)),
        told(A),
        Message("assistant", "", (B,)),
        told(B),
    )


def test_words_after_a_call_do_not_join_it() -> None:
    made = history(call(A), words("w", "assistant", "Done."), output(A))
    assert made.messages("") == (Message("assistant", "", (A,)), told(A), Message("assistant", "Done."))


def test_calls_and_outputs_change_what_a_model_is_told() -> None:
    made = history(call(A), output(A, ""))
    assert made.version == 2
    made.remove(ItemId("output a"))
    assert made.version == 3
    assert made.last_role() == "assistant"
    assert made.messages("")[-1] == told(A, NO_OUTPUT_YET)
