"""The three engine calls of a turn: each reports facts through `report`, and its failure as a fact too.

Time limits are per event: the first, then each further one. Cancelling the task cancels the call.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal, TypeVar, cast

from deployments import interfaces
from deployments.interfaces import (
    BadRequest,
    ChatMessage,
    ChatModel,
    EngineBusy,
    EngineError,
    EngineFailed,
    Prefilling,
    Sampling,
    SpeechDetector,
    Stage,
    Synthesizer,
    Tool,
    ToolCall,
    ToolCallDelta,
    Tools,
    Transcriber,
    TurnJudge,
)
from serve_app.conversation import events
from serve_app.conversation.commands import Generate, JudgeTurn, Message, Prefill, Synthesize, Transcribe
from serve_app.conversation.events import (
    CallGenerated,
    CallId,
    ChunkId,
    Fact,
    Failure,
    GenerationFailed,
    GenerationFinished,
    ResponseId,
    SpeechSynthesized,
    SynthesisFailed,
    SynthesisFinished,
    TokensGenerated,
    TranscriptFinished,
    TranscriptionFailed,
    TurnJudged,
    Usage,
    WordTime,
)
from serve_app.realtime.session_config import AudioFormat

from .ears import Ears
from .output import SegmentCutter

T = TypeVar("T")
log = logging.getLogger("voice_serve.session")

PREFILL_S = 60.0
"""Nobody waits for it, so it may take longer than a first token may; a call that hangs must end all the same."""

PrefillOutcome = Literal["done", "superseded", "busy", "failed"]
"""superseded: an answer was begun, or something changed again; busy: the model had answers to give."""


@dataclass(frozen=True, slots=True)
class Engines:
    """What a session talks to: engines of this process, or the clients of their deployments."""

    make_detector: Callable[[], SpeechDetector]
    transcriber: Transcriber
    chat: ChatModel
    synthesizer: Synthesizer
    turn_judge: TurnJudge | None = None
    """None: only the words tell whether a turn is over."""
    ears: Ears = field(default_factory=Ears)
    """Of all sessions that share these engines."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    stt_s: float = 8.0
    llm_first_token_s: float = 10.0
    llm_gap_s: float = 5.0
    tts_first_audio_s: float = 8.0
    tts_gap_s: float = 8.0

    def token_gap_s(self, tools: Tools) -> float:
        """Some servers hold a call back until it is whole, so a pause may be as long as that before the first token."""
        return max(self.llm_gap_s, self.llm_first_token_s) if tools.offered else self.llm_gap_s


class TimeLimitExceeded(EngineFailed):
    """The engine gave nothing within the time that the configuration allows."""


class Calls:
    """The calls of one answer, put together from their pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    def add(self, piece: ToolCallDelta) -> None:
        call = self._calls.get(piece.index, ToolCall("", "", ""))
        self._calls[piece.index] = ToolCall(
            call.call_id or piece.call_id, call.name or piece.name, call.arguments + piece.arguments
        )

    def so_far(self) -> list[ToolCall]:
        return [call for _, call in sorted(self._calls.items())]

    def whole(self, *, was_cut: bool) -> list[ToolCall]:
        """All of them, in order. What the token limit cut is left out; else what is no call is EngineFailed."""
        made = []
        for call in self.so_far():
            arguments = call.arguments.strip() or "{}"
            if call.name and _is_object(arguments):
                made.append(replace(call, arguments=arguments))
            elif not was_cut:
                message = (
                    f"the model called {call.name or 'no function'!r} with arguments that are no JSON object"
                )
                raise EngineFailed(message, stage="llm", engine="call")
        return made


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class StageCalls:
    def __init__(
        self,
        engines: Engines,
        limits: TimeLimits,
        sampling: Sampling,
        chunk_ms: int,
        report: Callable[[Fact], None],
    ) -> None:
        self._engines = engines
        self._limits = limits
        self._sampling = sampling
        self._chunk_ms = chunk_ms
        self._report = report
        self._chunk_ids = count(1)
        self.chunks: dict[ChunkId, tuple[ResponseId, bytes]] = {}
        """Encoded sound that waits for its `Play`."""

    def forget(self, response_id: ResponseId) -> None:
        """Drop the sound of a response that will not be played."""
        self.chunks = {key: chunk for key, chunk in self.chunks.items() if chunk[0] != response_id}

    async def transcribe(self, command: Transcribe, pcm: bytes) -> None:
        limit = self._limits.stt_s
        try:
            async with within(limit, "stt", f"no transcript within {limit:g} s"):
                transcript = await self._engines.transcriber.transcribe(
                    pcm, language=command.language, prompt=command.prompt, is_interim=command.is_interim
                )
        except EngineError as error:
            self._report(TranscriptionFailed(command.transcription_id, _failure(error)))
        else:
            self._report(TranscriptFinished(command.transcription_id, transcript.text))

    async def judge(self, command: JudgeTurn, pcm: bytes) -> None:
        """An opinion that does not come is no failure of the turn: its wait follows the words alone."""
        assert self._engines.turn_judge is not None, "asked for only where there is one"
        try:
            completeness = await self._engines.turn_judge.completeness(pcm)
        except EngineError as error:
            log.warning("no opinion on the end of a turn", extra={"error": str(error)})
        else:
            self._report(TurnJudged(command.judgement_id, completeness))

    async def generate(self, command: Generate) -> None:
        messages = _chat(command.messages)
        tools, calls = Tools(_offered(command.tools), command.must_call), Calls()
        limits, finish, usage = self._limits, None, None
        stream = self._engines.chat.generate(
            messages, sampling=self._limited(command.max_output_tokens), tools=tools
        )
        try:
            timed = paced(stream, "llm", "token", limits.llm_first_token_s, limits.token_gap_s(tools))
            async with aclosing(timed) as deltas:
                async for delta in deltas:
                    if delta.text:
                        self._report(TokensGenerated(command.response_id, delta.text, delta.tokens))
                    if delta.call is not None:
                        calls.add(delta.call)
                    finish = delta.finish_reason or finish
                    usage = delta.usage or usage
            made = calls.whole(was_cut=finish == "length")
        except EngineError as error:
            self._report(GenerationFailed(command.response_id, _failure(error)))
            return
        for call in made:
            call_id = CallId(call.call_id) if call.call_id else None
            self._report(CallGenerated(command.response_id, call_id, call.name, call.arguments))
        counted = usage and Usage(usage.input_tokens, usage.output_tokens)
        self._report(GenerationFinished(command.response_id, finish or "stop", counted))

    async def prefill(self, command: Prefill) -> PrefillOutcome:
        chat = self._engines.chat
        if not isinstance(chat, Prefilling):
            return "failed"
        try:
            async with within(PREFILL_S, "llm", f"not read within {PREFILL_S:g} s"):
                sampling = self._limited(command.max_output_tokens)
                await chat.prefill(
                    _chat(command.messages), sampling=sampling, tools=Tools(_offered(command.tools))
                )
        except EngineBusy:
            return "busy"
        except EngineError as error:
            log.info("prefill failed", extra={"error": str(error)})
            return "failed"
        return "done"

    def _limited(self, max_tokens: int | None) -> Sampling:
        default = self._sampling
        wanted = default.max_tokens if max_tokens is None else min(max_tokens, default.max_tokens)
        return Sampling(wanted, default.temperature, default.top_p, default.seed)

    async def synthesize(self, command: Synthesize, audio_format: AudioFormat) -> None:
        text = command.text.strip()
        shift = len(command.text) - len(command.text.lstrip())
        cutter = SegmentCutter(audio_format, self._chunk_ms)
        limits = self._limits
        stream = self._engines.synthesizer.synthesize(text, voice=command.voice, speed=command.speed)
        words: tuple[WordTime, ...] = ()
        try:
            timed = paced(stream, "tts", "audio", limits.tts_first_audio_s, limits.tts_gap_s)
            async with aclosing(timed) as chunks:
                async for chunk in chunks:
                    words += tuple(_shifted(word, shift) for word in chunk.words)
                    for encoded, seconds in cutter.push(chunk):
                        self._offer(command, encoded, seconds, words)
                        words = ()
        except EngineError as error:
            self._report(SynthesisFailed(command.response_id, command.segment_id, _failure(error)))
            return
        for encoded, seconds in cutter.flush():
            self._offer(command, encoded, seconds, words)
            words = ()
        self._report(SynthesisFinished(command.response_id, command.segment_id))

    def _offer(
        self, command: Synthesize, encoded: bytes, seconds: float, words: tuple[WordTime, ...]
    ) -> None:
        chunk_id = ChunkId(next(self._chunk_ids))
        self.chunks[chunk_id] = (command.response_id, encoded)
        self._report(SpeechSynthesized(command.response_id, command.segment_id, chunk_id, seconds, words))


@asynccontextmanager
async def within(seconds: float, stage: Stage, message: str) -> AsyncIterator[None]:
    """The block is cancelled after so long. Raises TimeLimitExceeded with `message`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeLimitExceeded(message, stage=stage, engine="time limit") from None


async def paced(
    stream: AsyncIterator[T], stage: Stage, what: str, first_s: float, gap_s: float
) -> AsyncGenerator[T, None]:
    """The stream, with a limit on the wait for each item. Raises TimeLimitExceeded past it."""
    limit = first_s
    # Every engine's stream is an async generator, so that closing it stops the engine; the protocol need not say so.
    async with aclosing(cast("AsyncGenerator[T, None]", stream)):
        while True:
            async with within(limit, stage, f"no {what} within {limit:g} s"):
                try:
                    item = await anext(stream)
                except StopAsyncIteration:
                    return
            yield item
            limit = gap_s


def _chat(messages: tuple[Message, ...]) -> list[ChatMessage]:
    return [_chat_message(message) for message in messages]


def _offered(tools: tuple[events.Tool, ...]) -> tuple[Tool, ...]:
    return tuple(Tool(tool.name, tool.description, tool.parameters) for tool in tools)


def _chat_message(message: Message) -> ChatMessage:
    calls = tuple(ToolCall(call.call_id, call.name, call.arguments) for call in message.calls)
    return ChatMessage(message.role, message.text, calls, message.output_of or "")


def _shifted(word: interfaces.WordTime, shift: int) -> WordTime:
    return WordTime(word.start_char + shift, word.end_char + shift, word.start_s, word.end_s)


def _failure(error: EngineError) -> Failure:
    return Failure(error.stage, error.code, str(error), retryable=not isinstance(error, BadRequest))
