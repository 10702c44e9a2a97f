"""What the conformance suites share."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
RELEASE_S = 1.0
"""How long a cancelled caller may wait for its release. The contract says 50 ms, and a benchmark measures it: a test on
a busy machine only tells released from not released."""


async def cancelled_after(after_s: float, call: Coroutine[Any, Any, object]) -> float:
    """Runs `call`, cancels it after this time if it is still under way, and gives how long its release took."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as calls:
        task = calls.create_task(call)
        await asyncio.sleep(after_s)
        started = loop.time()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return loop.time() - started


async def collected(stream: AsyncIterator[T]) -> list[T]:
    return [item async for item in stream]
