"""`POST /v1/audio/speech`: the voice by itself, sent as it is made.

The text is spoken in segments, a short clause first, as in a conversation: the first sound does not wait for the whole.
"""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import Field, field_validator

from deployments.interfaces import SpeechChunk, Synthesizer
from deployments.ssml import parse, synthesize_ssml
from serve_app.conversation.segmentation import SpeechSegmenter
from serve_app.session.stages import TimeLimits, paced

from .bodies import Body
from .media import SPEECH_RATE, SpeechFile, SpeechFormat
from .streams import Event

MAX_INPUT_CHARS = 4096
"""OpenAI's own limit."""
_SSML = re.compile(r"\s*<(\?xml\s|!DOCTYPE\s|speak[\s/>])")
_NOTHING_TO_SAY = SpeechChunk(bytes(SPEECH_RATE // 10 * 2), SPEECH_RATE)
"""A tenth of a second of silence, for a text without a letter or a digit: an agent's emoji is no error."""


class SpeechRequest(Body):
    input: str = Field(min_length=1, max_length=MAX_INPUT_CHARS)
    model: str = Field(default="", max_length=256)
    voice: str = Field(default="", max_length=256)
    """"": the server's own. OpenAI's `{"id": ...}` is read as the id."""
    speed: float | None = Field(default=None, ge=0.25, le=4.0)
    response_format: SpeechFormat = "mp3"
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str = ""
    """Accepted without effect: no engine here can be told how to speak."""

    @field_validator("voice", mode="before")
    @classmethod
    def _voice_id(cls, voice: Any) -> Any:
        return voice.get("id") if isinstance(voice, dict) else voice


async def spoken(
    synthesizer: Synthesizer, text: str, voice: str, speed: float, limits: TimeLimits
) -> AsyncGenerator[SpeechChunk, None]:
    """The sound of plain text or SSML. Raises EngineError; for SSML that cannot be read, BadRequest."""
    is_silent = True
    for segment in _segments(synthesizer, text, voice, speed):
        async with aclosing(
            paced(segment, "tts", "audio", limits.tts_first_audio_s, limits.tts_gap_s)
        ) as chunks:
            async for chunk in chunks:
                is_silent = False
                yield chunk
    if is_silent:
        yield _NOTHING_TO_SAY


def _segments(
    synthesizer: Synthesizer, text: str, voice: str, speed: float
) -> Iterator[AsyncIterator[SpeechChunk]]:
    """One call after the other, each made when the one before it has ended."""
    if _SSML.match(text):
        yield synthesize_ssml(synthesizer, parse(text.strip()), voice=voice, speed=speed)
        return
    segmenter = SpeechSegmenter()
    for part in [*segmenter.push(text), *segmenter.flush()]:
        yield synthesizer.synthesize(part.strip(), voice=voice, speed=speed)


async def as_file(
    chunks: AsyncGenerator[SpeechChunk, None], file_format: SpeechFormat
) -> AsyncGenerator[bytes, None]:
    """The bytes of the file, as they come to be. Encoding is done in a thread, one call at a time."""
    file = await asyncio.to_thread(SpeechFile, file_format)
    async with aclosing(chunks):
        async for chunk in chunks:
            if encoded := await asyncio.to_thread(file.push, chunk):
                yield encoded
    if encoded := await asyncio.to_thread(file.close):
        yield encoded


async def as_events(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[Event, None]:
    async with aclosing(parts):
        async for part in parts:
            yield {"type": "speech.audio.delta", "audio": b64encode(part).decode()}
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}  # a voice has no tokens
    yield {"type": "speech.audio.done", "usage": usage}
