"""Text to speech as a Serve deployment: a thin shell around one engine.

Here, and for all that speaks, a written text becomes a speakable one; only the scripted voice is given what is written,
since its listeners count the words.
"""

from collections.abc import AsyncGenerator
from typing import Any

from ray import serve

from .autoscaling import AUDIO_S_OWED, LoadMeter, speech_s
from .engines import create
from .interfaces import EngineInfo, SpeechChunk, Synthesizer
from .options import TtsOptions
from .replica import Replica, closing
from .routing import LEAST_LOADED
from .speakable import Speakable

BYTES_PER_SAMPLE = 2
"""16-bit mono."""


@serve.deployment(name="TextToSpeech", request_router_config=LEAST_LOADED)
class TextToSpeech(Replica):
    def __init__(self, options: TtsOptions, info: EngineInfo) -> None:
        super().__init__(info)
        self._engine = make(options)
        self._owed = LoadMeter()

    async def synthesize(self, text: str, voice: str, speed: float) -> AsyncGenerator[SpeechChunk, None]:
        with self.statistics.call(), self._owed.share(speech_s(text, speed)) as owed:
            async with closing(self._engine.synthesize(text, voice=voice, speed=speed)) as chunks:
                async for chunk in chunks:
                    owed.add(-len(chunk.pcm) / BYTES_PER_SAMPLE / chunk.sample_rate)
                    yield chunk

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked for by Serve, for `autoscaling.ByLoad`."""
        return {AUDIO_S_OWED: self._owed.total}

    async def voices(self) -> list[str]:
        """The names that `voice` may have; empty where the engine takes any."""
        return list(self._engine.voices)


def make(options: TtsOptions) -> Synthesizer:
    """The engine of these options, as a replica has it: what it is given is made speakable first."""
    engine: Synthesizer = create(options)
    match options.engine:
        case "kokoro":
            return Speakable(engine, pronunciations="kept")
        case "espeak":
            return Speakable(engine, pronunciations="dropped")
        case "scripted" | "auto":
            return engine


def bind(options: TtsOptions, info: EngineInfo) -> Any:
    return TextToSpeech.bind(options, info)  # type: ignore[attr-defined]  # the decorator's type hides it
