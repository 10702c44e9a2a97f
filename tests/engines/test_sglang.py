"""The SGLang engine: over a stand-in for `sglang.Engine` everywhere, over the real one in `make test-sglang`."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import jinja2
import pytest

from deployments import models
from deployments.engines import create, sglang
from deployments.engines.sglang import SglangChatModel
from deployments.interfaces import (
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    HealthChecked,
    Sampling,
    ToolCall,
    Tools,
    ToolsNotSupported,
    Usage,
)
from deployments.options import LlmOptions

from .calling import MUST_CALL, TOOLS, WEATHER, calls_in, weather_of
from .support import RELEASE_S, cancelled_after, collected

QUESTION = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hello")]


class Tokenizer:
    """A token a word, and one a message."""

    chat_template = "some"

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: object) -> list[int]:
        self.seen = conversation, options.pop("tools", None)
        assert options == {"add_generation_prompt": True, "return_dict": False, "enable_thinking": False}
        if [turn["role"] for turn in conversation] == ["system"]:
            raise jinja2.TemplateError("no user message")
        return [0] * sum(1 + len(turn["content"].split()) for turn in conversation)


class Engine:
    """Answers as `answer` says; keeps what it was asked."""

    answer: Callable[[], AsyncIterator[dict[str, Any]]]
    failure: Exception | None = None
    tokenizer: Any = Tokenizer()

    def __init__(self, **arguments: object) -> None:
        if self.failure:
            raise self.failure
        self.arguments = arguments
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.is_shut_down = False
        self.tokenizer_manager = SimpleNamespace(tokenizer=self.tokenizer, abort_request=self.aborted.append)
        facts = {"max_req_input_len": 100, "max_total_num_tokens": 500}
        self._scheduler_init_result = SimpleNamespace(scheduler_infos=[facts])

    async def async_generate(self, **request: Any) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        return self.answer()

    def shutdown(self) -> None:
        self.is_shut_down = True


def chunk(text: str, finish: dict[str, Any] | None = None, tokens: int = 1) -> dict[str, Any]:
    return {
        "text": text,
        "meta_info": {"finish_reason": finish, "prompt_tokens": 7, "completion_tokens": tokens},
    }


def answering(*chunks: dict[str, Any], then: Exception | None = None, hangs: bool = False) -> Any:
    async def answer(_: Any = None) -> AsyncIterator[dict[str, Any]]:
        for one in chunks:
            yield one
            await asyncio.sleep(0)
        if then:
            raise then
        if hangs:
            await asyncio.sleep(60)

    return answer


STOP = {"type": "stop"}


@pytest.fixture
def options(tmp_path: Path) -> LlmOptions:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    return LlmOptions(
        engine="sglang", model=str(tmp_path), system_prompt="Be brief.", engine_args={"tp_size": 1}
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Engine]:
    """The class that `sglang.Engine` is for the test."""

    class Fake(Engine):
        answer = answering(chunk("Hi"), chunk("Hi there", STOP, tokens=2))

    module = ModuleType("sglang")
    module.Engine = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang", module)
    return Fake


def made(options: LlmOptions) -> tuple[SglangChatModel, Any]:
    model: SglangChatModel = create(options)
    return model, model._engine


async def ask(
    model: SglangChatModel, messages: list[ChatMessage] = QUESTION, **sampling: Any
) -> list[ChatDelta]:
    return await collected(model.generate(messages, sampling=Sampling(**sampling)))


# --- over the stand-in ----------------------------------------------------------------------------------------------


async def test_the_text_so_far_becomes_deltas(fake: type[Engine], options: LlmOptions) -> None:
    model, engine = made(options)
    assert await ask(model) == [
        ChatDelta("Hi"),
        ChatDelta(" there"),
        ChatDelta("", finish_reason="stop", usage=Usage(7, 2)),
    ]
    assert engine.aborted == []


async def test_an_answer_that_was_cut_says_length(fake: type[Engine], options: LlmOptions) -> None:
    fake.answer = answering(chunk("a", {"type": "length", "length": 1}))
    assert (await ask(made(options)[0]))[-1].finish_reason == "length"


async def test_the_engine_gets_its_arguments_and_what_we_rely_on(
    fake: type[Engine], options: LlmOptions
) -> None:
    _, engine = made(options)
    assert engine.arguments == {
        "log_level": "warning",
        "tp_size": 1,
        "model_path": options.model,
        "incremental_streaming_output": False,
    }


async def test_a_request_has_a_full_uuid_and_the_sampling(fake: type[Engine], options: LlmOptions) -> None:
    model, engine = made(options)
    await ask(model, max_tokens=9, temperature=0.5, top_p=0.8)
    await ask(model, seed=3)
    first, second = engine.requests
    assert str(UUID(first["rid"])) == first["rid"] != second["rid"]
    assert first["input_ids"] == [0] * 5
    assert first["stream"] is True
    assert first["sampling_params"] == {"max_new_tokens": 9, "temperature": 0.5, "top_p": 0.8}
    assert second["sampling_params"]["sampling_seed"] == 3


async def test_a_stream_that_is_left_is_aborted_by_its_id(fake: type[Engine], options: LlmOptions) -> None:
    fake.answer = answering(chunk("Once"), hangs=True)
    model, engine = made(options)
    async with aclosing(model.generate(QUESTION, sampling=Sampling())) as deltas:
        assert await anext(deltas) == ChatDelta("Once")
    assert engine.aborted == [engine.requests[0]["rid"]]


async def test_a_cancelled_caller_is_released_and_its_request_aborted(
    fake: type[Engine], options: LlmOptions
) -> None:
    fake.answer = answering(chunk("Once"), hangs=True)
    model, engine = made(options)
    assert await cancelled_after(0.05, ask(model)) < RELEASE_S
    assert engine.aborted == [engine.requests[0]["rid"]]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (503, EngineBusy), (429, EngineBusy), (500, EngineFailed), (None, EngineFailed)],
)
async def test_an_abort_of_the_engine_has_the_kind_of_its_status(
    fake: type[Engine], options: LlmOptions, status: int | None, kind: type[EngineError]
) -> None:
    finish = {"type": "abort", "status_code": status, "message": "the queue is full"}
    fake.answer = answering(chunk("a"), chunk("a", finish))
    with pytest.raises(EngineError, match="the queue is full") as raised:
        await ask(made(options)[0])
    assert type(raised.value) is kind


async def test_what_the_engine_refuses_is_a_bad_request(fake: type[Engine], options: LlmOptions) -> None:
    fake.answer = answering(then=ValueError("top_p must be in (0, 1]"))
    with pytest.raises(BadRequest, match="top_p"):
        await ask(made(options)[0])


async def test_an_answer_that_breaks_off_has_failed(fake: type[Engine], options: LlmOptions) -> None:
    fake.answer = answering(chunk("Once"))
    model, engine = made(options)
    with pytest.raises(EngineFailed, match="broke off"):
        await ask(model)
    assert engine.aborted


@pytest.mark.parametrize(("messages", "max_tokens"), [([], 5), (QUESTION, 0)])
async def test_nothing_asked_is_a_bad_request(
    fake: type[Engine], options: LlmOptions, messages: list[ChatMessage], max_tokens: int
) -> None:
    with pytest.raises(BadRequest):
        await ask(made(options)[0], messages, max_tokens=max_tokens)


async def test_what_the_template_refuses_is_a_bad_request(fake: type[Engine], options: LlmOptions) -> None:
    with pytest.raises(BadRequest, match="no user message"):
        await ask(made(options)[0], QUESTION[:1])


async def test_the_oldest_turns_are_dropped_and_a_newest_that_is_too_long_is_refused(
    fake: type[Engine], options: LlmOptions
) -> None:
    model, engine = made(options)
    talk = [ChatMessage("user", "word " * 9), ChatMessage("assistant", "word " * 9)] * 10
    await ask(model, [*QUESTION[:1], *talk, QUESTION[1]], max_tokens=20)
    assert len(engine.requests[0]["input_ids"]) in range(50, 81)
    with pytest.raises(BadRequest, match=r"103 tokens.*context size of 100"):
        await ask(model, [ChatMessage("user", "word " * 102)])
    assert len(engine.requests) == 1


async def test_a_long_question_gets_the_answer_that_there_is_room_for(
    fake: type[Engine], options: LlmOptions
) -> None:
    model, engine = made(options)
    await ask(model, [ChatMessage("user", "word " * 89)], max_tokens=50)
    assert engine.requests[0]["sampling_params"]["max_new_tokens"] == 10


async def test_the_window_may_be_set_lower(fake: type[Engine], options: LlmOptions) -> None:
    model, _ = made(LlmOptions(engine="sglang", model=options.model, context_tokens=50))
    with pytest.raises(BadRequest, match="context size of 50"):
        await ask(model, [ChatMessage("user", "word " * 60)])


# --- health ---------------------------------------------------------------------------------------------------------


async def test_a_health_check_asks_for_one_token_after_the_system_prompt(
    fake: type[Engine], options: LlmOptions
) -> None:
    model, engine = made(options)
    assert isinstance(model, HealthChecked)
    await model.check_health()
    assert engine.requests[0]["sampling_params"]["max_new_tokens"] == 1
    assert engine.requests[0]["input_ids"] == [0] * 5


async def test_an_engine_that_has_just_spoken_is_not_asked(fake: type[Engine], options: LlmOptions) -> None:
    model, engine = made(options)
    await ask(model)
    await model.check_health()
    assert len(engine.requests) == 1


async def test_an_engine_that_gives_no_token_is_not_healthy(
    fake: type[Engine], options: LlmOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang, "_HEALTH_S", 0.05)
    monkeypatch.setattr(sglang, "_RECENT_S", 0.0)
    model, engine = made(options)
    await model.check_health()
    fake.answer = answering(hangs=True)
    with pytest.raises(EngineFailed, match=r"no token within 0\.05 s"):
        await model.check_health()
    assert engine.aborted == [engine.requests[-1]["rid"]]


# --- the start ------------------------------------------------------------------------------------------------------


async def test_a_start_that_takes_long_says_so(
    fake: type[Engine],
    options: LlmOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sglang, "_TELL_EVERY_S", 0.02)
    begin = fake.__init__

    def slowly(self: Engine, **arguments: object) -> None:
        import time

        time.sleep(0.1)
        begin(self, **arguments)

    monkeypatch.setattr(fake, "__init__", slowly)
    monkeypatch.setattr(sglang, "log", logging.getLogger("of-this-test"))
    with caplog.at_level(logging.INFO):
        made(options)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("sglang: starting with")
    assert any(line.startswith("sglang: still starting after") for line in said)
    assert said[-2].startswith("sglang: ready after")
    assert said[-1] == "sglang: a conversation may have 100 tokens; there is room for 500 at once"


@pytest.mark.parametrize("error", [RuntimeError("no GPU"), TypeError("unexpected argument")])
def test_a_start_that_fails_says_why(fake: type[Engine], options: LlmOptions, error: Exception) -> None:
    fake.failure = error
    with pytest.raises(EngineFailed, match=str(error)):
        create(options)


def test_a_model_without_a_chat_template_is_refused(fake: type[Engine], options: LlmOptions) -> None:
    fake.tokenizer = SimpleNamespace(chat_template=None)
    with pytest.raises(EngineFailed, match="no chat template"):
        create(options)


def test_weights_that_are_not_here_name_the_remedy(fake: type[Engine]) -> None:
    with pytest.raises(EngineFailed, match=models.PULL_COMMAND):
        create(LlmOptions(engine="sglang", model="some-owner/some-model"))


def test_weights_in_parts_must_all_be_here(tmp_path: Path, fake: type[Engine]) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_text("")
    options = LlmOptions(engine="sglang", model=str(tmp_path))
    assert models.locate(options) is None
    (tmp_path / "model-00002-of-00002.safetensors").write_text("")
    assert models.locate(options) == tmp_path


def test_without_the_library_the_remedy_is_told(options: LlmOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(EngineFailed, match=r"constraints-gpu\.txt"):
        create(options)


# --- functions, over a stand-in for SGLang's parser -----------------------------------------------------------------


class FunctionCallParser:
    """Takes `call(...)` for a call, its arguments piece by piece, and holds a half mark back."""

    def __init__(self, tools: list[Any], tool_call_parser: str) -> None:
        if tool_call_parser != "some":
            raise ValueError(f"Unsupported tool_call_parser: {tool_call_parser}")
        self.tools = tools
        self._held = ""

    def parse_stream_chunk(self, text: str) -> tuple[str, list[Any]]:
        if text == "call(":
            return "", [SimpleNamespace(tool_index=0, name="get_weather", parameters="")]
        if text.startswith("{"):
            return "", [SimpleNamespace(tool_index=0, name=None, parameters=text)]
        if text == "<":
            self._held = text
            return "", []
        return text, []

    def parse_stream_end(self) -> tuple[str, list[Any]]:
        return self._held, []


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = ModuleType("protocol")
    protocol.Tool = SimpleNamespace  # type: ignore[attr-defined]
    parsing = ModuleType("parsing")
    parsing.FunctionCallParser = FunctionCallParser  # type: ignore[attr-defined]
    for name in ("srt", "srt.entrypoints", "srt.entrypoints.openai", "srt.function_call"):
        monkeypatch.setitem(sys.modules, f"sglang.{name}", ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.srt.entrypoints.openai.protocol", protocol)
    monkeypatch.setitem(sys.modules, "sglang.srt.function_call.function_call_parser", parsing)


def made_to_call(options: LlmOptions, parser: str = "some") -> tuple[SglangChatModel, Any]:
    return made(replace(options, engine_args={"tool_call_parser": parser}))


async def call(model: SglangChatModel, tools: Tools = TOOLS) -> list[ChatDelta]:
    return await collected(model.generate(weather_of("Rome"), sampling=Sampling(), tools=tools))


async def test_calls_are_read_out_of_the_text(fake: type[Engine], options: LlmOptions, parser: None) -> None:
    texts = ["Let me see.", "call(", '{"city":"Rome"}', "<"]
    so_far = ["".join(texts[: n + 1]) for n in range(len(texts))]
    fake.answer = answering(*map(chunk, so_far), chunk(so_far[-1], STOP, tokens=4))
    model, engine = made_to_call(options)
    deltas = await call(model)
    assert [delta.text for delta in deltas if delta.text] == ["Let me see.", "<"]
    assert calls_in(deltas) == [ToolCall("", "get_weather", '{"city":"Rome"}')]
    assert deltas[-1] == ChatDelta("", finish_reason="stop", usage=Usage(7, 4))
    assert engine.requests[0]["sampling_params"]["skip_special_tokens"] is False


async def test_the_template_gets_tools_and_calls_as_objects(
    fake: type[Engine], options: LlmOptions, parser: None
) -> None:
    model, engine = made_to_call(options)
    await call(model)
    conversation, tools = engine.tokenizer.seen
    assert conversation[1]["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": {"city": "Rome"},
    }
    assert conversation[2] == {"role": "tool", "content": "Sunny.", "tool_call_id": "idRome"}
    assert [tool["function"]["name"] for tool in tools] == ["get_weather"]
    await ask(model)
    assert engine.tokenizer.seen[1] is None


async def test_a_call_that_must_come_is_held_to_its_schema(
    fake: type[Engine], options: LlmOptions, parser: None
) -> None:
    text = '[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
    fake.answer = answering(chunk(text[:20]), chunk(text), chunk(text, STOP, tokens=9))
    model, engine = made_to_call(options)
    deltas = await call(model, MUST_CALL)
    assert calls_in(deltas) == [ToolCall("", "get_weather", '{"city": "Rome"}')]
    assert not any(delta.text for delta in deltas)
    assert deltas[-1].finish_reason == "stop"
    schema = json.loads(engine.requests[0]["sampling_params"]["json_schema"])
    (one,) = schema["items"]["anyOf"]
    assert one["properties"] == {
        "name": {"const": "get_weather"},
        "arguments": json.loads(WEATHER.parameters),
    }


async def test_a_demanded_call_that_was_cut_is_none_and_one_that_never_came_is_a_failure(
    fake: type[Engine], options: LlmOptions, parser: None
) -> None:
    fake.answer = answering(chunk('[{"name"', {"type": "length", "length": 3}))
    deltas = await call(made_to_call(options)[0], MUST_CALL)
    assert [(delta.finish_reason, delta.call) for delta in deltas] == [("length", None)]
    fake.answer = answering(chunk("Sunny.", STOP))
    with pytest.raises(EngineFailed, match="grammar_backend"):
        await call(made_to_call(options)[0], MUST_CALL)


@pytest.mark.parametrize(
    ("name", "words"), [("", "tool_call_parser"), ("other", "no tool_call_parser 'other'")]
)
async def test_without_a_parser_there_are_no_tools(
    fake: type[Engine], options: LlmOptions, parser: None, name: str, words: str
) -> None:
    model, engine = made_to_call(options, name)
    with pytest.raises(ToolsNotSupported, match=words):
        await call(model)
    assert engine.requests == []
