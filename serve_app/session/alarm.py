"""The timer of a session: one that is moved with every frame of audio, and goes off once in a while."""

import asyncio
from collections.abc import Callable

CLOCK_S = 0.001
"""uvloop's clock has whole milliseconds: a timer that is due in less goes off in the loop's next turn, over and over."""


class Alarm:
    """`on_due` is called once the deadline has come, in a turn of the loop of its own; what it raises goes to `on_failure`.

    The loop's timer goes off at the deadline or before: a deadline that moves on does not move it.
    """

    def __init__(self, on_due: Callable[[], None], on_failure: Callable[[Exception], None]) -> None:
        self._on_due = on_due
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline: float | None = None

    def set(self, deadline: float | None) -> None:
        """Seconds of the loop's clock; None: it does not go off."""
        self._deadline = deadline
        if deadline is None:
            return
        if self._timer is None:
            self._start(deadline)
        elif self._timer_at > deadline:
            self._timer.cancel()
            self._start(deadline)

    def end(self) -> None:
        """Nothing of it is left on the loop."""
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        try:
            now = self._loop.time()
            if now < self._deadline:
                self._start(max(self._deadline, now + CLOCK_S))
            else:
                self._on_due()
        except Exception as error:
            self._on_failure(error)
