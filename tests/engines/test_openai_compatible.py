"""The HTTP engine against llama.cpp's own server, and against a server that does everything wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from deployments import models
from deployments.engines import create
from deployments.engines.openai_compatible import OpenAICompatibleChatModel
from deployments.interfaces import (
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    Sampling,
    ToolCall,
    Tools,
    ToolsNotSupported,
    Usage,
)
from deployments.options import LlmOptions

from .calling import MUST_CALL, TOOLS, WEATHER, calls_in, weather_of
from .support import RELEASE_S, cancelled_after, collected

QUESTION = [ChatMessage("system", "You are brief."), ChatMessage("user", "Hello")]
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass
class Server:
    """A server that answers each request with what `respond` writes."""

    respond: Callable[[asyncio.StreamWriter], Awaitable[None]]
    url: str = ""
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Head and body of each request."""
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
        self.requests.append((head, json.loads(await reader.readexactly(int(length.split(":")[1])))))
        try:
            async with asyncio.TaskGroup() as both:
                answering = both.create_task(self._answer(writer))
                await reader.read()
                self.hung_up.set()
                answering.cancel()
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        await self.respond(writer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(*lines: str, then_wait: bool = False, head: str = STREAM) -> AsyncIterator[Server]:
    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        for line in lines:
            writer.write(f"{line}\n\n".encode())
            await writer.drain()
        if then_wait:
            await asyncio.sleep(60)

    server = Server(respond)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener:
        yield server


def data(**chunk: object) -> str:
    return f"data: {json.dumps(chunk)}"


def text(content: str | None, finish_reason: str | None = None) -> str:
    return data(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}])


async def ask(url: str, **options: Any) -> list[ChatDelta]:
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=url, model="some-model", **options)
    )
    try:
        return await collected(engine.generate(QUESTION, sampling=Sampling(max_tokens=9, seed=3)))
    finally:
        await engine.aclose()


async def test_an_answer_arrives_as_deltas_and_ends_with_reason_and_usage() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    lines = [
        ": comment",
        text(None),
        text("Hel"),
        text("lo"),
        text(None, "stop"),
        data(choices=[], usage=usage),
    ]
    async with serving(*lines, "data: [DONE]") as server:
        deltas = await ask(server.url)
    assert deltas == [
        ChatDelta("Hel"),
        ChatDelta("lo"),
        ChatDelta("", finish_reason="stop", usage=Usage(5, 2)),
    ]


async def test_the_request_is_that_of_the_openai_api() -> None:
    async with serving(text("x", "length"), "data: [DONE]") as server:
        assert (await ask(server.url, api_key="secret"))[-1].finish_reason == "length"
    (head, body), *_ = server.requests
    assert head.startswith("POST /v1/chat/completions ")
    assert "authorization: bearer secret" in head.lower()
    assert body == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Hello"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.95,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
    }


async def test_without_a_key_none_is_sent() -> None:
    async with serving(text("x", "stop")) as server:
        await ask(server.url)
    assert "authorization" not in server.requests[0][0].lower()


@pytest.mark.parametrize("ending", [["data: [DONE]"], []])
async def test_a_stream_that_named_its_reason_is_whole_with_or_without_done(ending: list[str]) -> None:
    async with serving(text("Hi"), text("", "stop"), *ending) as server:
        assert [delta.text for delta in await ask(server.url)] == ["Hi", ""]


async def test_done_without_a_reason_is_a_stop() -> None:
    async with serving(text("Hi"), "data: [DONE]") as server:
        assert (await ask(server.url))[-1] == ChatDelta("", finish_reason="stop")


async def test_text_in_pieces_of_any_cut_stays_whole() -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        for byte in (STREAM + f"{text('Grüße 😀', 'stop')}\n\ndata: [DONE]\n\n").encode():
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving() as server:
        server.respond = respond
        assert "".join(delta.text for delta in await ask(server.url)) == "Grüße 😀"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([text("Once upon")], "mid-answer"),
        ([], "mid-answer"),
        (["<html>a proxy</html>"], "mid-answer"),
        (["data: {oops"], "not one of chat completions"),
        (["data: []"], "not one of chat completions"),
        ([data(choices=[{"delta": 1}])], "not one of chat completions"),
        ([text("a"), data(error={"message": "out of memory"})], "out of memory"),
    ],
)
async def test_a_stream_that_breaks_is_an_engine_that_failed(lines: list[str], said: str) -> None:
    async with serving(*lines) as server:
        with pytest.raises(EngineFailed, match=said):
            await ask(server.url)


async def test_a_connection_that_breaks_in_mid_answer_is_an_engine_that_failed() -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5000\r\n\r\n"
    async with serving(text("Once upon"), head=head) as server:
        with pytest.raises(EngineFailed, match="broke off"):
            await ask(server.url)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (404, BadRequest),
        (422, BadRequest),
        (429, EngineBusy),
        (503, EngineBusy),
        (401, EngineFailed),
        (500, EngineFailed),
        (502, EngineFailed),
        (302, EngineFailed),
    ],
)
async def test_each_status_has_its_error(status: int, kind: type[EngineError]) -> None:
    body = json.dumps({"error": {"message": "because of the moon"}})
    head = f"HTTP/1.1 {status} Some\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    async with serving(head=head) as server:
        with pytest.raises(kind) as raised:
            await ask(server.url)
    assert type(raised.value) is kind
    assert ("llm.api_key_env" if status == 401 else "because of the moon") in raised.value.message


async def test_an_error_in_mid_stream_has_the_kind_of_its_code() -> None:
    async with serving(text("a"), data(error={"code": 503, "message": "overloaded"})) as server:
        with pytest.raises(EngineBusy, match="overloaded"):
            await ask(server.url)


@pytest.mark.parametrize("body", ["", "plain words", '{"error": "a string"}', '{"detail": "else"}', "[1]"])
async def test_a_reason_of_any_shape_is_passed_on(body: str) -> None:
    head = f"HTTP/1.1 400 Bad\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    async with serving(head=head) as server:
        with pytest.raises(BadRequest, match=r"400: ."):
            await ask(server.url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "127.0.0.1/v1", "ftp://127.0.0.1/v1"])
async def test_a_server_that_is_not_there_is_told_with_what_to_do(url: str) -> None:
    with pytest.raises(EngineFailed, match=r"correct llm\.base_url"):
        await ask(url)


@pytest.mark.parametrize("options", [{"model": "m"}, {"base_url": "http://127.0.0.1/v1"}])
def test_what_is_not_configured_is_told_at_construction(options: dict[str, str]) -> None:
    with pytest.raises(EngineFailed, match=r"write llm\."):
        create(LlmOptions(engine="openai_compatible", **options))


async def test_cancelling_hangs_up() -> None:
    async with serving(text("Once"), then_wait=True) as server:
        assert await cancelled_after(0.3, ask(server.url)) < RELEASE_S
        async with asyncio.timeout(10):
            await server.hung_up.wait()


async def test_closing_the_stream_hangs_up() -> None:
    async with serving(text("Once"), then_wait=True) as server:
        engine: OpenAICompatibleChatModel = create(
            LlmOptions(engine="openai_compatible", base_url=server.url, model="m")
        )
        async with aclosing(engine.generate(QUESTION, sampling=Sampling())) as stream:
            assert await anext(stream) == ChatDelta("Once")
        async with asyncio.timeout(10):
            await server.hung_up.wait()
        await engine.aclose()


@pytest.fixture(scope="module")
def llama_server() -> Iterator[tuple[str, str]]:
    """URL and key of llama.cpp's HTTP server, which xllamacpp starts with every model."""
    path = models.locate(LlmOptions(model=models.EMBEDDED_CHAT_MODEL))
    if path is None:
        pytest.skip(models.missing(LlmOptions(model=models.EMBEDDED_CHAT_MODEL)))
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = str(path), 512, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys, params.endpoint_slots = ["secret"], True
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1", "secret"
    # A server that is destroyed before its loop runs hangs: a call waits for the loop.
    server.handle_chat_completions(
        '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}', lambda _: None
    )
    del server


async def test_it_talks_to_the_server_of_llama_cpp(llama_server: tuple[str, str]) -> None:
    url, key = llama_server
    deltas = await ask(url, api_key=key)
    assert "".join(delta.text for delta in deltas).strip()
    last = deltas[-1]
    assert last.finish_reason in ("stop", "length")
    assert last.usage
    assert 0 < last.usage.output_tokens <= 9


async def test_the_server_of_llama_cpp_refuses_a_wrong_key(llama_server: tuple[str, str]) -> None:
    with pytest.raises(EngineFailed, match="refuses the key"):
        await ask(llama_server[0], api_key="wrong")


async def test_the_server_of_llama_cpp_refuses_what_does_not_fit(llama_server: tuple[str, str]) -> None:
    url, key = llama_server
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=url, model="m", api_key=key)
    )
    with pytest.raises(BadRequest, match="context"):
        await collected(engine.generate([ChatMessage("user", "word " * 2000)], sampling=Sampling()))
    await engine.aclose()


async def is_generating(url: str, key: str) -> bool:
    """What the server of llama.cpp itself says of its slots."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
        slots = (await client.get(f"{url.removesuffix('/v1')}/slots")).json()
    return any(slot["is_processing"] for slot in slots)


async def test_cancelling_stops_the_server_of_llama_cpp(llama_server: tuple[str, str]) -> None:
    url, key = llama_server
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=url, model="m", api_key=key)
    )
    story = [ChatMessage("user", "Tell me a very long story about a dragon.")]
    async with aclosing(engine.generate(story, sampling=Sampling(max_tokens=450, seed=1))) as stream:
        await anext(stream)
        assert await is_generating(url, key)
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        while await is_generating(url, key):
            await asyncio.sleep(0.02)
    assert asyncio.get_running_loop().time() - started < 1.0, "450 tokens take 2.5 s and more"
    await engine.aclose()


# --- the window -----------------------------------------------------------------------------------------------------

TALK = [
    ChatMessage("system", "You are brief."),
    *(ChatMessage(role, f"{role} {i} " + "word " * 20) for i in range(20) for role in ("user", "assistant")),
    ChatMessage("user", "And now?"),
]


async def sent(server: Server, **options: Any) -> list[str]:
    """The messages that reach the server, by their first words."""
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=server.url, model="m", **options)
    )
    try:
        await collected(engine.generate(TALK, sampling=Sampling(max_tokens=50)))
    finally:
        await engine.aclose()
    return [" ".join(m["content"].split()[:2]) for m in server.requests[-1][1]["messages"]]


async def test_with_a_window_the_oldest_turns_are_not_sent() -> None:
    async with serving(text("x", "stop")) as server:
        messages = await sent(server, context_tokens=500)
    assert messages[0] == "You are"
    assert messages[1].startswith("user ")
    assert messages[-3:] == ["user 19", "assistant 19", "And now?"]
    assert 5 < len(messages) < 15


async def test_without_a_window_everything_is_sent() -> None:
    async with serving(text("x", "stop")) as server:
        assert len(await sent(server)) == len(TALK)


async def test_a_question_that_is_longer_than_the_window_is_not_sent() -> None:
    async with serving(text("x", "stop")) as server:
        with pytest.raises(BadRequest, match="exceeds the available context size of 15"):
            await sent(server, context_tokens=15)
        assert not server.requests


# --- functions ------------------------------------------------------------------------------------------------------


def piece(*calls: dict[str, Any], finish_reason: str | None = None) -> str:
    delta = {"content": None, "tool_calls": list(calls)}
    return data(choices=[{"index": 0, "delta": delta, "finish_reason": finish_reason}])


def function(arguments: object, name: str | None = None, **fields: object) -> dict[str, Any]:
    return {"function": {"arguments": arguments} | ({"name": name} if name else {}), **fields}


async def call(url: str, tools: Tools = TOOLS, messages: Sequence[ChatMessage] = QUESTION) -> list[ChatDelta]:
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=url, model="some-model")
    )
    try:
        return await collected(engine.generate(messages, sampling=Sampling(), tools=tools))
    finally:
        await engine.aclose()


async def test_a_call_arrives_piece_by_piece() -> None:
    lines = [
        text("Let me see."),
        piece(function("", "get_weather", index=0, id="c1", type="function")),
        piece(function('{"city":', index=0)),
        piece(function('"Rome"}', index=0)),
        piece(function("{}", "get_weather", index=1, id="c2")),
        piece(finish_reason="tool_calls"),
    ]
    async with serving(*lines, "data: [DONE]") as server:
        deltas = await call(server.url)
    assert deltas[0] == ChatDelta("Let me see.")
    assert calls_in(deltas) == [
        ToolCall("c1", "get_weather", '{"city":"Rome"}'),
        ToolCall("c2", "get_weather", "{}"),
    ]
    assert deltas[-1] == ChatDelta("", finish_reason="stop")


@pytest.mark.parametrize("index", [{}, {"index": 0}])
async def test_servers_that_send_calls_whole_need_not_number_them(index: dict[str, int]) -> None:
    """As Ollama does; arguments as an object are seen too."""
    lines = [
        piece(function({"city": "Rome"}, "get_weather", id="c1", **index)),
        piece(function("{}", "get_time", id="c2", **index)),
        piece(finish_reason="stop"),
    ]
    async with serving(*lines) as server:
        made = calls_in(await call(server.url))
    assert made == [ToolCall("c1", "get_weather", '{"city": "Rome"}'), ToolCall("c2", "get_time", "{}")]


async def test_tools_and_calls_are_written_as_openai_does() -> None:
    messages = weather_of("Paris")
    async with serving(text("x", "stop")) as server:
        await call(server.url, MUST_CALL, messages)
        await call(server.url, Tools(), messages)
    (_, body), (_, without) = server.requests
    arguments = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "idParis", "type": "function", "function": arguments}],
        },
        {"role": "tool", "content": "Sunny.", "tool_call_id": "idParis"},
    ]
    schema = json.loads(WEATHER.parameters)
    written = {"name": "get_weather", "description": "The weather in a city.", "parameters": schema}
    assert body["tools"] == [{"type": "function", "function": written}]
    assert body["tool_choice"] == "required"
    assert "tools" not in without
    assert "tool_choice" not in without


@pytest.mark.parametrize(
    "reason",
    [
        "registry.ollama.ai/library/gemma:2b does not support tools",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "tools param requires --jinja flag",
    ],
)
async def test_a_server_that_cannot_call_is_known_by_its_words(reason: str) -> None:
    body = json.dumps({"error": {"message": reason}})
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with serving(head=head) as server:
        with pytest.raises(ToolsNotSupported):
            await call(server.url)


async def test_a_stream_with_a_broken_call_is_no_stream() -> None:
    async with serving(piece({"function": "f"})) as server:
        with pytest.raises(EngineFailed, match="not one of chat completions"):
            await call(server.url)
