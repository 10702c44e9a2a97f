"""The engines of other processes, behind the same protocols as engines of this one.

Cancelling a task does not cross a DeploymentHandle, so every call sits in `cancelling`, which calls `.cancel()` on
the way out, however it is left. What Ray raises becomes an `EngineError` here and nowhere else.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from deployments.interfaces import (
    NO_TOOLS,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    Sampling,
    SpeechChunk,
    Stage,
    Tools,
    Transcript,
)

from .stages import Engines


@asynccontextmanager
async def cancelling(response: Any, stage: Stage) -> AsyncIterator[Any]:
    """A call through a handle (a response, or a generator of them) that is stopped in its replica when the block is left before it has ended.

    Raises EngineError for whatever goes wrong with it. Serve finishes the cancellation in the background: it
    reaches the replica within milliseconds (tests/serve/test_cancellation.py).
    """
    try:
        yield response
    except asyncio.CancelledError:
        # Serve keeps the one that passed its own frames, in a circle; this one holds the session's.
        raise asyncio.CancelledError from None
    except EngineError:
        raise
    except RayTaskError as error:
        raise _engine_error(error, stage) from error
    except BackPressureError as error:
        raise EngineBusy(
            "all replicas are busy and their queues full", stage=stage, engine="serve"
        ) from error
    except RequestCancelledError as error:
        raise EngineFailed("the call was cancelled by its replica", stage=stage, engine="serve") from error
    except (RayError, RayServeException) as error:
        raise EngineFailed(
            f"the replica was lost ({type(error).__name__})", stage=stage, engine="serve"
        ) from error
    except Exception as error:  # over gRPC a fault of the replica's own arrives as itself
        raise EngineFailed(
            f"the replica failed ({type(error).__name__}: {error})", stage=stage, engine="serve"
        ) from error
    finally:
        # A call that found no replica is over, and says so again when it is cancelled.
        with suppress(RayError, RayServeException):
            response.cancel()
            _cancel_what_was_just_assigned(response)


def _cancel_what_was_just_assigned(response: Any) -> None:
    """Serve's own `cancel()` misses a call that got its replica in this very turn of the loop (Ray 2.60).

    The assignment can no longer be cancelled then, and the response has not taken the call from it yet: the replica
    would work to the end for nobody.
    """
    if response._replica_result is not None:
        return

    def cancel(assigned: Any) -> None:
        if not assigned.cancelled() and assigned.exception() is None:
            assigned.result().cancel()

    response._replica_result_future.add_done_callback(cancel)


class Items:
    """What a streaming call yields, read by a task that is never cancelled: `cancelling` ends the call, and so the reading.

    grpc.aio never frees what belongs to a cancelled read: some 100 bytes, and the message where it has arrived,
    which keeps a whole 64 KiB receive buffer (https://github.com/grpc/grpc/issues/43360). With 12 callers who
    barge in the ingress grew by 1.7 MB a minute. One task a call, and not one an item: on a full core each turn of
    the loop that an item waits for costs 20 ms.
    """

    def __init__(self, response: Any) -> None:
        self._read: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        reading = asyncio.ensure_future(self._read_all(response))  # noqa: TID251 - it outlives who waits
        _READING.add(reading)
        reading.add_done_callback(_READING.discard)

    async def _read_all(self, response: Any) -> None:
        try:
            while True:
                self._read.put_nowait((await anext(response), None))
        except BaseException as end:  # raised again where the items are wanted
            self._read.put_nowait((None, end.with_traceback(None)))  # a traceback would hold this frame

    def __aiter__(self) -> "Items":
        return self

    async def __anext__(self) -> Any:
        item, end = await self._read.get()
        if end is None:
            return item
        self._read.put_nowait((None, StopAsyncIteration()))  # for whoever asks again
        try:
            raise end
        finally:
            del end  # else it holds this frame, and this frame it


_READING: set[asyncio.Future[None]] = set()
"""Held here: the loop alone does not keep a task alive."""


def _engine_error(error: RayTaskError, stage: Stage) -> EngineError:
    """What the replica raised, as it was raised there if it is an EngineError."""
    cause = error.cause
    if isinstance(cause, EngineError):
        return type(cause)(cause.message, stage=cause.stage, engine=cause.engine)
    return EngineFailed(f"the replica failed ({type(cause).__name__}: {cause})", stage=stage, engine="serve")


class RemoteTranscriber:
    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._transcribe = handle.options(_by_reference=False).transcribe

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        call = self._transcribe.remote(pcm, language, prompt, is_interim)
        async with cancelling(call, "stt") as response:
            transcript: Transcript = await response
            return transcript


class RemoteChatModel:
    """With a `session_id` all calls go to one replica while it lives and has room (`deployments.routing`); else to any."""

    def __init__(self, handle: DeploymentHandle[Any], *, session_id: str = "") -> None:
        handle = handle.options(session_id=session_id, _by_reference=False)
        self._handle = handle
        self._generate = handle.options(stream=True).generate
        self._prefill = handle.prefill

    def for_session(self, session_id: str) -> "RemoteChatModel":
        """The handles of all sessions share one router."""
        return RemoteChatModel(self._handle, session_id=session_id)

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        async with cancelling(self._prefill.remote(messages, sampling, tools), "llm") as response:
            await response

    async def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncGenerator[ChatDelta, None]:
        async with cancelling(self._generate.remote(messages, sampling, tools), "llm") as deltas:
            async for delta in Items(deltas):
                yield delta


def for_session(engines: Engines, session_id: str) -> Engines:
    """`engines` as one session uses them."""
    if isinstance(engines.chat, RemoteChatModel):
        return replace(engines, chat=engines.chat.for_session(session_id))
    return engines


class RemoteSynthesizer:
    voices: Sequence[str] = ()
    """Checked where the client names one (`session_config.check_voice`), and again by the engine."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._synthesize = handle.options(stream=True, _by_reference=False).synthesize

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncGenerator[SpeechChunk, None]:
        async with cancelling(self._synthesize.remote(text, voice, speed), "tts") as chunks:
            async for chunk in Items(chunks):
                yield chunk
