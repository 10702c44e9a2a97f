"""Several nodes: each stage on its own, and what the loss of one costs: calls that are tried again, and its own sessions.

A process of its own, see the Makefile. Limits are for hangs; nothing here depends on how fast the machine is.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from ray import serve

from loadtest.application import APPLICATION
from loadtest.caller import Caller, caller
from serve_app.audio.pcm import Audio
from serve_app.client.connection import SessionEnded
from serve_app.talk import load_recording

from .nodes import HOMES, Nodes, nodes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode of Ray Serve is for Linux only"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CALLERS = 6


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with nodes(tmp_path_factory.mktemp("nodes")) as running:
        yield running


@pytest.fixture(scope="module")
def question(shared_audio: Path) -> Audio:
    return load_recording(shared_audio / "digits" / "jackson-10.flac")


def test_each_stage_lands_on_its_own_nodes_and_none_on_the_head(spread: Nodes) -> None:
    engines = {"engines 0", "engines 1"}
    assert spread.where() == {
        "Ingress": {"ingress 0", "ingress 1"},
        "SpeechToText": engines,
        "LanguageModel": engines,
        "TextToSpeech": engines,
    }
    assert set(HOMES) == set(spread.where())


class Line:
    """A caller whose turns are awaited, and who may be cut off."""

    def __init__(self, one: Caller) -> None:
        self.one = one
        self.after = 0

    def say(self, question: Audio) -> None:
        self.after = len(self.one.arrivals)
        self.one.say(question)

    async def until(self, type_: str) -> None:
        await self.one.until_type(type_, after=self.after, within_s=60)

    async def outcome(self) -> str:
        done = await self.one.until_type("response.done", after=self.after, within_s=60)
        status: str = done.event["response"]["status"]
        return status


async def calls_by_replica() -> dict[float, tuple[float, float]]:
    """(started, active) of each SpeechToText replica, by its process id. Serve picks the replica, so many are asked."""
    handle = serve.get_deployment_handle("SpeechToText", APPLICATION).options(_by_reference=False)
    asked = await asyncio.gather(*(handle.stats.remote() for _ in range(20)), return_exceptions=True)
    counts = [
        counted for counted in asked if isinstance(counted, dict)
    ]  # the others went to a replica that is gone
    return {counted["pid"]: (counted["started"], counted["active"]) for counted in counts}


async def test_a_lost_engine_node_costs_calls_that_are_tried_again_and_no_session(
    spread: Nodes, question: Audio
) -> None:
    async with AsyncExitStack() as open_calls:
        lines = [
            Line(await open_calls.enter_async_context(caller(spread.application.realtime)))
            for _ in range(CALLERS)
        ]
        for line in lines:
            line.say(question)
        await asyncio.gather(*(line.until("input_audio_buffer.speech_stopped") for line in lines))
        before = await calls_by_replica()
        assert sum(active for _, active in before.values()) == CALLERS, "every utterance is being transcribed"
        assert len(before) == 2
        assert all(active for _, active in before.values()), "on both nodes"
        await asyncio.to_thread(spread.kill, "engines 1")
        assert await asyncio.gather(*(line.outcome() for line in lines)) == ["completed"] * CALLERS
        [(pid, (started, _))] = (await calls_by_replica()).items()
        lost = sum(active for other, (_, active) in before.items() if other != pid)
        assert started >= before[pid][0] + lost, "the calls that were lost were made again on the other node"
        for line in lines:
            line.say(question)
        assert await asyncio.gather(*(line.outcome() for line in lines)) == ["completed"] * CALLERS


@asynccontextmanager
async def line_that_may_end(url: str, ended: list[int]) -> AsyncIterator[Line]:
    try:
        async with caller(url) as one:
            yield Line(one)
    except SessionEnded as end:
        ended.append(end.code)


async def test_a_lost_ingress_node_costs_its_own_sessions_and_others_do_not_notice(
    spread: Nodes, question: Audio
) -> None:
    ended: list[int] = []
    outcomes: list[str] = []
    are_speaking = asyncio.Barrier(CALLERS + 1)

    async def call() -> None:
        async with line_that_may_end(spread.application.realtime, ended) as line:
            line.say(question)
            await line.until("input_audio_buffer.speech_started")
            await are_speaking.wait()
            outcomes.append(await line.outcome())
            line.say(question)
            outcomes.append(await line.outcome())

    async with asyncio.TaskGroup() as calls:
        for _ in range(CALLERS):
            calls.create_task(call())
        await are_speaking.wait()
        await asyncio.to_thread(spread.kill, "ingress 1")
    assert 0 < len(ended) < CALLERS
    assert outcomes == ["completed"] * 2 * (CALLERS - len(ended))
    async with caller(spread.application.realtime) as again:
        line = Line(again)
        line.say(question)
        assert await line.outcome() == "completed", "who calls again is answered"
    assert spread.where()["Ingress"] == {"ingress 0"}
    async with httpx.AsyncClient(base_url=spread.application.http) as http, asyncio.timeout(10):
        while (await http.get("/healthz")).json()["sessions"]:
            await asyncio.sleep(0.05)
