"""Speech to text as a Serve deployment: a thin shell around one engine."""

from typing import Any

from ray import serve

from .engines import create
from .interfaces import EngineInfo, Transcriber, Transcript
from .options import SttOptions
from .replica import Replica
from .routing import LEAST_LOADED


@serve.deployment(name="SpeechToText", request_router_config=LEAST_LOADED)
class SpeechToText(Replica):
    def __init__(self, options: SttOptions, info: EngineInfo) -> None:
        super().__init__(info)
        self._engine: Transcriber = create(options)

    async def transcribe(
        self, pcm: bytes, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        with self.statistics.call():
            return await self._engine.transcribe(pcm, language=language, prompt=prompt, is_interim=is_interim)


def bind(options: SttOptions, info: EngineInfo) -> Any:
    return SpeechToText.bind(options, info)  # type: ignore[attr-defined]  # the decorator's type hides it
