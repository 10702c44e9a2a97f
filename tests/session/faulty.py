"""Engines that go wrong in a set way, over engines that work."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from deployments.interfaces import (
    NO_TOOLS,
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineFailed,
    Sampling,
    SpeechChunk,
    Stage,
    Tools,
    Transcript,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    kind: Literal["hangs", "fails", "ends", "refuses"]
    """ends: the stream is over, or the transcript empty; refuses: a BadRequest, which is not tried again."""
    at: int = 0
    """Before this item of the stream."""


class _Faulty:
    """One fault a call, then none; None for a call that works."""

    stage: Stage

    def __init__(self, engine: Any, faults: Iterable[Fault | None], *, release_s: float = 0.0) -> None:
        """`release_s`: how long a cancelled caller is held."""
        self._engine = engine
        self._faults: Iterator[Fault | None] = iter(faults)
        self._release_s = release_s
        self.active = 0

    @property
    def started(self) -> int:
        started: int = self._engine.started
        return started

    def next_fault(self) -> Fault | None:
        return next(self._faults, None)

    async def strike(self, fault: Fault) -> None:
        """Raises, never returns, or returns for `ends`."""
        match fault.kind:
            case "hangs":
                await asyncio.get_running_loop().create_future()
            case "fails":
                raise EngineFailed("it broke", stage=self.stage, engine="faulty")
            case "refuses":
                raise BadRequest("it will not", stage=self.stage, engine="faulty")
            case "ends":
                return

    async def stream(self, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        fault, number = self.next_fault(), 0
        self.active += 1
        try:
            async with aclosing(cast("AsyncGenerator[T, None]", items)):
                async for item in items:
                    if fault is not None and number == fault.at:
                        await self.strike(fault)
                        return
                    yield item
                    number += 1
        except (asyncio.CancelledError, GeneratorExit):
            await asyncio.sleep(self._release_s)
            raise
        finally:
            self.active -= 1


class FaultyTranscriber(_Faulty):
    stage = "stt"

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        fault = self.next_fault()
        self.active += 1
        try:
            transcript: Transcript = await self._engine.transcribe(pcm, language=language, prompt=prompt)
            if fault is None:
                return transcript
            await self.strike(fault)
            return Transcript("")
        finally:
            self.active -= 1


class FaultyChatModel(_Faulty):
    stage = "llm"

    def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        return self.stream(self._engine.generate(messages, sampling=sampling, tools=tools))


class FaultySynthesizer(_Faulty):
    stage = "tts"

    def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        return self.stream(self._engine.synthesize(text, voice=voice, speed=speed))
