"""The language model as a Serve deployment: a thin shell around one engine."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from ray import serve

from .autoscaling import TOKENS_IN_FLIGHT, LoadMeter, prompt_tokens
from .engines import create
from .gathering import gathered
from .interfaces import (
    NO_TOOLS,
    ChatDelta,
    ChatMessage,
    ChatModel,
    EngineInfo,
    HealthChecked,
    Prefilling,
    Sampling,
    Tools,
)
from .options import LlmOptions
from .replica import Replica, closing
from .routing import BY_SESSION


@serve.deployment(name="LanguageModel", request_router_config=BY_SESSION)
class LanguageModel(Replica):
    def __init__(self, options: LlmOptions, info: EngineInfo) -> None:
        super().__init__(info)
        self._engine: ChatModel = create(options)
        self._tokens = LoadMeter()

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here three times in a row, and takes none into service before it passes."""
        if isinstance(self._engine, HealthChecked):
            await self._engine.check_health()

    async def generate(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncGenerator[ChatDelta, None]:
        prompt = prompt_tokens([message.content for message in messages])
        with self.statistics.call(), self._tokens.share(prompt) as tokens:
            stream = self._engine.generate(messages, sampling=sampling, tools=tools)
            async with closing(stream) as deltas, closing(gathered(deltas)) as pieces:
                async for delta in pieces:
                    tokens.add(delta.tokens)
                    yield delta

    async def prefill(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """Not counted among the calls; does nothing where the engine cannot."""
        if isinstance(self._engine, Prefilling):
            await self._engine.prefill(messages, sampling=sampling, tools=tools)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked for by Serve, for `autoscaling.ByLoad`."""
        return {TOKENS_IN_FLIGHT: self._tokens.total}


def bind(options: LlmOptions, info: EngineInfo) -> Any:
    return LanguageModel.bind(options, info)  # type: ignore[attr-defined]  # the decorator's type hides it
