"""An asyncio event loop whose clock is a number: when nothing is ready it jumps to the next timer.

    @virtual_time
    async def test_an_hour_passes():
        await asyncio.sleep(3600)

A minute of conversation takes a fraction of a second and its times are exact. Threads and sockets have no place on
such a loop: what waits for them looks like a deadlock, and a deadlock (nothing ready, no timer) raises with the stack
of every task. A test also fails if it leaves a task behind or if an exception reached nobody but the loop's handler.
"""

import asyncio
import functools
import selectors
import traceback
import unittest.mock
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

START_S = 1000.0
"""Not 0, so that no time is mistaken for one that was never set."""


class Deadlock(AssertionError):
    """Every task waits for something that nothing will bring."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`steps` counts its iterations: the points at which something outside could have happened."""

    def __init__(self) -> None:
        self.now = START_S
        self.steps = 0
        self.at_step: dict[int, Callable[[], None]] = {}
        """Called before the iteration of that number, once."""
        self.faults: list[dict[str, Any]] = []
        """What the loop's exception handler was told."""
        super().__init__(_JumpingSelector(self))
        self._clock_resolution = 1e-9
        self.set_exception_handler(lambda _loop, context: self.faults.append(context))

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        self.steps += 1
        callback = self.at_step.pop(self.steps, None)
        if callback is not None:
            callback()
        super()._run_once()

    def jump(self) -> None:
        """To the next timer."""
        timers = [handle.when() for handle in self._scheduled if not handle.cancelled()]
        if not timers:
            raise Deadlock("nothing is ready and no timer is set:\n" + _stacks(self))
        self.now = max(self.now, min(timers))


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout != 0:
            self._loop.jump()
        return ready


def run(main: Coroutine[Any, Any, T]) -> T:
    """`main` on a virtual clock, in asyncio's debug mode. Raises AssertionError for what it leaves behind."""
    # Debug mode keeps the stack at which each task, future and callback was made: half of these tests' time.
    no_stacks = unittest.mock.patch.object(traceback.StackSummary, "extract", _no_stack)
    with no_stacks, asyncio.Runner(debug=True, loop_factory=VirtualLoop) as runner:
        result = runner.run(_without_remains(main))
        loop = runner.get_loop()
    assert isinstance(loop, VirtualLoop)
    assert not loop.faults, f"exceptions that nobody handled: {loop.faults}"
    return result


def _no_stack(*_args: object, **_kwargs: object) -> traceback.StackSummary:
    return _NO_STACK


_NO_STACK = traceback.StackSummary()


async def _without_remains(main: Coroutine[Any, Any, T]) -> T:
    result = await main
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
    return result


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    @functools.wraps(test)
    def on_virtual_loop(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(test(*args, **kwargs))

    return on_virtual_loop


def the_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def _stacks(loop: VirtualLoop) -> str:
    """What each task waits for, from its outermost coroutine inwards."""
    lines = []
    for task in asyncio.all_tasks(loop):
        lines.append(task.get_name())
        inner: Any = task.get_coro()
        while inner is not None:
            frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
            if frame is not None:
                lines.append(f"  {frame.f_code.co_qualname} {frame.f_code.co_filename}:{frame.f_lineno}")
            inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return "\n".join(lines)
