"""Sessions on real Ray Serve that outlive their replica: killed, redeployed, drained; and the store in an actor.

Two ingress replicas, so that a session has somewhere to go. Clients are those of `voice-serve talk`, which come back by
themselves. Nothing here depends on how fast the machine is: limits are for hangs.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from stores.conformance import SUITE, Subject, Test

from loadtest.application import APPLICATION, SCRIPTED, Application, ProxyMode, application, document
from serve_app.client.connection import Arrival
from serve_app.client.player import Player
from serve_app.client.resuming import ResumingClient, resuming_client
from serve_app.stores.ray_actor import NAME, NAMESPACE, ActorStore

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ARGS: dict[str, Any] = {
    "llm": {"scripted": {"first_token_s": 0.1, "tokens_per_s": 30, "answer_words": 24}},
    "tts": {"scripted": {"first_audio_s": 0.1, "word_s": 0.25}},
    "turn_taking": {"drafts_per_turn": 0},
}
PROXY: ProxyMode = "haproxy" if os.environ.get("RESUME_TEST_PROXY") == "haproxy" else "default"
"""The default proxy is the harder case: it does not route around a replica that is to go by itself."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    document: dict[str, Any] = yaml.safe_load(SCRIPTED.read_text())
    [ingress] = [d for d in document["applications"][0]["deployments"] if d["name"] == "Ingress"]
    ingress["num_replicas"] = 2
    path = tmp_path_factory.mktemp("config") / "two.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def two(config: Path) -> Iterator[Application]:
    with application(config, args=ARGS, proxy=PROXY) as running:
        yield running


class Talker:
    """A client and all that came to it."""

    def __init__(self, client: ResumingClient) -> None:
        self.client = client
        self.arrivals: list[Arrival] = []
        self.player = Player()
        self._news = asyncio.Event()

    async def listen(self) -> None:
        async for arrival in self.client:
            self.player.handle(arrival)
            self.arrivals.append(arrival)
            self._news.set()

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [arrival.event for arrival in self.arrivals if arrival.type == kind]

    async def until(self, condition: Callable[[], bool], within_s: float = 90) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def answer(self, text: str) -> str:
        """A typed turn; how its answer ended."""
        before = len(self.all("response.done"))
        await self.client.ask(text)
        await self.until(lambda: len(self.all("response.done")) > before)
        status: str = self.all("response.done")[-1]["response"]["status"]
        return status

    async def writes(self) -> None:
        """From here on answers are written, which takes less time."""
        await self.client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        await self.until(lambda: bool(self.all("session.updated")))


@asynccontextmanager
async def talkers(url: str, count: int) -> AsyncIterator[list[Talker]]:
    """So many sessions at once."""
    async with asyncio.TaskGroup() as tasks:
        opened: list[Talker] = []
        over, ready = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            player_of: list[Player] = []
            stop = lambda: player_of[0].flush(time.monotonic())  # noqa: E731
            async with resuming_client(url, stop=stop, on_news=lambda news: None) as client:
                talker = Talker(client)
                player_of.append(talker.player)
                listening = tasks.create_task(talker.listen())
                await talker.until(lambda: bool(talker.arrivals))
                opened.append(talker)
                if len(opened) == count:
                    ready.set()
                await over.wait()
                listening.cancel()

        for _ in range(count):
            tasks.create_task(hold())
        await asyncio.wait_for(ready.wait(), 60)
        yield opened
        over.set()


def asked(app: Application) -> dict[str, int]:
    """What one of the replicas says of itself."""
    figures: dict[str, int] = httpx.get(f"{app.http}/healthz", timeout=30).json()
    return figures


def words_of(item: dict[str, Any]) -> str:
    [part] = item["content"]
    words: str = part.get("text") or part.get("transcript") or ""
    return words


def ingress_replicas() -> dict[str, tuple[int, str]]:
    """Replica id -> process id and state."""
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    details: Any = ray.get(controller.get_serve_instance_details.remote())
    replicas = details["applications"][APPLICATION]["deployments"]["Ingress"]["replicas"]
    return {r["replica_id"]: (r["pid"], str(r["state"])) for r in replicas if r.get("pid")}


def redeploy(config: Path, app: Application, **changes: Any) -> None:
    """As `serve deploy` with a changed file does."""
    changed = document(config, ARGS | changes, PROXY, app.port)
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(changed))


async def test_a_killed_ingress_replica_costs_its_sessions_what_was_not_heard(two: Application) -> None:
    async with AsyncExitStack() as opened:
        people = await opened.enter_async_context(talkers(two.realtime, 4))
        while not 1 <= (replica := asked(two))["sessions"] < len(people):
            assert len(people) < 16, "Serve gives all sessions to one replica"
            people += await opened.enter_async_context(talkers(two.realtime, 1))
        for one in people:
            await one.client.ask("Tell me.")
        for one in people:
            await one.until(lambda one=one: len(one.all("response.output_audio.delta")) > 15)
        await asyncio.sleep(1.5)
        os.kill(replica["pid"], signal.SIGKILL)
        for one in people:
            await one.until(lambda one=one: len(one.all("response.done")) == 1)
        struck = [one for one in people if one.client.resumed]
        assert len(struck) == replica["sessions"], "the other replica's sessions noticed nothing"
        for one in struck:
            [resumed] = one.all("session.resumed")
            [done] = one.all("response.done")
            question, answer = resumed["items"]
            assert question["content"][0]["text"] == "Tell me."
            assert (done["response"]["status"], answer["status"]) == ("incomplete", "incomplete")
            heard, shown = (
                answer["content"][0]["transcript"],
                "".join(e["delta"] for e in one.all("response.output_audio_transcript.delta")),
            )
            played_s = len(one.player.played(answer["id"], time.monotonic())) / 24_000
            assert shown.startswith(heard)
            words = len(heard.split())
            assert played_s / 0.25 - 5 <= words <= played_s / 0.25 + 0.01, (words, played_s)
        for one in people:
            await one.writes()
            assert await one.answer("And then?") == "completed"


async def test_a_redeploy_under_five_sessions_loses_none(two: Application, config: Path) -> None:
    """Two are in the middle of an answer, three are silent; all have a turn behind them."""
    async with talkers(two.realtime + "?own_events=1", 5) as people:
        for one in people:
            await one.writes()
            assert await one.answer("First.") == "completed"
            await one.client.send(
                "session.update", session={"type": "realtime", "output_modalities": ["audio"]}
            )
        for one in people[:2]:
            await one.client.ask("Second.")
            await one.until(lambda one=one: len(one.all("response.output_audio.delta")) > 5)
        old, began = set(ingress_replicas()), time.monotonic()
        redeploy(config, two, limits={"max_sessions_per_replica": 50})
        for one in people:
            await one.until(lambda one=one: bool(one.all("session.resumed")), within_s=150)
        took_s = time.monotonic() - began
        for one in people:
            assert one.all("session.draining"), "it was told before it had to go"
            texts = [words_of(item) for item in one.all("session.resumed")[-1]["items"]]
            statuses = {i["status"] for i in one.all("session.resumed")[-1]["items"]}
            assert texts[0] == "First."
            assert len(texts) == (4 if one in people[:2] else 2)
            assert statuses == {"completed"}, "no turn was cut"
            await one.writes()
            assert await one.answer("Third.") == "completed"
        moved = [a.at - began for one in people for a in one.arrivals if a.type == "session.draining"]
        print(f"told after {min(moved):.2f} to {max(moved):.2f} s, all moved after {took_s:.1f} s")
        async with asyncio.timeout(90):
            while old & set(ingress_replicas()):
                await asyncio.sleep(0.2)


@pytest.mark.parametrize("test", SUITE, ids=lambda test: test.__name__)
async def test_the_store_in_an_actor(two: Application, test: Test) -> None:
    await test(Subject(ActorStore(), 1.0, asyncio.sleep, test.__name__))


async def test_the_actor_outlives_all_of_it_and_is_bounded(two: Application) -> None:
    figures: Any = ray.get(ray.get_actor(NAME, namespace=NAMESPACE).figures.remote())
    assert figures["records"] >= 9
    assert figures["dropped"] == 0
