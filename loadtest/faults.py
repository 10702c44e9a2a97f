"""What `loadtest.chaos` does to a running application, each fault by itself."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import ray
from ray.cluster_utils import Cluster

from . import usage
from .application import Application
from .relay import Relay

FROZEN_S = 12.0
FLOOD_S = 6.0
FLOOD_CALLS = 120
SLOW_S = 10.0
SLOW_BYTES_PER_S = 24_000.0
"""A microphone of PCM16 at 24 kHz in base64 needs 66,000."""
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


Strike = Callable[[Place], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    what: str
    strike: Strike
    """Returns once the fault itself is over: what was frozen goes on, what was slow is fast again."""


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
)
