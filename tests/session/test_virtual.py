"""The virtual loop itself: a tool that other tests trust."""

import asyncio
import time

import pytest
from session.virtual import START_S, Deadlock, run, the_loop, virtual_time


@virtual_time
async def test_hours_pass_in_no_time_and_to_the_second():
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for hours in (1, 2, 3):
            tasks.create_task(asyncio.sleep(3600 * hours))
    assert the_loop().time() == START_S + 3 * 3600
    assert time.monotonic() - began < 5.0


@virtual_time
async def test_timers_fire_in_order_and_at_their_time():
    fired: list[tuple[str, float]] = []

    async def nap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        fired.append((name, the_loop().time() - START_S))

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("b", 0.5), ("a", 0.25), ("c", 0.75)):
            tasks.create_task(nap(name, seconds))
    assert fired == [("a", 0.25), ("b", 0.5), ("c", 0.75)]


def test_a_deadlock_raises_with_the_stacks():
    async def waits_for_nothing() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="waits_for_nothing"):
        run(waits_for_nothing())


def test_a_task_left_behind_fails_the_test():
    async def leaves_one() -> None:
        the_loop().keep = asyncio.create_task(asyncio.sleep(1))  # type: ignore[attr-defined]

    with pytest.raises(AssertionError, match="left behind"):
        run(leaves_one())


def test_an_exception_that_nobody_saw_fails_the_test():
    async def forgets() -> None:
        async def breaks() -> None:
            raise KeyError("unseen")

        task = asyncio.create_task(breaks())
        await asyncio.sleep(1)
        del task

    with pytest.raises(AssertionError, match="unseen"):
        run(forgets())


@virtual_time
async def test_a_step_can_be_hooked():
    steps: list[int] = []
    loop = the_loop()
    loop.at_step[loop.steps + 3] = lambda: steps.append(loop.steps)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(steps) == 1
