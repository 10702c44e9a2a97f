"""Calls of many sessions carried out together by one worker thread: the one micro-batcher, for any engine.

Decided here: which calls wait, which go together, and who is turned away. What a batch is for, the engine decides.

- Fair: calls run in order of arrival. The oldest call that waits chooses the key (a window size, say) of the next
  batch, and the calls of that key join it, oldest first: no key and no session can be starved.
- A wait has a bound: an idle worker gives the oldest call `max_wait_s` to find company; a busy one takes what has
  gathered meanwhile. With room for one there is no wait.
- Finals before interims. An interim is refused with EngineBusy while a final waits or runs. A final that arrives
  turns away the interims that wait, and those that run: their callers are released at once, and their work is asked
  to stop. Finals and interims are therefore never in one batch.
- A cancelled call that waits is never begun. One that runs is released at once; its thread goes on until `work`
  looks at `Job.is_wanted`, which it should between steps.
- A batch that fails with EngineError is carried out again one by one, so that one call cannot fail its neighbours.

All but `work` runs on the event loop. There are no tasks: a timer and the end of a batch are all that happens.
"""

import asyncio
from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from .interfaces import EngineBusy, EngineError, Stage

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Job(Generic[Item]):
    """One call, as the worker sees it."""

    item: Item
    key: Hashable
    is_interim: bool
    arrived_at: float
    """The event loop's time."""
    answer: "asyncio.Future[Any]"
    is_wanted: bool = True
    """Turns False, from the event loop's thread, when nobody waits for the result any more."""


class MicroBatcher(Generic[Item, Result]):
    """`work` gets the jobs of one batch in its thread and gives their results in order. Serves one event loop at a time."""

    def __init__(
        self,
        work: Callable[[Sequence[Job[Item]]], Sequence[Result]],
        *,
        max_batch: Callable[[Any], int],
        max_wait_s: float,
        stage: Stage,
        engine: str,
    ) -> None:
        """`max_batch` tells for a key how many calls may go together; one or more."""
        self.batches = 0
        """Begun so far."""
        self.jobs = 0
        """In these batches: `jobs / batches` is how well calls find company."""
        self._work = work
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._stage: Stage = stage
        self._engine = engine
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=engine)
        self._waiting: list[Job[Item]] = []  # in order of arrival
        self._running: Sequence[Job[Item]] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(
        self, item: Item, *, key: Hashable, is_interim: bool = False, arrived_at: float | None = None
    ) -> Result:
        """The result of `item`. `arrived_at` keeps the place in the queue of a call that comes a second time.

        Raises EngineBusy for an interim that finds or meets a final, or more interims than one batch holds.
        """
        loop = asyncio.get_running_loop()
        self._adopt(loop)
        if is_interim and self._has_no_room_for_interim(key):
            raise self._busy()
        if not is_interim:
            self._turn_interims_away()
        since = loop.time() if arrived_at is None else arrived_at
        job = Job(item, key, is_interim, since, loop.create_future())
        insort(self._waiting, job, key=attrgetter("arrived_at"))
        self._begin_or_wait()
        try:
            result: Result = await job.answer
            return result
        finally:
            job.is_wanted = False
            if job in self._waiting:
                self._waiting.remove(job)
                self._begin_or_wait()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            # The loop before has been closed with all its callers, and its callbacks will never run.
            self._loop, self._timer, self._waiting, self._running = loop, None, [], ()

    def _has_no_room_for_interim(self, key: Hashable) -> bool:
        others = [*self._running, *self._waiting]
        return any(not job.is_interim for job in others) or len(self._waiting) >= self._max_batch(key)

    def _turn_interims_away(self) -> None:
        for job in [*self._waiting, *self._running]:
            if job.is_interim:
                job.is_wanted = False
                if not job.answer.done():
                    job.answer.set_exception(self._busy())
        self._waiting = [job for job in self._waiting if not job.is_interim]

    def _begin_or_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running or not self._waiting:
            return
        assert self._loop is not None, "set before the first job"
        first = self._waiting[0]
        if len(self._company(first)) < self._max_batch(first.key):
            self._timer = self._loop.call_at(first.arrived_at + self._max_wait_s, self._begin)
        else:
            self._begin()

    def _company(self, first: Job[Item]) -> list[Job[Item]]:
        return [job for job in self._waiting if job.key == first.key][: self._max_batch(first.key)]

    def _begin(self) -> None:
        assert self._loop is not None, "set before the first job"
        self._timer = None
        batch = self._company(self._waiting[0])
        self._waiting = [job for job in self._waiting if job not in batch]
        self._running = batch
        self.batches += 1
        self.jobs += len(batch)
        work = self._loop.run_in_executor(self._executor, self._carry_out, batch)
        work.add_done_callback(self._end)

    def _carry_out(self, batch: Sequence[Job[Item]]) -> list[Result | EngineError]:
        if not any(job.is_wanted for job in batch):
            return [self._busy()] * len(batch)
        try:
            return list(self._work(batch))
        except EngineError as error:
            if len(batch) == 1:
                return [error]
        return [outcome for job in batch for outcome in self._carry_out([job])]

    def _end(self, work: "asyncio.Future[list[Result | EngineError]]") -> None:
        batch, self._running = self._running, ()
        fault = work.exception()
        outcomes: Sequence[Any] = [fault] * len(batch) if fault else work.result()
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.answer.done():
                continue
            if isinstance(outcome, BaseException):
                job.answer.set_exception(outcome)
            else:
                job.answer.set_result(outcome)
        self._begin_or_wait()

    def _busy(self) -> EngineBusy:
        return EngineBusy("finals come before interims", stage=self._stage, engine=self._engine)
