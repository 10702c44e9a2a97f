"""Text to speech as a Serve deployment: a thin shell around one engine."""

from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from .engines import create
from .interfaces import EngineInfo, SpeechChunk, Synthesizer
from .options import TtsOptions
from .replica import Replica, closing


@serve.deployment(name="TextToSpeech")
class TextToSpeech(Replica):
    def __init__(self, options: TtsOptions, info: EngineInfo) -> None:
        super().__init__(info)
        self._engine: Synthesizer = create(options)

    async def synthesize(self, text: str, voice: str, speed: float) -> AsyncGenerator[SpeechChunk, None]:
        with self.statistics.call():
            async with closing(self._engine.synthesize(text, voice=voice, speed=speed)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def voices(self) -> list[str]:
        """The names that `voice` may have; empty where the engine takes any."""
        return list(self._engine.voices)


def bind(options: TtsOptions, info: EngineInfo) -> Any:
    return TextToSpeech.bind(options, info)  # type: ignore[attr-defined]  # the decorator's type hides it
