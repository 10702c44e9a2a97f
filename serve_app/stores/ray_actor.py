"""Records in a detached actor of the Ray cluster: nothing to install, and they outlive every replica and every redeploy.

The actor is on the head, so that a worker node may die. The records do not outlive the head: where its state is kept
elsewhere the actor is started again empty, and the sessions that live write themselves into it anew; those whose sockets
were lost in the meantime are gone. Where that matters: Redis.
"""

import asyncio
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError

from serve_app.session.resumption import Claimed, StoreUnavailable

from .memory import claimed, raise_refusal
from .table import Table

log = logging.getLogger("voice_serve.resumption")

NAME = "voice-serve-sessions-2"
"""The number counts the versions of what the actor is asked: it outlives a redeploy, so the one that an older program
has left behind must not be asked by a newer one."""
NAMESPACE = "voice-serve"
ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""A resource that Ray gives its head, in no amount worth mentioning."""


GATHER_S = 0.05
"""What a save waits for those of other sessions: a call of an actor costs about a millisecond, whatever it carries."""

Record = tuple[str, int, str, str, float]
Batch = list[tuple[Record, "asyncio.Future[str | None]"]]


class Records:
    """The actor: a `Table` on this process's clock."""

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._table = Table(time.monotonic, max_records=max_records, max_bytes=max_bytes)

    def save_all(self, records: list[Record]) -> list[str | None]:
        return [self._table.save(*record) for record in records]

    def claim(self, *claim: Any) -> tuple[int, str] | str:
        return self._table.claim(*claim)

    def forget(self, *record: Any) -> str | None:
        return self._table.forget(*record)

    def figures(self) -> dict[str, int]:
        table = self._table
        return {"records": len(table), "bytes": table.bytes, "dropped": table.dropped}


START_S = 30.0
"""An actor is a process: it takes seconds to start, more than a call of the store may."""


class ActorStore:
    """The records of all replicas, in the one actor of the cluster; made by the first replica, and anew if it is lost."""

    def __init__(self, *, max_records: int = 20_000, max_bytes: int = 256 * 2**20) -> None:
        self._limits = max_records, max_bytes
        self._actor: Any = None
        self._batch: Batch = []
        self._sending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Wait until the actor serves, so that the first caller need not; if it does not, its calls will say so."""
        try:
            self._actor = self._find()
            ray.get(self._actor.figures.remote(), timeout=START_S)
        except (RayError, ValueError) as error:
            self._actor = None
            log.warning("the store of sessions has not started", extra={"error": type(error).__name__})

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        """Together with those of other sessions."""
        loop = asyncio.get_running_loop()
        if not self._batch:
            loop.call_later(GATHER_S, self._send)
        answer: asyncio.Future[str | None] = loop.create_future()
        self._batch.append(((session_id, generation, token_hash, snapshot, expires_s), answer))
        raise_refusal(await answer)

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        return claimed(await self._ask("claim", session_id, token_hash, new_hash, expires_s))

    async def forget(self, session_id: str, generation: int, expires_s: float) -> None:
        raise_refusal(await self._ask("forget", session_id, generation, expires_s))

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self._send()  # the actor takes calls in their order: what was saved before is there
        return await self._answer(self._call(method, *arguments))

    def _send(self) -> None:
        """What waits to be saved, but for the saves that were given up meanwhile."""
        batch, self._batch = [(record, answer) for record, answer in self._batch if not answer.done()], []
        if batch:
            try:
                refusals = self._call("save_all", [record for record, _ in batch])
            except StoreUnavailable as error:
                _fail(batch, error)
                return
            task = asyncio.get_running_loop().create_task(self._saved(refusals, batch))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _saved(self, refusals: Any, batch: Batch) -> None:
        try:
            found = await self._answer(refusals)
        except StoreUnavailable as error:
            _fail(batch, error)
            return
        for (_, answer), refusal in zip(batch, found, strict=True):
            if not answer.done():
                answer.set_result(refusal)

    def _call(self, method: str, *arguments: Any) -> Any:
        """The call, under way when this returns."""
        try:
            if self._actor is None:
                self._actor = self._find()
            return getattr(self._actor, method).remote(*arguments)
        except (RayError, ValueError) as error:  # ValueError: it was being removed as we looked it up
            raise self._lost(error) from error

    async def _answer(self, call: Any) -> Any:
        try:
            return await call
        except RayError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> StoreUnavailable:
        self._actor = None
        return StoreUnavailable(f"the actor {NAME}: {type(error).__name__}")

    def _find(self) -> Any:
        records: Any = ray.remote(num_cpus=0, max_restarts=-1, resources=ON_THE_HEAD)(Records)
        return records.options(
            name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
        ).remote(*self._limits)


def _fail(batch: Batch, error: StoreUnavailable) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
