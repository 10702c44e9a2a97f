"""The language model as a Serve deployment: a thin shell around one engine."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve

from .engines import create
from .interfaces import (
    NO_TOOLS,
    ChatDelta,
    ChatMessage,
    ChatModel,
    EngineInfo,
    HealthChecked,
    Sampling,
    Tools,
)
from .options import LlmOptions
from .replica import Replica, closing


@serve.deployment(name="LanguageModel")
class LanguageModel(Replica):
    def __init__(self, options: LlmOptions, info: EngineInfo) -> None:
        super().__init__(info)
        self._engine: ChatModel = create(options)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here three times in a row, and takes none into service before it passes."""
        if isinstance(self._engine, HealthChecked):
            await self._engine.check_health()

    async def generate(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncGenerator[ChatDelta, None]:
        with self.statistics.call():
            async with closing(self._engine.generate(messages, sampling=sampling, tools=tools)) as deltas:
                async for delta in deltas:
                    yield delta


def bind(options: LlmOptions, info: EngineInfo) -> Any:
    return LanguageModel.bind(options, info)  # type: ignore[attr-defined]  # the decorator's type hides it
