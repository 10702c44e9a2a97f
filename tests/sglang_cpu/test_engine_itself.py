"""The engine in this process: streaming, abort, the window, health."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from engines.support import RELEASE_S, cancelled_after, collected

from deployments.engines import create, sglang
from deployments.engines.sglang import SglangChatModel
from deployments.interfaces import BadRequest, ChatDelta, ChatMessage, EngineFailed, Sampling
from deployments.options import LlmOptions

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
QUESTION = [ChatMessage("system", "w1 w2 w3"), ChatMessage("user", "w4 w5")]


@pytest.fixture(scope="module")
def engine(options: LlmOptions) -> Iterator[SglangChatModel]:
    logging.basicConfig(level=logging.INFO)
    started = time.monotonic()
    engine: SglangChatModel = create(options)
    print(f"\nsglang: {time.monotonic() - started:.1f} s to start")
    yield engine
    engine.shutdown()


async def ask(
    engine: SglangChatModel, messages: list[ChatMessage] = QUESTION, **sampling: Any
) -> list[ChatDelta]:
    sampling = {"max_tokens": 20, "temperature": 0.0, **sampling}
    return await collected(engine.generate(messages, sampling=Sampling(**sampling)))


def unfinished(engine: SglangChatModel) -> list[str]:
    """The generations that the scheduler has not said to have ended."""
    return list(engine._engine.tokenizer_manager.rid_to_state)


async def is_free(engine: SglangChatModel) -> float:
    """Waits until nothing is generated, and gives the seconds that it took."""
    started = time.monotonic()
    async with asyncio.timeout(30):
        while unfinished(engine):
            await asyncio.sleep(0.0005)
    return time.monotonic() - started


async def test_the_first_health_check_warms_it_up(engine: SglangChatModel) -> None:
    await engine.check_health()


async def test_an_answer_comes_in_pieces_with_reason_and_usage(engine: SglangChatModel) -> None:
    started = time.monotonic()
    stream = engine.generate(QUESTION, sampling=Sampling(max_tokens=20, temperature=0.0))
    times = []
    deltas = []
    async for delta in stream:
        times.append(time.monotonic() - started)
        deltas.append(delta)
    assert len(deltas) > 10
    assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
    usage = deltas[-1].usage
    assert usage
    assert (usage.input_tokens, usage.output_tokens) == (10, 20)
    print(
        f"\nsglang: first token {times[0] * 1000:.0f} ms, then {(len(times) - 2) / (times[-2] - times[0]):.0f} a second"
    )


async def test_the_same_question_has_the_same_greedy_answer_whatever_runs_beside_it(
    engine: SglangChatModel,
) -> None:
    alone = await ask(engine)
    together = await asyncio.gather(*(ask(engine, max_tokens=limit) for limit in (20, 5, 30)))
    assert "".join(d.text for d in together[0]) == "".join(d.text for d in alone)
    assert [answer[-1].usage.output_tokens for answer in together if answer[-1].usage] == [20, 5, 30]


async def test_leaving_a_stream_frees_the_engine(engine: SglangChatModel) -> None:
    freed_ms = []
    for _ in range(10):
        async with aclosing(
            engine.generate(QUESTION, sampling=Sampling(max_tokens=400, temperature=0.0))
        ) as stream:
            for _ in range(5):
                await anext(stream)
            assert len(unfinished(engine)) == 1
        freed_ms.append(await is_free(engine) * 1000)
    started = time.monotonic()
    await ask(engine, max_tokens=400)
    whole_ms = (time.monotonic() - started) * 1000
    print(
        f"\nsglang: abort to free {sorted(freed_ms)[5]:.1f} ms median, {max(freed_ms):.1f} ms worst of 10; "
        f"the whole answer takes {whole_ms:.0f} ms"
    )
    assert sorted(freed_ms)[5] < whole_ms / 4


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.1])
async def test_a_cancelled_caller_is_released_and_the_engine_freed(
    engine: SglangChatModel, after_s: float
) -> None:
    released_s = await cancelled_after(after_s, ask(engine, max_tokens=450))
    assert released_s < RELEASE_S
    assert await is_free(engine) < 2.0
    assert await ask(engine)


async def test_a_context_that_is_too_long_is_a_bad_request_and_the_next_call_works(
    engine: SglangChatModel,
) -> None:
    with pytest.raises(BadRequest, match="exceeds the available context size"):
        await ask(engine, [ChatMessage("user", "w1 " * 600)])
    assert await ask(engine)


async def test_a_context_that_only_the_engine_knows_to_be_too_long_is_a_bad_request(
    engine: SglangChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_window", 10_000)
    with pytest.raises(BadRequest, match="longer than the model's context length"):
        await ask(engine, [ChatMessage("user", "w1 " * 600)])
    assert not unfinished(engine)


async def test_a_long_conversation_loses_its_oldest_turns(engine: SglangChatModel) -> None:
    turn = [ChatMessage("user", "w1 " * 10), ChatMessage("assistant", "w2 " * 10)]
    deltas = await ask(engine, [*QUESTION[:1], *turn * 40, QUESTION[1]])
    usage = deltas[-1].usage
    assert usage
    assert 300 < usage.input_tokens <= engine._window - 20


async def test_an_answer_may_fill_the_window(engine: SglangChatModel) -> None:
    last = (await ask(engine, [ChatMessage("user", "w1 " * 480)], max_tokens=400))[-1]
    assert last.usage
    assert last.finish_reason == "length"
    assert last.usage.input_tokens + last.usage.output_tokens <= engine._window


async def test_an_engine_that_hangs_is_not_healthy(
    engine: SglangChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang, "_HEALTH_S", 1.0)
    monkeypatch.setattr(sglang, "_RECENT_S", 0.0)
    await engine.check_health()
    children = engine._engine.get_all_child_pids()
    assert children
    for child in children:
        os.kill(child, signal.SIGSTOP)
    try:
        with pytest.raises(EngineFailed, match="no token within 1 s"):
            await engine.check_health()
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)
    await is_free(engine)
    await engine.check_health()
