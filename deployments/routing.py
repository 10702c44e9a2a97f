"""Which replica a call goes to: Serve's own choice, made at once where nothing has to be waited for.

Serve chooses in a task of its own and wakes the caller with the result: two turns of the event loop, which a hundred
sessions on a busy core make 16 ms, in each of the three calls of an answer. Most choices need no waiting, since the
lengths of the queues are known; they are made here in the turn in which they are asked for.
"""

from typing import Any

from ray.serve._private.request_router.common import RequestRoutingContext
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class _AtOnce(RequestRouter):
    """Where nobody waits and a replica of the first choice is known to have room, it is chosen; else Serve goes its own way.

    `_choose_replica_for_request` is not public. Should Ray rename it, the choice takes its two turns again.
    """

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        if not is_retry and not self._pending_requests_to_fulfill and self._replicas_list:
            ranks = await self.choose_replicas(self._replicas_list, pending_request)
            if ranks and any(map(self._has_room, ranks[0])):
                replica = await self._select_from_candidate_replicas(ranks[0], 0)
                if replica is not None:
                    return replica
            pending_request.routing_context = RequestRoutingContext()
        return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)

    def _has_room(self, replica: RunningReplica) -> bool:
        """As far as is known; then Serve has nothing to ask."""
        length = self._replica_queue_len_cache.get(replica.replica_id)
        return length is not None and length < replica.max_ongoing_requests


class LeastLoaded(_AtOnce, PowerOfTwoChoicesRequestRouter):
    """Of two drawn at random the one with less to do."""


class BySession(_AtOnce, ConsistentHashRouter):
    """A session's calls go to one replica, and in its place always to the same others."""


LEAST_LOADED: dict[str, Any] = {"request_router_class": f"{__name__}:{LeastLoaded.__name__}"}

BY_SESSION: dict[str, Any] = {
    "request_router_class": f"{__name__}:{BySession.__name__}",
    "request_router_kwargs": {"num_fallback_replicas": 4},
}
"""A session's calls go to one replica, which has read its conversation; when that is full or dead, to the next on the
ring, always the same ones in the same order. Calls without a session are spread at random.

Four to fall back on: a voice cannot wait for its own replica, and where a cold one costs a prefill, waiting costs 25 to
500 ms of backoff and then perhaps the prefill too. With two, 1 in 30 calls finds all three full while others have
room, in a fleet of eight at 80 % (drawn at random, 8 calls each); with four it is 1 in 500. More would only be asked, a
millisecond each, one after the other, when nearly all are full. They also bridge the seconds until a lost node's replicas are struck off.
"""
