"""Functions that the agent calls, over the wire: when they are told, and what goes wrong with them."""

from typing import Any

import pytest
from session.calls import Call, calling, scripted
from session.virtual import virtual_time

from deployments.interfaces import NO_TOOLS, ChatMessage, Tool, ToolCall, Tools, ToolsNotSupported
from deployments.options import ScriptedLlm
from serve_app.session.options import SessionOptions
from serve_app.session.stages import Calls, TimeLimits, ToolCallDelta

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather.",
    "parameters": SCHEMA,
}
WEATHER_TOOL = Tool(
    "get_weather", "The weather.", '{"type":"object","properties":{"city":{"type":"string"}}}'
)
PARIS = '{"city":"Paris"}'
CALLING = ScriptedLlm(answers=("", "It is {output}."), calls=(PARIS,))
CALL_KINDS = [
    "response.output_item.added",
    "conversation.item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


class Asked:
    """A chat model that keeps what it was asked."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.asked: list[tuple[list[ChatMessage], Tools]] = []

    @property
    def active(self) -> int:
        return int(self._engine.active)

    def generate(self, messages: Any, *, sampling: Any, tools: Tools = NO_TOOLS) -> Any:
        self.asked.append((list(messages), tools))
        return self._engine.generate(messages, sampling=sampling, tools=tools)


def gives(call: Call, call_id: str, output: str) -> None:
    item = {"type": "function_call_output", "call_id": call_id, "output": output}
    call.send({"type": "conversation.item.create", "event_id": "given", "item": item})


@virtual_time
async def test_a_spoken_question_a_call_its_output_and_a_spoken_answer():
    engines = scripted(llm=CALLING)
    chat = Asked(engines.chat)
    async with calling(engines=scripted(chat=chat)) as call:
        call.configure(tools=[WEATHER])
        assert (await call.until("session.updated"))["session"]["tools"] == [WEATHER]
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
        assert call.kinds()[-len(CALL_KINDS) :] == CALL_KINDS
        (item,) = done["response"]["output"]
        assert (item["type"], item["name"], item["arguments"]) == ("function_call", "get_weather", PARIS)
        gives(call, item["call_id"], "sunny")
        call.send({"type": "response.create"})
        await call.until("response.done", count=2)
    assert call.outcomes() == ["completed", "completed"]
    assert call.history()[-2:] == [("tool", "sunny"), ("assistant", "It is sunny.")]
    assert call.player.sounds, "the answer is spoken"
    question = ChatMessage("user", "tell me something")
    system = ChatMessage("system", "Be brief.")
    made = ToolCall(item["call_id"], "get_weather", PARIS)
    assert chat.asked == [
        ([system, question], Tools((WEATHER_TOOL,))),
        (
            [
                system,
                question,
                ChatMessage("assistant", "", (made,)),
                ChatMessage("tool", "sunny", call_id=made.call_id),
            ],
            Tools((WEATHER_TOOL,)),
        ),
    ]


@virtual_time
async def test_calls_follow_the_last_sound_of_the_words_before_them():
    llm = ScriptedLlm(answers=("Let me see what the weather is.",), calls=(PARIS, "{}"))
    async with calling(engines=scripted(llm=llm)) as call:
        call.configure(tools=[WEATHER])
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
    told = call.times("response.function_call_arguments.done")
    assert min(told) >= max(call.times("response.output_audio.delta"))
    output = done["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    assert len({item["call_id"] for item in output[1:]}) == 2


@virtual_time
async def test_who_breaks_in_before_a_call_is_in_time():
    llm = ScriptedLlm(
        answers=("I will now cancel each and every one of all your orders.", "Fine."), calls=(PARIS,)
    )
    async with calling(engines=scripted(llm=llm)) as call:
        call.configure(tools=[WEATHER])
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta", count=8)
        call.configure(tool_choice="none")
        call.says(for_s=0.5)
        await call.until("response.done", count=2)
    assert call.outcomes() == ["cancelled", "completed"]
    assert not call.all("response.function_call_arguments.done")


@virtual_time
async def test_a_named_function_is_the_only_one_offered_and_must_be_called():
    engines = scripted(llm=ScriptedLlm(answers=("",)))
    chat = Asked(engines.chat)
    async with calling(engines=scripted(chat=chat), microphone=False) as call:
        call.configure(tools=[WEATHER, {"type": "function", "name": "get_time"}])
        choice = {"type": "function", "name": "get_time"}
        call.send({"type": "response.create", "response": {"tool_choice": choice}})
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]}
        call.send({"type": "conversation.item.create", "item": item})
        await call.until("response.done")
        call.send({"type": "response.create", "response": {"tool_choice": choice}})
        done = await call.until("response.done", count=2)
    assert done["response"]["output"][0]["name"] == "get_time"
    assert [(tool.name) for tool in chat.asked[-1][1].offered] == ["get_time"]
    assert chat.asked[-1][1].must_call


@virtual_time
async def test_what_cannot_be_taken_is_an_error_and_nothing_else_is_lost():
    async with calling(engines=scripted(llm=CALLING)) as call:
        call.configure(tools=[WEATHER])
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
        gives(call, "unknown", "sunny")
        call.configure(tools=[{"type": "function", "name": "f", "parameters": {"type": "string"}}])
        call.configure(tool_choice={"type": "function", "name": "f"})
        gives(call, done["response"]["output"][0]["call_id"], "sunny")
        await call.until(lambda: len(call.errors()) == 3)
        call.send({"type": "response.create"})
        await call.until("response.done", count=2)
    assert [(error["code"], error["param"]) for error in call.errors()] == [
        ("call_not_found", "item.call_id"),
        ("invalid_value", "session.tools[0].parameters"),
        ("invalid_value", "session.tool_choice"),
    ]
    assert call.errors()[0]["event_id"] == "given"
    assert call.history()[-1] == ("assistant", "It is sunny.")


class CannotCall:
    """An engine without tools; it has no calls to count."""

    active = 0

    async def generate(self, messages: Any, *, sampling: Any, tools: Tools = NO_TOOLS) -> Any:
        raise ToolsNotSupported("no tools here", stage="llm", engine="some")
        yield


@virtual_time
async def test_an_engine_without_tools_says_so_and_is_not_asked_again():
    async with calling(engines=scripted(chat=CannotCall())) as call:
        call.configure(tools=[WEATHER])
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
    details = done["response"]["status_details"]
    assert (done["response"]["status"], details["error"]["code"]) == ("failed", "tools_not_supported")
    assert len(call.all("response.created")) == 1


@virtual_time
async def test_a_call_that_is_none_is_tried_once_more_and_fails():
    llm = ScriptedLlm(answers=("",), calls=('{"city":',))
    engines = scripted(llm=llm)
    async with calling(engines=engines) as call:
        call.configure(tools=[WEATHER])
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
    error = done["response"]["status_details"]["error"]
    assert (error["code"], done["response"]["output"]) == ("engine_failed", [])
    assert "get_weather" in error["message"]
    assert engines.chat.started == 2


@virtual_time
async def test_a_server_that_holds_a_call_back_has_the_time_of_a_first_token():
    """Four seconds between two tokens."""
    llm = ScriptedLlm(answers=("One two",), calls=(PARIS,), tokens_per_s=0.25)
    options = SessionOptions(time_limits=TimeLimits(llm_first_token_s=5.0, llm_gap_s=1.0))
    for tools, status in (([WEATHER], "completed"), ([], "failed")):
        async with calling(engines=scripted(llm=llm), options=options) as call:
            call.configure(tools=tools)
            call.says(at=0.5, for_s=0.5)
            done = await call.until("response.done")
        assert done["response"]["status"] == status


# --- pieces ---------------------------------------------------------------------------------------------------------


def pieces(*given: ToolCallDelta) -> Calls:
    calls = Calls()
    for piece in given:
        calls.add(piece)
    return calls


def test_a_call_is_put_together_from_its_pieces():
    calls = pieces(
        ToolCallDelta(1, "b", "g"),
        ToolCallDelta(0, "a", "f", '{"x"'),
        ToolCallDelta(0, arguments=":1}"),
    )
    assert calls.whole(was_cut=False) == [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", "{}")]


@pytest.mark.parametrize("arguments", ['{"x"', "[1]", "null", "x"])
def test_what_the_token_limit_cut_is_left_out(arguments: str):
    calls = pieces(ToolCallDelta(0, "a", "f", "{}"), ToolCallDelta(1, "b", "g", arguments))
    assert calls.whole(was_cut=True) == [ToolCall("a", "f", "{}")]
