"""What `loadtest.chaos` does to a running application, each fault by itself."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import ray
from ray.cluster_utils import Cluster

from . import usage
from .application import Application
from .redis_server import RedisServer
from .relay import Relay

FROZEN_S = 12.0
FLOOD_S = 6.0
FLOOD_CALLS = 120
SLOW_S = 10.0
SLOW_BYTES_PER_S = 24_000.0
"""A microphone of PCM16 at 24 kHz in base64 needs 66,000."""
REDIS_AWAY_S = 8.0
RECORDS_WITHIN_S = 30.0
ASKS = 8
"""In a row, of the one application: each of two replicas has answered one of them."""
NODE_CPUS = 4


class Nodes:
    """A head and a worker node on this machine."""

    def __init__(self) -> None:
        self.cluster: Any = None
        self.worker: Any = None

    @contextmanager
    def running(self) -> Iterator[None]:
        head = {"num_cpus": NODE_CPUS, "include_dashboard": False}
        # Ended below; what Ray would do at exit it can only prepare in the main thread, and nodes are added in another.
        self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        try:
            self.worker = self.cluster.add_node(num_cpus=NODE_CPUS)
            ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.WARNING)
            yield
        finally:
            ray.shutdown()
            self.cluster.shutdown()

    def kill_worker(self) -> None:
        self.cluster.remove_node(self.worker, allow_graceful=False)

    def add_worker(self) -> None:
        self.worker = self.cluster.add_node(num_cpus=NODE_CPUS, wait=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault strikes."""

    app: Application
    nodes: Nodes
    relay: Relay
    redis: RedisServer | None = None
    """The application's session store, where it is not an actor."""


Strike = Callable[[Place], Coroutine[Any, Any, str | None]]


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    what: str
    strike: Strike
    """Returns once the fault itself is over: what was frozen goes on, what was slow is fast again. What it has to tell
    beyond what the callers notice it returns."""
    needs_redis: bool = False


def processes(role: str) -> list[psutil.Process]:
    """Those with the most open sockets first: what dies must have been in use."""
    found = [process for process, its in usage.below(os.getpid()) if its == role]
    if not found:
        raise LookupError(f"no process of role {role!r}")
    return sorted(found, key=lambda process: -process.num_fds())


def kill(role: str, *, all_of_them: bool = False) -> Strike:
    async def strike(place: Place) -> None:
        found = await asyncio.to_thread(processes, role)
        for process in found if all_of_them else found[:1]:
            process.send_signal(signal.SIGKILL)

    return strike


def freeze(role: str) -> Strike:
    async def strike(place: Place) -> None:
        process = (await asyncio.to_thread(processes, role))[0]
        process.suspend()
        await asyncio.sleep(FROZEN_S)
        try:
            process.resume()
        except psutil.NoSuchProcess:  # it was replaced meanwhile
            return

    return strike


async def flood(place: Place) -> None:
    """More calls of the language model than its replicas take at once, for a while."""
    wish = {"model": "any", "messages": [{"role": "user", "content": "flood"}], "stream": True}
    limits = httpx.Limits(max_connections=FLOOD_CALLS)

    async def call(http: httpx.AsyncClient) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await http.post(f"{place.app.http}/v1/chat/completions", json=wish)

    with suppress(TimeoutError):
        async with (
            asyncio.timeout(FLOOD_S),
            httpx.AsyncClient(limits=limits, timeout=30) as http,
            asyncio.TaskGroup() as calls,
        ):
            for _ in range(FLOOD_CALLS):
                calls.create_task(call(http))


async def cut_network(place: Place) -> None:
    place.relay.cut(0.5)


async def slow_network(place: Place) -> None:
    place.relay.bytes_per_s = SLOW_BYTES_PER_S
    await asyncio.sleep(SLOW_S)
    place.relay.bytes_per_s = None


async def kill_node(place: Place) -> None:
    await asyncio.to_thread(place.nodes.kill_worker)
    await asyncio.to_thread(place.nodes.add_worker)


async def restart_redis(place: Place) -> str:
    """Its records are gone; once all are written again, every socket is cut. Raises TimeoutError if they never are."""
    redis, relay = place.redis, place.relay
    assert redis is not None
    before, killed_at = relay.accepted, time.monotonic()
    await asyncio.to_thread(redis.kill)
    announced = "NOT ANNOUNCED"
    with suppress(TimeoutError):
        async with asyncio.timeout(REDIS_AWAY_S):
            announced = (
                f"announced after {await _seconds_until(lambda: _announces_a_problem(place.app)):.1f} s"
            )
    await asyncio.sleep(killed_at + REDIS_AWAY_S - time.monotonic())
    await asyncio.to_thread(redis.start)
    async with asyncio.timeout(RECORDS_WITHIN_S):
        written_s = await _seconds_until(lambda: _has_records(redis, relay.open_now))
        await _seconds_until(lambda: _announces_none(place.app))
    lost = relay.accepted - before
    count = relay.cut()
    return (
        f"{announced}, {lost} sockets lost while it was away, {count} records written again "
        f"{written_s:.1f} s after its return, then all {count} sockets cut"
    )


async def _seconds_until(is_so: Callable[[], Awaitable[bool]]) -> float:
    began = time.monotonic()
    while not await is_so():  # noqa: ASYNC110  # it happens in other processes
        await asyncio.sleep(0.1)
    return time.monotonic() - began


async def _has_records(redis: RedisServer, count: int) -> bool:
    return await asyncio.to_thread(redis.keys) >= count


async def _announces_a_problem(app: Application) -> bool:
    return bool(await _resume_problem(app))


async def _announces_none(app: Application) -> bool:
    for _ in range(ASKS):
        if await _resume_problem(app):
            return False
    return True


async def _resume_problem(app: Application) -> str:
    """What one of the replicas says of the session store."""
    async with httpx.AsyncClient(timeout=10) as http:
        [model] = (await http.get(f"{app.http}/v1/models")).json()["data"]
    problem: str = model["resume"]["problem"]
    return problem


FAULTS = (
    Fault("kill-stt", "kill -9 one of two STT replicas", kill("stt")),
    Fault("kill-llm", "kill -9 one of two LLM replicas", kill("llm")),
    Fault("kill-tts", "kill -9 one of two TTS replicas", kill("tts")),
    Fault("kill-all-llm", "kill -9 both LLM replicas", kill("llm", all_of_them=True)),
    Fault("freeze-llm", f"SIGSTOP one of two LLM replicas, SIGCONT after {FROZEN_S:g} s", freeze("llm")),
    Fault("fill-queue", f"{FLOOD_CALLS} calls more than usual at the LLM for {FLOOD_S:g} s", flood),
    Fault("cut-network", "every second caller's connection cut", cut_network),
    Fault("slow-network", f"{SLOW_BYTES_PER_S / 1000:g} kB/s each way for {SLOW_S:g} s", slow_network),
    Fault("kill-controller", "kill -9 Serve's controller", kill("controller")),
    Fault("kill-ingress", "kill -9 one of two ingress replicas", kill("ingress")),
    Fault("kill-proxy", "kill -9 HAProxy", kill("haproxy", all_of_them=True)),
    Fault("kill-node", "kill -9 a node with half of the replicas; a new one joins", kill_node),
    Fault(
        "restart-redis",
        f"kill -9 of the session store's Redis, started again empty after {REDIS_AWAY_S:g} s",
        restart_redis,
        needs_redis=True,
    ),
)
