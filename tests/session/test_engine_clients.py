"""How a call through a handle ends: where Serve has no replica for it, and where it is left before its end."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, RequestMetadata
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from deployments.interfaces import EngineFailed
from serve_app.session.engine_clients import Items, cancelling


class Unassigned:
    """A response whose deployment was taken away: it raises when awaited, and once more when cancelled."""

    error = DeploymentUnavailableError(DeploymentID(name="LanguageModel", app_name="voice"))

    async def __anext__(self) -> Any:
        raise self.error

    def cancel(self) -> None:
        raise self.error


async def test_a_deployment_that_is_gone_fails_the_call_and_not_the_session():
    with pytest.raises(EngineFailed, match="DeploymentUnavailableError"):
        async with cancelling(Unassigned(), "llm") as response:
            await anext(response)


class Call:
    """What Serve knows of a streaming call that a replica has: a read waits until the call is cancelled."""

    def __init__(self) -> None:
        self.reads = self.cancelled_reads = 0
        self.cancelled = asyncio.Event()

    async def __anext__(self) -> Any:
        self.reads += 1
        try:
            await self.cancelled.wait()
        except asyncio.CancelledError:
            self.cancelled_reads += 1
            raise
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled.set()


def response_of(assigned: "asyncio.Future[Call]") -> Any:
    """Serve's own response, of a router on this loop, as the ingress has it in HAProxy mode."""
    metadata = RequestMetadata("request", "internal", is_streaming=True)
    return DeploymentResponseGenerator(assigned, metadata, _is_router_running_in_separate_loop=False)  # type: ignore[arg-type]


async def _drained(response: Any) -> None:
    async with cancelling(response, "llm") as items:
        async for _ in Items(items):
            pass


async def test_leaving_a_stream_cancels_the_call_and_never_a_read():
    call, assigned = Call(), asyncio.get_running_loop().create_future()
    assigned.set_result(call)
    task = asyncio.create_task(_drained(response_of(assigned)))
    while not call.reads:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled.is_set()
    await asyncio.sleep(0.01)
    assert call.cancelled_reads == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("is_left_first", [True, False], ids=["left first", "assigned first"])
async def test_a_call_that_is_left_in_the_turn_of_its_assignment_is_cancelled(is_left_first: bool):
    call, assigned = Call(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_drained(response_of(assigned)))
    await asyncio.sleep(0.01)
    if is_left_first:
        task.cancel()
    assigned.set_result(call)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert call.cancelled.is_set()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Three:
    """A call of three items, and then what comes after them."""

    def __init__(self, end: BaseException) -> None:
        self._left = iter([1, 2, 3])
        self._end = type(end)

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        for number in self._left:
            return number
        raise self._end

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("end", [StopAsyncIteration(), RuntimeError()], ids=["ends", "fails"])
async def test_a_stream_that_is_over_leaves_nothing_to_the_garbage_collector(end: BaseException):
    """A circle a call was 12 MB a minute at 20 callers, until the next full collection."""
    assigned: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    assigned.set_result(Three(end))
    left = weakref.ref(assigned.result())
    response = response_of(assigned)
    gc.collect()
    gc.disable()
    try:
        with suppress(EngineFailed):
            await _drained(response)
        del response, assigned
        await asyncio.sleep(0.01)
        assert left() is None
    finally:
        gc.enable()


async def test_a_cancellation_that_serve_keeps_does_not_keep_the_session():
    kept: list[BaseException] = []

    class Keeps:
        """Serve's router holds the cancellation of a call in one of the frames that it has passed."""

        _replica_result = "assigned"

        async def __anext__(self) -> Any:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                kept.append(error)
                raise

        def cancel(self) -> None:
            pass

    async def call() -> None:
        async with cancelling(Keeps(), "stt") as response:
            await anext(response)

    class Thing:
        pass

    async def session(things: list[Any]) -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        await call()

    things: list[Any] = []
    task = asyncio.create_task(session(things))
    await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)  # the loop's handle of its end is over, too
    assert kept
    assert things[0]() is None


async def test_a_stream_that_is_read_to_its_end_yields_all():
    async def three() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    assert [item async for item in Items(three())] == [0, 1, 2]
