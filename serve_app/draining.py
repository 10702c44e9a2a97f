"""How a replica learns that Serve is taking it away: the one file that looks into Serve for it.

Serve tells user code nothing. Its controller tells all routers which replicas of a deployment run, by a long poll, and
a replica can ask the same: it is to go when it stood in that list, does no longer, and the controller's details say
STOPPING, or when the whole deployment is taken away. So it learns at once, and an idle replica asks twice a minute. Checked with Ray 2.60; where Serve has changed,
that is said in the log, and sessions are then cut at the end of the graceful shutdown and resumed from there.
"""

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve._private.long_poll import LongPollNamespace, LongPollState

log = logging.getLogger("voice_serve.draining")

RETRY_S = 1.0
"""The controller is away for seconds at most: it is started again."""
BROKEN_RETRY_S = 60.0


async def until_draining() -> None:
    """Returns once the replica that this is called in is to go. Must not be called elsewhere."""
    replica = serve.get_replica_context().replica_id
    key = (LongPollNamespace.DEPLOYMENT_TARGETS, replica.deployment_id)
    seen, has_run = -1, False
    while True:
        try:
            news: Any = await _controller().listen_for_change.remote({key: seen})
            if news is LongPollState.TIME_OUT:
                continue
            seen, targets = news[key].snapshot_id, news[key].object_snapshot
            is_running = replica in {each.replica_id for each in targets.running_replicas}
            has_run |= is_running
            while has_run and not is_running:
                state = await replica_state(replica)
                if state == "STOPPING" or not targets.is_available:
                    return
                is_running = state is not None
                await asyncio.sleep(RETRY_S)
        except (RayError, ValueError):  # ValueError: no such actor, for now
            seen = -1
            await asyncio.sleep(RETRY_S)
        except (AttributeError, KeyError, TypeError):
            log.exception(
                "this version of Ray Serve is not understood: a replica that is to go is not noticed"
            )
            seen = -1
            await asyncio.sleep(BROKEN_RETRY_S)


async def replica_state(replica: Any) -> str | None:
    """The controller's word on it: RUNNING, STOPPING ...; None if it does not know the replica."""
    details: Any = await _controller().get_serve_instance_details.remote()
    deployment = replica.deployment_id
    application = details["applications"].get(deployment.app_name) or {"deployments": {}}
    replicas = (application["deployments"].get(deployment.name) or {"replicas": []})["replicas"]
    states = {each["replica_id"]: str(each["state"]) for each in replicas}
    return states.get(replica.unique_id, "").removeprefix("ReplicaState.") or None


def _controller() -> Any:
    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
