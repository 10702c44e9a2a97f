"""`/v1/chat/completions`: what is asked of the engine, what is refused, and how an answer ends."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingress.asgi import server_of
from rest.wire import events_in, http_of
from session.calls import scripted

from deployments.interfaces import (
    ChatDelta,
    ChatMessage,
    Sampling,
    Tool,
    ToolCall,
    ToolCallDelta,
    Tools,
    Usage,
)
from deployments.options import ScriptedLlm
from serve_app.rest.chat import StopSequences

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA},
}
WEATHER_TOOL = Tool("get_weather", "The weather.", json.dumps(SCHEMA, separators=(",", ":")))
PARIS = '{"city":"Paris"}'
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}],
}
OUTPUT = {"role": "tool", "tool_call_id": "c1", "content": "Sunny."}


class Recording:
    """Gives its deltas, and remembers what it was asked."""

    def __init__(self, *deltas: ChatDelta) -> None:
        self.deltas = deltas or (ChatDelta("Yes.", "stop", Usage(1, 1)),)
        self.messages: list[ChatMessage] = []
        self.sampling = Sampling()
        self.tools = Tools()
        self.given = 0

    async def generate(self, messages: Any, *, sampling: Sampling, tools: Tools) -> Any:
        self.messages, self.sampling, self.tools = list(messages), sampling, tools
        for delta in self.deltas:
            self.given += 1
            yield delta


async def ask(chat: Any = None, **fields: Any) -> Any:
    engines = scripted(llm=ScriptedLlm(first_token_s=0, tokens_per_s=1e6), **({"chat": chat} if chat else {}))
    server = server_of(engines=engines, llm={"engine": "scripted", "context_tokens": 1000, "max_tokens": 77})
    async with http_of(server) as http:
        return await http.post("/v1/chat/completions", json={"messages": HELLO, **fields})


async def test_the_engine_is_asked_what_the_client_asked():
    chat = Recording()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None},
        {"role": "user", "content": "d", "name": "Ann"},
    ]
    response = await ask(
        chat, messages=messages, temperature=0, top_p=0.5, max_tokens=5, seed=7, user="u", stop=None
    )
    assert response.status_code == 200
    assert [(m.role, m.content) for m in chat.messages] == [
        ("system", "Be brief."),
        ("user", "a\nb"),
        ("assistant", "c"),
        ("user", "d"),
    ]
    assert chat.sampling == Sampling(5, 0.0, 0.5, 7)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({}, 77), ({"max_completion_tokens": 500}, 500), ({"max_tokens": 5000}, 1000)],
)
async def test_an_answer_is_as_long_as_configured_or_asked_and_never_over_the_window(
    fields: dict[str, int], tokens: int
):
    chat = Recording()
    await ask(chat, **fields)
    assert chat.sampling == Sampling(tokens, 0.7, 0.95)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hello"}, "invalid_type", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].tool_call_id"),
        (
            {"messages": [*HELLO, CALLS, OUTPUT | {"tool_call_id": "c2"}]},
            "invalid_value",
            "messages[2].tool_call_id",
        ),
        ({"messages": [*HELLO, CALLS]}, "invalid_value", "messages"),
        ({"messages": [*HELLO, CALLS, *HELLO, OUTPUT]}, "invalid_value", "messages"),
        ({"messages": [CALLS | {"role": "user"}, OUTPUT]}, "invalid_value", "messages[0].tool_calls"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "["}}],
                    }
                ]
            },
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "invalid_value",
            "messages[1].content",
        ),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "invalid_value", "messages[0].content"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": -1}, "invalid_value", "top_p"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"n": 2}, "not_supported", "n"),
        ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {}}]},
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "invalid_value",
            "tools[0].function.name",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "invalid_value",
            "tools[0].function.parameters",
        ),
        ({"tools": [WEATHER, WEATHER]}, "invalid_value", "tools"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "invalid_value", "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "invalid_value",
            "tool_choice",
        ),
        ({"response_format": {"type": "json_object"}}, "not_supported", "response_format"),
        ({"modalities": ["text", "audio"]}, "not_supported", "modalities"),
        ({"logprobs": True}, "not_supported", "logprobs"),
        ({"presence_penalty": 0.5}, "not_supported", "presence_penalty"),
    ],
)
async def test_what_cannot_be_done_is_refused(fields: dict[str, Any], code: str, param: str):
    response = await ask(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"


async def test_fields_at_their_defaults_and_unknown_ones_pass():
    neutral = {
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "user": "someone",
        "store": False,
        "temperature": None,
        "parallel_tool_calls": True,
    }
    assert (await ask(**neutral)).status_code == 200


# --- the stream -----------------------------------------------------------------------------------------------------


async def test_the_chunks_of_a_stream():
    chat = Recording(ChatDelta("One "), ChatDelta("two."), ChatDelta("", "stop", Usage(3, 2)))
    response = await ask(chat, stream=True, stream_options={"include_usage": True}, model="m")
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last, done = events_in(response.text)
    assert done == "[DONE]"
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert last["choices"] == []
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "One "},
        {"content": "two."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["id"] for chunk in [*chunks, last]} == {last["id"]}
    assert {chunk["model"] for chunk in chunks} == {"m"}


async def test_a_stream_that_was_not_asked_for_its_usage_has_none():
    chunks = events_in((await ask(Recording(), stream=True)).text)
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_an_engine_that_ends_without_a_reason_has_stopped():
    response = await ask(Recording(ChatDelta("One")))
    [choice] = response.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("One", "stop")
    assert response.json()["usage"] is None


# --- functions ------------------------------------------------------------------------------------------------------


async def test_the_model_gets_the_tools_and_what_came_of_its_calls():
    chat = Recording()
    response = await ask(chat, tools=[WEATHER], messages=[*HELLO, CALLS, OUTPUT])
    assert response.status_code == 200
    assert chat.tools == Tools((WEATHER_TOOL,))
    assert chat.messages == [
        ChatMessage("user", "hello"),
        ChatMessage("assistant", "", (ToolCall("c1", "get_weather", PARIS),)),
        ChatMessage("tool", "Sunny.", call_id="c1"),
    ]


OTHER = {"type": "function", "function": {"name": "other"}}
OTHER_TOOL = Tool("other", "", '{"type":"object","properties":{}}')


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        (None, Tools((WEATHER_TOOL, OTHER_TOOL))),
        ("auto", Tools((WEATHER_TOOL, OTHER_TOOL))),
        ("none", Tools()),
        ("required", Tools((WEATHER_TOOL, OTHER_TOOL), must_call=True)),
        ({"type": "function", "function": {"name": "other"}}, Tools((OTHER_TOOL,), must_call=True)),
    ],
)
async def test_a_choice_of_tools_is_what_the_model_may_call(choice: Any, tools: Tools):
    chat = Recording()
    await ask(chat, tools=[WEATHER, OTHER], tool_choice=choice)
    assert chat.tools == tools


CALLING = [
    ChatDelta("Let me see."),
    ChatDelta("", call=ToolCallDelta(0, "c1", "get_weather", '{"city":')),
    ChatDelta("", call=ToolCallDelta(0, arguments='"Paris"}')),
    ChatDelta("", call=ToolCallDelta(1, "", "get_weather", "{}")),
    ChatDelta("", "stop", Usage(3, 2)),
]


async def test_calls_in_an_answer_that_is_sent_whole():
    [choice] = (await ask(Recording(*CALLING), tools=[WEATHER])).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    first, second = choice["message"]["tool_calls"]
    assert first == {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}}
    assert second["id"].startswith("call_"), "a client needs an id, whether the engine has one or not"
    [only_calls] = (await ask(Recording(*CALLING[1:]), tools=[WEATHER])).json()["choices"]
    assert only_calls["message"]["content"] is None


async def test_calls_in_a_stream_come_piece_by_piece():
    response = await ask(Recording(*CALLING), tools=[WEATHER], stream=True)
    *chunks, done = events_in(response.text)
    assert done == "[DONE]"
    _, said, first, more, second, end = [chunk["choices"][0] for chunk in chunks]
    assert said["delta"] == {"content": "Let me see."}
    assert first["delta"]["tool_calls"] == [
        {
            "index": 0,
            "id": "c1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":'},
        }
    ]
    assert more["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": '"Paris"}'}}]
    assert second["delta"]["tool_calls"][0]["id"].startswith("call_")
    assert (end["delta"], end["finish_reason"]) == ({}, "tool_calls")


async def test_an_answer_cut_in_a_call_says_length():
    chat = Recording(CALLING[1], ChatDelta("", "length"))
    [choice] = (await ask(chat, tools=[WEATHER])).json()["choices"]
    assert choice["finish_reason"] == "length"


# --- stop sequences -------------------------------------------------------------------------------------------------


async def test_a_stop_sequence_ends_the_answer_and_the_engines_work():
    chat = Recording(*[ChatDelta(piece) for piece in ("One. ", "Two", ". En", "d. Three.", " Four.")])
    response = await ask(chat, stop="End")
    [choice] = response.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("One. Two. ", "stop")
    assert chat.given == 4


async def test_text_that_only_looked_like_a_stop_sequence_is_given():
    chat = Recording(ChatDelta("An En"), ChatDelta("glish En", "length"))
    response = await ask(chat, stop=["End", "nothing"])
    [choice] = response.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("An English En", "length")


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=4),
)
def test_stop_sequences_cut_as_on_the_whole_text_and_hold_back_no_more_than_they_must(
    pieces: list[str], stops: list[str]
):
    sequences, out, is_over, pushed = StopSequences(stops), "", False, ""
    for piece in pieces:
        pushed += piece
        text, is_over = sequences.push(piece)
        out += text
        if is_over:
            break
        assert any(stop.startswith(pushed[len(out) :]) for stop in stops) or out == pushed
    found = [at for at in (pushed.find(stop) for stop in stops) if at >= 0]
    assert is_over == bool(found)
    assert (out if is_over else out + sequences.flush()) == pushed[: min(found, default=len(pushed))]
