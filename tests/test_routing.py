"""Our routers on Serve's own, with replicas that only say how long their queues are."""

import asyncio
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest, RequestRouter

from deployments.routing import BY_SESSION, BySession, LeastLoaded

LLM = DeploymentID("LanguageModel", "voice")
ROOM = 4


class Replica:
    node_id = "a node"
    availability_zone = None
    multiplexed_model_ids: frozenset[str] = frozenset()
    max_ongoing_requests = ROOM

    def __init__(self, name: str, queue: int) -> None:
        self.replica_id = ReplicaID(name, LLM)
        self.queue = queue
        self.asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        return self.queue


async def router_of(kind: type[RequestRouter], *replicas: Replica) -> Any:
    """It has heard of these replicas, and knows how long their queues are. Any: Ray's wants Ray's replicas."""
    router: Any = kind(
        deployment_id=LLM, handle_source=DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    router.initialize_state(**BY_SESSION["request_router_kwargs"] if kind is BySession else {})
    router.update_replicas(list(replicas))
    while any(router._replica_queue_len_cache.get(replica.replica_id) is None for replica in replicas):
        await asyncio.sleep(0)
    for replica in replicas:
        replica.asked = 0
    return router


def a_request(session_id: str = "") -> PendingRequest:
    metadata = RequestMetadata(request_id="r", internal_request_id="i", session_id=session_id)
    return PendingRequest(args=[], kwargs={}, metadata=metadata)


def at_once(router: Any, request: PendingRequest) -> Replica:
    """What is chosen without a turn of the loop; fails where one is needed."""
    try:
        router._choose_replica_for_request(request).send(None)
    except StopIteration as chosen:
        replica: Replica = chosen.value
        return replica
    raise AssertionError("it waits")


async def test_where_queues_are_known_nobody_waits_for_the_choice():
    busy, free = Replica("busy", 3), Replica("free", 1)
    router = await router_of(LeastLoaded, busy, free)
    assert [at_once(router, a_request()) for _ in range(20)] == [free] * 20
    assert busy.asked == free.asked == 0


async def test_a_choice_counts_in_the_queue_at_once():
    one, other = Replica("one", 0), Replica("other", 0)
    router = await router_of(LeastLoaded, one, other)
    chosen = []
    for _ in range(6):
        chosen.append(at_once(router, a_request()))
        router.on_send_request(chosen[-1].replica_id)  # as Serve tells its router
    assert chosen.count(one) == chosen.count(other) == 3


async def test_a_full_replica_is_asked_as_serve_asks_it():
    full = Replica("full", ROOM)
    router = await router_of(LeastLoaded, full)
    choice = asyncio.ensure_future(router._choose_replica_for_request(a_request()))
    while not full.asked:
        await asyncio.sleep(0)
    assert not choice.done()
    full.queue = 0
    async with asyncio.timeout(30):
        assert await choice is full


async def test_a_replica_of_which_nothing_is_known_is_asked_and_who_waits_for_it_counts_as_waiting():
    new = Replica("new", 0)
    router = await router_of(LeastLoaded, new)
    router._replica_queue_len_cache.invalidate_key(new.replica_id)
    choice = asyncio.ensure_future(router._choose_replica_for_request(a_request()))
    while not new.asked:
        await asyncio.sleep(0)
    assert router.num_pending_requests == 1
    async with asyncio.timeout(30):
        assert await choice is new


async def test_nobody_overtakes_who_waits():
    full = Replica("full", ROOM)
    router = await router_of(LeastLoaded, full)
    order: list[str] = []

    async def choose(name: str) -> None:
        await router._choose_replica_for_request(a_request())
        order.append(name)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(choose("first"))
        while not full.asked:
            await asyncio.sleep(0)
        full.queue = 0
        router.on_new_queue_len_info(full.replica_id, 0)
        tasks.create_task(choose("second"))
    assert order == ["first", "second"]


async def test_a_session_stays_on_its_replica_whoever_has_less_to_do():
    replicas = [Replica(name, 0) for name in "abc"]
    router = await router_of(BySession, *replicas)
    home = at_once(router, a_request("a session"))
    for _ in range(ROOM - 1):
        router.on_send_request(home.replica_id)
        assert at_once(router, a_request("a session")) is home
    assert {at_once(router, a_request(f"session {n}")).replica_id.unique_id for n in range(50)} == set("abc")


async def test_the_place_of_a_full_replica_is_the_one_that_serve_takes():
    replicas = [Replica(name, 0) for name in "abc"]
    router = await router_of(BySession, *replicas)
    ranks = await router.choose_replicas(replicas, a_request("a session"))
    [home], [second], *_ = ranks
    home.queue = ROOM
    router.on_new_queue_len_info(home.replica_id, ROOM)
    async with asyncio.timeout(30):
        assert await router._choose_replica_for_request(a_request("a session")) is second
    assert home.asked, "it may have room by now"
