"""`POST /v1/audio/transcriptions`: a file of speech to its words.

The file is decoded and heard by the voice activity detector in a thread. It is cut where it is silent into pieces of at
most 30 s, the window of a Whisper; a piece in which nobody speaks is not transcribed, so that nothing comes from
nothing. Pieces go to the transcriber one after the other: one long file never takes more than one replica's time.
"""

import asyncio
import threading
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field
from starlette.datastructures import FormData, UploadFile

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector, Transcriber
from serve_app.audio.pcm import decode_pcm
from serve_app.session.stages import TimeLimits, within

from . import media
from .bodies import Body, too_large
from .errors import ApiError, not_supported
from .streams import Event

MAX_FILE_BYTES = 25 * 1024 * 1024
"""OpenAI's own limit."""
MAX_FORM_BYTES = MAX_FILE_BYTES + 256 * 1024
PIECE_FRAMES = 30 * TRANSCRIBER_RATE // DETECTOR_FRAME
"""The longest piece: 29.98 s."""
_EARLIEST_CUT = PIECE_FRAMES // 3
_SILENCE_BELOW = 0.35
"""Probability under which a frame may be cut in: Silero's own figure for the end of speech."""
_FORMATS = ("json", "text", "verbose_json")
_UNBUILT_FORMATS = ("srt", "vtt", "diarized_json")

Probabilities = npt.NDArray[np.float32]


class TranscriptionRequest(Body):
    """The form's fields but the file. `temperature` is accepted without effect: the engines choose their own."""

    model: str = Field(default="", max_length=256)
    language: str | None = Field(default=None, max_length=35)
    prompt: str | None = None
    temperature: float = Field(default=0, ge=0, le=1)
    response_format: str = "json"
    stream: bool = False

    def refuse_unbuilt(self) -> None:
        """Raises ApiError."""
        extra = self.model_extra or {}
        if self.response_format in _UNBUILT_FORMATS:
            raise not_supported("response_format", f"response_format '{self.response_format}'")
        if self.response_format not in _FORMATS:
            known = ", ".join(_FORMATS)
            message = f"Invalid 'response_format': known are {known}."
            raise ApiError(400, message, code="invalid_value", param="response_format")
        if "word" in extra.get("timestamp_granularities[]", ()):
            raise not_supported("timestamp_granularities", "times of words")
        if extra.get("include[]"):
            raise not_supported("include", "'include'")


def fields_of(form: FormData) -> dict[str, object]:
    """The fields that are filled in; those whose names end in [] are lists."""
    names = [name for name in form if name != "file"]
    fields = {name: form.getlist(name) if name.endswith("[]") else form[name] for name in names}
    return {name: value for name, value in fields.items() if value != ""}


async def file_of(form: FormData) -> bytes:
    """Raises ApiError."""
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        message = "Missing required parameter: 'file', a file with its name."
        raise ApiError(400, message, code="missing_required_parameter", param="file")
    if (upload.size or 0) > MAX_FILE_BYTES:
        raise too_large(MAX_FILE_BYTES)
    return await upload.read()


@dataclass(frozen=True, slots=True)
class Piece:
    start: int
    """Sample."""
    stop: int
    speech_probability: float
    """Of its most speech-like frame."""


@dataclass(frozen=True, slots=True)
class Heard:
    pcm: bytes
    pieces: list[Piece]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / TRANSCRIBER_RATE


@dataclass(frozen=True, slots=True)
class Segment:
    piece: Piece
    text: str
    language: str | None


async def hear(data: bytes, make_detector: Callable[[], SpeechDetector]) -> Heard:
    """The file, decoded and cut. Raises ApiError. Cancelling stops the thread within a packet or a second of sound."""
    cancelled = threading.Event()
    try:
        return await asyncio.to_thread(_hear, data, make_detector, cancelled)
    except media.Undecodable as error:
        message = f"The audio file could not be decoded: {error}."
        raise ApiError(400, message, code="invalid_audio", param="file") from None
    finally:
        cancelled.set()


def _hear(data: bytes, make_detector: Callable[[], SpeechDetector], cancelled: threading.Event) -> Heard:
    pcm = media.decode(data, cancelled)
    audio = decode_pcm(pcm)
    frames = np.pad(audio, (0, -len(audio) % DETECTOR_FRAME)).reshape(-1, DETECTOR_FRAME)
    detector = make_detector()
    probabilities = np.zeros(len(frames), dtype=np.float32)
    for index, frame in enumerate(frames):
        if index % 32 == 0 and cancelled.is_set():
            break
        probabilities[index] = detector.probability(frame)
    return Heard(pcm, cut(probabilities, len(audio)))


def cut(probabilities: Probabilities, samples: int) -> list[Piece]:
    """Pieces that make up the whole, cut in the middle of the longest silence that the limit allows."""
    pieces, start = [], 0
    while start < len(probabilities):
        stop = len(probabilities)
        if stop - start > PIECE_FRAMES:
            stop = start + _EARLIEST_CUT
            stop += _quietest(probabilities[stop : start + PIECE_FRAMES])
        probability = float(probabilities[start:stop].max())
        end = min(stop * DETECTOR_FRAME, samples)
        pieces.append(Piece(start * DETECTOR_FRAME, end, probability))
        start = stop
    return pieces


def _quietest(probabilities: Probabilities) -> int:
    """Where to cut: at least 1. In unbroken speech, at the frame that is least like it."""
    is_silent = np.concatenate(([False], probabilities < _SILENCE_BELOW, [False]))
    edges = np.flatnonzero(is_silent[1:] != is_silent[:-1])
    begins, ends = edges[::2], edges[1::2]
    if not len(begins):
        return max(1, int(probabilities.argmin()))
    longest = int((ends - begins).argmax())
    return max(1, int(begins[longest] + ends[longest]) // 2)


async def transcribed(
    transcriber: Transcriber,
    heard: Heard,
    request: TranscriptionRequest,
    limits: TimeLimits,
    speech_threshold: float,
) -> AsyncGenerator[Segment, None]:
    """The pieces that hold words. Each may take `stt_s` and its own length: the limit is made for one utterance."""
    for piece in heard.pieces:
        if piece.speech_probability < speech_threshold:
            continue
        limit = limits.stt_s + (piece.stop - piece.start) / TRANSCRIBER_RATE
        async with within(limit, "stt", f"no transcript within {limit:.0f} s"):
            transcript = await transcriber.transcribe(
                heard.pcm[piece.start * 2 : piece.stop * 2], language=request.language, prompt=request.prompt
            )
        if text := transcript.text.strip():
            yield Segment(piece, text, transcript.language)


async def as_events(segments: AsyncGenerator[Segment, None]) -> AsyncGenerator[Event, None]:
    """A delta a piece; together they are the text of the last event."""
    texts: list[str] = []
    async with aclosing(segments):
        async for segment in segments:
            delta = f" {segment.text}" if texts else segment.text
            texts.append(delta)
            yield {"type": "transcript.text.delta", "delta": delta}
    yield {"type": "transcript.text.done", "text": "".join(texts)}


async def as_json(
    segments: AsyncGenerator[Segment, None], heard: Heard, request: TranscriptionRequest
) -> dict[str, object]:
    async with aclosing(segments):
        found = [segment async for segment in segments]
    body: dict[str, object] = {
        "text": " ".join(segment.text for segment in found),
        "usage": {"type": "duration", "seconds": int(np.ceil(heard.seconds))},
    }
    if request.response_format == "verbose_json":
        language = next((s.language for s in found if s.language), None) or request.language or "unknown"
        body |= {
            "task": "transcribe",
            "language": language,
            "duration": round(heard.seconds, 3),
            "segments": [_segment(number, segment) for number, segment in enumerate(found)],
        }
    return body


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """A piece as Whisper's segment. What the engines do not tell is neutral: a client that filters keeps it."""
    encoded = segment.text.encode()
    return {
        "id": number,
        "seek": segment.piece.start * 100 // TRANSCRIBER_RATE,
        "start": round(segment.piece.start / TRANSCRIBER_RATE, 3),
        "end": round(segment.piece.stop / TRANSCRIBER_RATE, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": round(len(encoded) / len(zlib.compress(encoded)), 3),
        "no_speech_prob": round(1 - segment.piece.speech_probability, 3),
    }
