"""What an engine must offer: four small protocols, their value types and their errors.

An engine raises `EngineError` and nothing else. When the task that awaits it is cancelled, the caller is released
within 50 ms and no new forward pass starts; a forward that is under way may finish and holds its slot until then.
Values cross process boundaries, so they are plain, frozen and small: audio is 16-bit PCM bytes, never float32.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

TRANSCRIBER_RATE = 16_000
"""Sample rate, in Hz, of all audio given to a detector or a transcriber."""

DETECTOR_FRAME = 512
"""Samples in one frame of the voice activity detector: 32 ms at 16 kHz."""

Stage = Literal["vad", "turn", "stt", "llm", "tts"]
Role = Literal["system", "user", "assistant", "tool"]


class EngineError(Exception):
    """An engine could not do what it was asked; the session goes on. `stage` and `engine` say which."""

    code = "engine_error"

    def __init__(self, message: str, *, stage: Stage, engine: str) -> None:
        super().__init__(message)
        self.message = message
        self.stage: Stage = stage
        self.engine = engine

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Keyword-only fields survive the pickling between replicas."""
        return _rebuild_error, (type(self), self.message, self.stage, self.engine)

    def __str__(self) -> str:
        return f"{self.stage} ({self.engine}): {self.message}"


class EngineBusy(EngineError):
    """No room for the call now; it may succeed later or on another replica."""

    code = "engine_busy"


class EngineFailed(EngineError):
    """The engine broke, hung or gave nothing; the call may be tried once more."""

    code = "engine_failed"


class BadRequest(EngineError):
    """The call can never succeed as it is (over-long context, unknown voice); it is not retried."""

    code = "engine_bad_request"


class ToolsNotSupported(BadRequest):
    """The engine, or the model that it runs, cannot call functions."""

    code = "tools_not_supported"


def _rebuild_error(kind: type[EngineError], message: str, stage: Stage, engine: str) -> EngineError:
    return kind(message, stage=stage, engine=engine)


@dataclass(frozen=True, slots=True)
class Transcript:
    text: str
    """What was said, stripped; empty for silence or noise."""
    language: str | None = None
    """ISO 639-1 code, where the engine knows it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    parameters: str
    """JSON schema of its arguments, an object, as JSON text."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a model may call in one answer, and whether it must."""

    offered: tuple[Tool, ...] = ()
    must_call: bool = False
    """The answer has a call, of whichever tool; nothing where none is offered."""


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class ToolCall:
    call_id: str
    name: str
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: `call_id` and `name` come whole with its first piece, `arguments` grows piece by piece."""

    index: int
    """Which call of the answer, from 0."""
    call_id: str = ""
    """"" where the engine has no ids, and in later pieces."""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    """Of the assistant: what it called after saying `content`, which may be "". An output of each follows."""
    call_id: str = ""
    """Of role "tool": the call that `content` is the output of."""


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of the answer. The last one of a stream carries `finish_reason`, and `usage` where it is known."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None
    call: ToolCallDelta | None = None
    tokens: int = 1
    """How many of the model's its text is, about."""


@dataclass(frozen=True, slots=True)
class WordTime:
    """When one word of a text is spoken: `text[start_char:end_char]` sounds from `start_s` to `end_s`.

    Seconds count from the first sample of that synthesis call, over all its chunks.
    """

    start_char: int
    end_char: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    pcm: bytes
    """16-bit little-endian mono."""
    sample_rate: int
    words: tuple[WordTime, ...] = ()
    """Words that end in this chunk or become known with it; empty where the engine has no word times."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a person is told about the engine that serves a stage."""

    stage: Stage
    engine: str
    model: str
    reason: str = ""
    """Why this engine runs, when it was chosen by `auto`."""
    remedy: str = ""
    """What to do for a better one; empty when the configured engine runs."""
    details: Mapping[str, str] = field(default_factory=dict)


class SpeechDetector(Protocol):
    """The voice activity of one session; holds that session's recurrent state."""

    def probability(self, frame: npt.NDArray[np.float32]) -> float:
        """Probability in [0, 1] that `frame`, float32 (512,) at 16 kHz, holds speech. Frames must come in order."""
        ...

    @staticmethod
    def probabilities(detectors: Sequence[Any], frames: npt.NDArray[np.float32]) -> list[float]:
        """`probability` for several sessions at once: float32 (n, 512), the row of each. All are of this class."""
        ...


class TurnJudge(Protocol):
    async def completeness(self, pcm: bytes) -> float:
        """Probability in [0, 1] that the turn is over that `pcm` (16-bit mono at 16 kHz, ends in a pause) holds."""
        ...


class Transcriber(Protocol):
    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        """The words in one utterance: `pcm` is 16-bit mono at 16 kHz; `prompt` is text that may come before it.

        An interim is a guess at an utterance that goes on. It never delays a final: it raises EngineBusy, at once,
        where finals wait or run, and may do so later when one comes while it is under way.
        """
        ...


class ChatModel(Protocol):
    def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        """The answer to `messages`, streamed. Closing or cancelling the iterator stops the generation.

        An answer may be words, calls, or words and then calls; a call comes before the delta with the finish reason.
        Raises ToolsNotSupported where tools are offered to a model that cannot call them.
        """
        ...


@runtime_checkable
class Prefilling(Protocol):
    """A chat model that keeps what it has read: a prompt whose beginning it knows is answered sooner."""

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """Read `messages`, so that `generate` with the same ones and what the user says next has less to read.

        `sampling` and `tools` as that call will have them: what is dropped of a long conversation depends on it. It never competes
        with an answer: it raises EngineBusy where one is under way, and may do so later when one comes.
        """
        ...


@runtime_checkable
class HealthChecked(Protocol):
    """An engine that can tell whether it still works, besides being in a process that lives."""

    async def check_health(self) -> None:
        """Raises EngineFailed when it does not. Called before the first request and every few seconds after."""
        ...


class Synthesizer(Protocol):
    voices: Sequence[str]
    """Names that `voice` may have; empty where any will do."""

    def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        """`text` as speech, streamed. Raises BadRequest for a voice that the engine does not have."""
        ...
