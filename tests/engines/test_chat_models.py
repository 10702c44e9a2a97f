"""What every chat model does, run over every one."""

import asyncio
import json
from contextlib import aclosing
from typing import Any, cast

import pytest

from deployments.interfaces import BadRequest, ChatMessage, ChatModel, EngineBusy, Prefilling, Sampling

from .calling import MUST_CALL, QUESTION, TOOLS, calls_in
from .factories import CHAT_MODELS, ChatModelFactory
from .support import RELEASE_S, cancelled_after, collected

pytestmark = pytest.mark.asyncio(loop_scope="module")
GREEDY = Sampling(max_tokens=20, temperature=0.0, seed=1)
CALLING = Sampling(max_tokens=60, temperature=0.0, seed=1)


@pytest.fixture(scope="module", params=CHAT_MODELS, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> ChatModelFactory:
    factory: ChatModelFactory = request.param
    return factory


@pytest.fixture(scope="module")
def engine(factory: ChatModelFactory) -> ChatModel:
    return factory.build()


@pytest.fixture
def messages(factory: ChatModelFactory) -> list[ChatMessage]:
    return [ChatMessage("system", "You are brief."), ChatMessage("user", factory.prompt)]


async def test_an_answer_comes_in_pieces_and_says_why_it_ends(
    engine: ChatModel, messages: list[ChatMessage]
) -> None:
    deltas = await collected(engine.generate(messages, sampling=GREEDY))
    assert len(deltas) > 3
    assert "".join(delta.text for delta in deltas).strip()
    assert [delta.finish_reason is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]


async def test_an_answer_ends_at_the_token_limit(engine: ChatModel, messages: list[ChatMessage]) -> None:
    deltas = await collected(engine.generate(messages, sampling=Sampling(max_tokens=5, temperature=0.0)))
    assert deltas[-1].finish_reason == "length"
    if deltas[-1].usage:
        assert deltas[-1].usage.output_tokens == 5
        assert deltas[-1].usage.input_tokens > 0


async def test_answers_at_once_end_each_by_itself(engine: ChatModel, messages: list[ChatMessage]) -> None:
    limits = [5, 20, 10]
    async with asyncio.TaskGroup() as calls:
        tasks = [
            calls.create_task(
                collected(engine.generate(messages, sampling=Sampling(max_tokens=limit, temperature=0.0)))
            )
            for limit in limits
        ]
    answers = [task.result() for task in tasks]
    assert [answer[-1].finish_reason for answer in answers] == ["length"] * 3
    lengths = [len("".join(delta.text for delta in answer)) for answer in answers]
    assert lengths[0] < lengths[2] < lengths[1]


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.3])
async def test_a_cancelled_caller_is_released_and_the_next_answer_comes(
    engine: ChatModel, messages: list[ChatMessage], after_s: float
) -> None:
    endless = Sampling(max_tokens=400, temperature=0.0)
    released_s = await cancelled_after(after_s, collected(engine.generate(messages, sampling=endless)))
    assert released_s < RELEASE_S
    assert await collected(engine.generate(messages, sampling=GREEDY))


async def test_a_stream_that_is_closed_early_is_released(
    engine: ChatModel, messages: list[ChatMessage]
) -> None:
    loop = asyncio.get_running_loop()
    # The protocol promises an iterator; closing it is what a generator adds, and every engine is one.
    stream = cast("Any", engine.generate(messages, sampling=Sampling(max_tokens=400, temperature=0.0)))
    async with aclosing(stream):
        async for _ in stream:
            break
        started = loop.time()
    assert loop.time() - started < RELEASE_S


async def test_no_messages_is_a_bad_request(engine: ChatModel) -> None:
    with pytest.raises(BadRequest) as raised:
        await collected(engine.generate([], sampling=GREEDY))
    assert raised.value.stage == "llm"


async def test_what_was_read_ahead_changes_no_answer(
    engine: ChatModel, factory: ChatModelFactory, messages: list[ChatMessage]
) -> None:
    assert isinstance(engine, Prefilling)
    await engine.prefill(messages[:1], sampling=GREEDY)
    await engine.prefill(messages, sampling=GREEDY)
    warm = await collected(engine.generate(messages, sampling=GREEDY))
    cold = await collected(factory.build().generate(messages, sampling=GREEDY))
    assert [delta.text for delta in warm] == [delta.text for delta in cold]


async def test_an_answer_goes_before_what_is_read_ahead(
    engine: ChatModel, messages: list[ChatMessage]
) -> None:
    assert isinstance(engine, Prefilling)
    stream = cast("Any", engine.generate(messages, sampling=Sampling(max_tokens=400, temperature=0.0)))
    async with aclosing(stream):
        await anext(stream)
        with pytest.raises(EngineBusy):
            await engine.prefill(messages, sampling=GREEDY)
    await engine.prefill(messages, sampling=GREEDY)


async def test_reading_ahead_can_be_cancelled(engine: ChatModel, messages: list[ChatMessage]) -> None:
    assert isinstance(engine, Prefilling)
    assert await cancelled_after(0.0, engine.prefill(messages, sampling=GREEDY)) < RELEASE_S
    assert await collected(engine.generate(messages, sampling=GREEDY))


async def test_a_function_is_called_with_its_arguments(engine: ChatModel, factory: ChatModelFactory) -> None:
    deltas = await collected(engine.generate(QUESTION, sampling=CALLING, tools=MUST_CALL))
    (call,) = calls_in(deltas)
    assert call.call_id
    assert (call.name, json.loads(call.arguments)) == ("get_weather", json.loads(factory.called_with))
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert deltas[-1].call is None


async def test_a_model_may_be_offered_functions_and_answer_in_words(engine: ChatModel) -> None:
    deltas = await collected(engine.generate(QUESTION[-1:], sampling=GREEDY, tools=TOOLS))
    assert calls_in(deltas) == []
    assert "".join(delta.text for delta in deltas).strip()


async def test_a_caller_that_is_cancelled_in_a_call_is_released(engine: ChatModel) -> None:
    call = collected(engine.generate(QUESTION, sampling=CALLING, tools=MUST_CALL))
    assert await cancelled_after(0.05, call) < RELEASE_S
    assert await collected(engine.generate(QUESTION, sampling=CALLING, tools=MUST_CALL))
