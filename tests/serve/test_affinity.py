"""A session stays on its language model replica, and loses nothing when it cannot: three replicas on real Ray."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
import yaml
from ray import serve

from deployments.interfaces import ChatMessage, Sampling
from loadtest.application import APPLICATION, SCRIPTED, Application, application
from loadtest.caller import Caller, caller
from serve_app.session.engine_clients import RemoteChatModel

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to its own shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

REPLICAS, ROOM = 3, 4
LLM = {"llm": {"scripted": {"first_token_s": 0.05, "tokens_per_s": 10, "answer_words": 8}}}
MESSAGES = [ChatMessage("user", "hello")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    config = yaml.safe_load(SCRIPTED.read_text())
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "LanguageModel":
            deployment |= {"num_replicas": REPLICAS, "max_ongoing_requests": ROOM}
    path = tmp_path_factory.mktemp("fleet") / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with application(path, LLM) as running:
        yield running


def handle(session_id: str = "") -> Any:
    llm: Any = serve.get_deployment_handle("LanguageModel", APPLICATION)
    return llm.options(session_id=session_id, _by_reference=False)


async def stats(session_id: str) -> dict[str, float]:
    """Of the replica that a call of this session goes to now."""
    async with asyncio.timeout(30):
        counted: dict[str, float] = await handle(session_id).stats.remote()
        return counted


async def replica(session_id: str) -> int:
    return int((await stats(session_id))["pid"])


async def until_all_serve() -> None:
    async with asyncio.timeout(60):
        while len({await replica(f"probe{n}") for n in range(20)}) < REPLICAS:
            await asyncio.sleep(0.2)


async def test_a_session_stays_on_its_replica_and_sessions_are_spread(fleet: Application) -> None:
    await until_all_serve()
    homes = {f"session{n}": await replica(f"session{n}") for n in range(30)}
    assert len(set(homes.values())) == REPLICAS
    for _ in range(4):
        assert {session: await replica(session) for session in homes} == homes
    without = {await replica("") for _ in range(40)}
    assert len(without) == REPLICAS, "calls without a session are spread"


async def test_all_calls_of_a_session_go_to_one_replica_and_are_cancelled_there(fleet: Application) -> None:
    chat = RemoteChatModel(handle()).for_session("mine")
    before = await stats("mine")
    for _ in range(3):
        await chat.prefill(MESSAGES, sampling=Sampling())
        async with aclosing(chat.generate(MESSAGES, sampling=Sampling())) as deltas:
            await anext(deltas)
    async with asyncio.timeout(10):
        while (after := await stats("mine"))["active"]:
            await asyncio.sleep(0.02)
    assert after["pid"] == before["pid"]
    assert after["started"] - before["started"] == 3
    assert after["cancelled"] - before["cancelled"] == 3


async def test_a_full_replica_is_passed_over_and_comes_back(fleet: Application) -> None:
    home = await replica("mine")
    chat = RemoteChatModel(handle()).for_session("mine")
    async with AsyncExitStack() as open_streams:
        for _ in range(ROOM):
            stream = await open_streams.enter_async_context(
                aclosing(chat.generate(MESSAGES, sampling=Sampling()))
            )
            await anext(stream)
        assert await replica("mine") != home
        async with asyncio.timeout(30), aclosing(chat.generate(MESSAGES, sampling=Sampling())) as one_more:
            assert (await anext(one_more)).text
    async with asyncio.timeout(10):
        while await replica("mine") != home:
            await asyncio.sleep(0.05)


async def answered(one: Caller) -> str:
    after = len(one.arrivals)
    await one.client.ask("Are you there?")
    done = await one.until_type("response.done", after=after, within_s=40)
    status: str = done.event["response"]["status"]
    return status


async def test_a_lost_replica_moves_its_own_sessions_and_no_others(fleet: Application) -> None:
    async with AsyncExitStack() as calls:
        callers: dict[str, Caller] = {}
        for _ in range(6):
            one = await calls.enter_async_context(caller(fleet.realtime, output_modalities=["text"]))
            created = await one.until_type("session.created")
            callers[created.event["session"]["id"].removeprefix("sess_")] = one
        assert [await answered(one) for one in callers.values()] == ["completed"] * 6
        homes = {session: await replica(session) for session in callers}
        before = {await replica(f"probe{n}") for n in range(60)}
        assert len(before) == REPLICAS
        for session, home in homes.items():
            assert (await stats(session))["started"] > 0, f"{session} was answered on {home}"
        lost = next(iter(homes.values()))
        os.kill(lost, signal.SIGKILL)
        # The call that finds its replica dead is tried again, on another: nobody is told of it.
        assert [await answered(one) for one in callers.values()] == ["completed"] * 6
        now = {session: await replica(session) for session in callers}
    moved = {session for session in callers if now[session] != homes[session]}
    struck = {session for session, home in homes.items() if home == lost}
    assert moved >= struck
    # Serve begins a replica in place of the lost one; once it is ready, the ring gives it sessions of all others too.
    assert not {now[session] for session in moved - struck} & before, "nobody moved between those that lived"
