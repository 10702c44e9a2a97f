"""The micro-batcher on a worker that waits to be told to go on."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from deployments.interfaces import EngineBusy, EngineFailed
from deployments.microbatch import Job, MicroBatcher

SOON_S = 30.0
"""A test that hangs ends here."""


class Worker:
    """Answers an item by itself in capitals; while it is held, a batch that has begun does not end."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.wanted_at_end: list[list[bool]] = []
        self._begun = threading.Semaphore(0)
        self._may_end = threading.Event()
        self._may_end.set()

    def hold(self) -> None:
        self._may_end.clear()

    def release(self) -> None:
        self._may_end.set()

    async def has_begun(self) -> None:
        """Another batch since the last call of this."""
        assert await asyncio.to_thread(self._begun.acquire, timeout=SOON_S)

    def __call__(self, jobs: Sequence[Job[str]]) -> list[str]:
        self.batches.append([job.item for job in jobs])
        self._begun.release()
        assert self._may_end.wait(SOON_S)
        self.wanted_at_end.append([job.is_wanted for job in jobs])
        if "broken" in self.batches[-1]:
            raise EngineFailed("broken", stage="stt", engine="fake")
        if "wrong" in self.batches[-1]:
            raise LookupError("wrong")
        return [job.item.upper() for job in jobs]


def batcher_of(worker: Worker, *, max_batch: int = 4, max_wait_s: float = 0.0) -> MicroBatcher[str, str]:
    def rooms(key: Any) -> int:
        return 1 if key == "alone" else max_batch

    return MicroBatcher(worker, max_batch=rooms, max_wait_s=max_wait_s, stage="stt", engine="fake")


@pytest.fixture
def worker() -> Any:
    worker = Worker()
    yield worker
    worker.release()


async def settled() -> None:
    """All tasks that can go on have done so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_that_come_together_are_one_batch_and_each_gets_its_own_result(worker: Worker) -> None:
    batcher = batcher_of(worker, max_wait_s=0.05)
    results = await asyncio.gather(*(batcher.submit(item, key=1) for item in "abc"))
    assert results == ["A", "B", "C"]
    assert worker.batches == [["a", "b", "c"]]
    assert (batcher.jobs, batcher.batches) == (3, 1)


async def test_a_full_batch_does_not_wait(worker: Worker) -> None:
    batcher = batcher_of(worker, max_batch=2, max_wait_s=1000.0)
    assert await asyncio.gather(batcher.submit("a", key=1), batcher.submit("b", key=1)) == ["A", "B"]


async def test_a_call_without_company_waits_no_longer_than_set(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    batcher = batcher_of(worker, max_wait_s=0.02)
    started = loop.time()
    assert await batcher.submit("a", key=1) == "A"
    assert 0.02 <= loop.time() - started < 5.0


async def test_where_batching_does_not_pay_nothing_waits_and_nothing_is_joined(worker: Worker) -> None:
    batcher = batcher_of(worker, max_wait_s=1000.0)
    assert await asyncio.gather(*(batcher.submit(item, key="alone") for item in "ab")) == ["A", "B"]
    assert worker.batches == [["a"], ["b"]]


async def test_what_comes_while_a_batch_runs_is_the_next_batch(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker, max_batch=3, max_wait_s=0.02)
    async with asyncio.TaskGroup() as calls:
        tasks = [calls.create_task(batcher.submit(item, key=1)) for item in "abc"]
        await worker.has_begun()
        tasks += [calls.create_task(batcher.submit(item, key=1)) for item in "defg"]
        await settled()
        assert len(worker.batches) == 1
        worker.release()
    assert [task.result() for task in tasks] == list("ABCDEFG")
    assert worker.batches == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


async def test_the_oldest_call_chooses_the_key_so_that_none_is_starved(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker)
    async with asyncio.TaskGroup() as calls:
        calls.create_task(batcher.submit("first", key=10))
        await worker.has_begun()
        for item, key in [("a", 30), ("b", 10), ("c", 30), ("d", 10), ("e", 20)]:
            calls.create_task(batcher.submit(item, key=key))
        await settled()
        worker.release()
    assert worker.batches == [["first"], ["a", "c"], ["b", "d"], ["e"]]


async def test_a_call_that_comes_a_second_time_keeps_its_place(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker)
    arrived_at = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as calls:
        calls.create_task(batcher.submit("first", key=1))
        await worker.has_begun()
        calls.create_task(batcher.submit("later", key=1))
        await settled()
        calls.create_task(batcher.submit("again", key="alone", arrived_at=arrived_at))
        await settled()
        worker.release()
    assert worker.batches == [["first"], ["again"], ["later"]]


async def test_an_interim_is_refused_at_once_while_a_final_runs_or_waits(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker, max_wait_s=1000.0)
    async with asyncio.TaskGroup() as calls:
        final = calls.create_task(batcher.submit("final", key=1))
        await settled()
        assert worker.batches == [], "it waits for company"
        with pytest.raises(EngineBusy):
            await batcher.submit("interim", key=1, is_interim=True)
        others = [calls.create_task(batcher.submit(item, key=1)) for item in "abc"]
        await worker.has_begun()
        with pytest.raises(EngineBusy):
            await batcher.submit("interim", key=1, is_interim=True)
        worker.release()
    assert [task.result() for task in (final, *others)] == ["FINAL", "A", "B", "C"]


async def test_a_final_turns_away_the_interims_that_wait_and_those_that_run(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker)
    async with asyncio.TaskGroup() as calls:
        running = calls.create_task(released(batcher.submit("running", key=1, is_interim=True)))
        await worker.has_begun()
        waiting = calls.create_task(released(batcher.submit("waiting", key=1, is_interim=True)))
        await settled()
        final = calls.create_task(batcher.submit("final", key=1))
        await settled()
        assert running.done(), "released before its forward has ended"
        assert waiting.done()
        worker.release()
    assert isinstance(running.result(), EngineBusy)
    assert isinstance(waiting.result(), EngineBusy)
    assert final.result() == "FINAL"
    assert worker.batches == [["running"], ["final"]]
    assert worker.wanted_at_end[0] == [False], "its work could see that it should stop"


async def released(call: Any) -> Any:
    try:
        return await call
    except EngineBusy as busy:
        return busy


async def test_interims_are_heard_together_and_no_more_of_them_wait_than_one_batch_holds(
    worker: Worker,
) -> None:
    worker.hold()
    batcher = batcher_of(worker, max_batch=2)
    async with asyncio.TaskGroup() as calls:
        tasks = [calls.create_task(batcher.submit("a", key=1, is_interim=True))]
        await worker.has_begun()
        tasks += [calls.create_task(batcher.submit(item, key=1, is_interim=True)) for item in "bc"]
        await settled()
        with pytest.raises(EngineBusy):
            await batcher.submit("d", key=1, is_interim=True)
        worker.release()
    assert [task.result() for task in tasks] == ["A", "B", "C"]
    assert worker.batches == [["a"], ["b", "c"]]


async def test_a_cancelled_call_that_waits_is_never_begun(worker: Worker) -> None:
    worker.hold()
    batcher = batcher_of(worker)
    async with asyncio.TaskGroup() as calls:
        calls.create_task(batcher.submit("a", key=1))
        await worker.has_begun()
        cancelled = calls.create_task(batcher.submit("b", key=1))
        calls.create_task(batcher.submit("c", key=1))
        await settled()
        cancelled.cancel()
        await settled()
        assert cancelled.done()
        worker.release()
    assert worker.batches == [["a"], ["c"]]


async def test_when_the_oldest_is_cancelled_the_others_begin_when_they_are_due(worker: Worker) -> None:
    batcher = batcher_of(worker, max_wait_s=0.05)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(batcher.submit("a", key=1))
        await settled()
        other = calls.create_task(batcher.submit("b", key=2))
        await settled()
        first.cancel()
    assert other.result() == "B"
    assert worker.batches == [["b"]]


async def test_the_only_call_cancelled_while_it_waits_leaves_nothing_behind(worker: Worker) -> None:
    batcher = batcher_of(worker, max_wait_s=0.01)
    async with asyncio.TaskGroup() as calls:
        task = calls.create_task(batcher.submit("a", key=1))
        await settled()
        task.cancel()
    await asyncio.sleep(0.05)
    assert worker.batches == []
    assert await batcher.submit("b", key=1) == "B"


async def test_one_cancelled_in_a_running_batch_is_released_at_once_and_the_others_get_theirs(
    worker: Worker,
) -> None:
    worker.hold()
    batcher = batcher_of(worker, max_batch=2, max_wait_s=1000.0)
    async with asyncio.TaskGroup() as calls:
        cancelled, kept = (calls.create_task(batcher.submit(item, key=1)) for item in "ab")
        await worker.has_begun()
        cancelled.cancel()
        await settled()
        assert cancelled.done()
        worker.release()
    assert kept.result() == "B"
    assert worker.wanted_at_end == [[False, True]]


async def test_a_batch_cancelled_between_queue_and_thread_is_not_carried_out(worker: Worker) -> None:
    batcher = batcher_of(worker)
    gate = threading.Event()
    batcher._executor.submit(gate.wait, SOON_S)
    async with asyncio.TaskGroup() as calls:
        task = calls.create_task(batcher.submit("a", key=1))
        await settled()
        task.cancel()
        await settled()
        gate.set()
    assert await batcher.submit("b", key=1) == "B"
    assert worker.batches == [["b"]]


async def test_one_call_that_fails_does_not_fail_its_neighbours(worker: Worker) -> None:
    batcher = batcher_of(worker, max_batch=3, max_wait_s=1000.0)
    results = await asyncio.gather(
        *(batcher.submit(item, key=1) for item in ("a", "broken", "b")), return_exceptions=True
    )
    assert [results[0], results[2]] == ["A", "B"]
    assert isinstance(results[1], EngineFailed)
    assert worker.batches == [["a", "broken", "b"], ["a"], ["broken"], ["b"]]


async def test_a_fault_of_ours_reaches_every_caller_and_the_next_batch_runs(worker: Worker) -> None:
    batcher = batcher_of(worker, max_batch=2, max_wait_s=1000.0)
    results = await asyncio.gather(
        *(batcher.submit(item, key=1) for item in ("a", "wrong")), return_exceptions=True
    )
    assert [type(result) for result in results] == [LookupError, LookupError]
    assert await batcher.submit("b", key="alone") == "B"


def test_a_batcher_outlives_the_loop_that_was_closed_under_its_batch(worker: Worker) -> None:
    batcher = batcher_of(worker)
    worker.hold()

    async def leave() -> None:
        async with asyncio.TaskGroup() as calls:
            task = calls.create_task(batcher.submit("a", key=1))
            await worker.has_begun()
            task.cancel()

    asyncio.run(leave())
    worker.release()
    assert asyncio.run(batcher.submit("b", key=1)) == "B"
