"""What a replica counts of its calls: asked for by health checks, tests and benchmarks, never logged."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class CallStatistics:
    started: int = 0
    active: int = 0
    completed: int = 0
    cancelled: int = 0
    failed: int = 0
    last_cancel_at: float = 0.0
    """`time.monotonic()` of this machine when the last cancelled caller was let go."""

    @contextmanager
    def call(self) -> Iterator[None]:
        self.started += 1
        self.active += 1
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            self.last_cancel_at = time.monotonic()
            raise
        except BaseException:
            self.failed += 1
            raise
        else:
            self.completed += 1
        finally:
            self.active -= 1

    def snapshot(self) -> dict[str, float]:
        return asdict(self)
