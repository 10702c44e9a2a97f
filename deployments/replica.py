"""What all engine replicas have in common: they count their calls and can say what they run."""

import logging
import os
import resource
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from typing import TypeVar, cast

from .interfaces import EngineInfo
from .statistics import CallStatistics

T = TypeVar("T")
log = logging.getLogger("ray.serve")

HEAVY_MODULES = (
    "torch",
    "kokoro",
    "faster_whisper",
    "ctranslate2",
    "onnxruntime",
    "xllamacpp",
    "sglang",
    "pocketsphinx",
)


class Replica:
    def __init__(self, info: EngineInfo) -> None:
        self.statistics = CallStatistics()
        self._info = info
        log.info("%s: %s with %s; %s", info.stage, info.engine, info.model, info.reason or "as configured")

    async def info(self) -> EngineInfo:
        """What serves this stage; answering at all says that the replica is ready."""
        loaded = ",".join(name for name in HEAVY_MODULES if name in sys.modules)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return replace(self._info, details={"loaded": loaded, "peak_rss_mb": str(peak_kb // 1024)})

    async def stats(self) -> dict[str, float]:
        return self.statistics.snapshot() | {"pid": os.getpid()}


def closing(stream: AsyncIterator[T]) -> AbstractAsyncContextManager[AsyncGenerator[T, None]]:
    """Every engine's stream is an async generator, so that leaving it early stops the engine."""
    return aclosing(cast("AsyncGenerator[T, None]", stream))
