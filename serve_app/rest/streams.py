"""Work for a client that may hang up, and answers that leave as they are made.

A server tells of a hang-up in one of two ways: it cancels the request's task (Serve's default proxy), or `receive`
gives `http.disconnect` (uvicorn, which HAProxy mode speaks to). Both must end the engine's call.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.interfaces import EngineError

from . import errors

log = logging.getLogger("voice_serve.rest")

Event = Mapping[str, object]
DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream"


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """The block is cancelled when the client hangs up, and ends in ClientDisconnect then.

    The request's body must have been read: `receive` is waited on meanwhile.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_until_hang_up(receive), name="hang-up")
            try:
                yield
            finally:
                watching.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[
            0
        ] from None  # the block's own, or ClientDisconnect: the group has no other task


async def _until_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect


async def streamed(
    request: Request,
    parts: AsyncGenerator[bytes, None],
    media_type: str,
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A response of `parts`, begun: the first is here, so that what fails before it still has a status of its own.

    What fails later breaks the connection off: a client can tell a file that is whole from one that is not.
    """
    try:
        async with while_connected(request.receive):
            first = await anext(parts, b"")
    except BaseException:
        await parts.aclose()  # it goes on where the client hung up as the first part came
        raise
    return _Streamed(first, parts, media_type, headers)


class _Streamed(Response):
    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"X-Accel-Buffering": "no", **(headers or {})})
        self._first = first
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._rest) as rest, while_connected(receive):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _send_part(send, self._first)
                async for part in rest:
                    await _send_part(send, part)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientDisconnect, OSError):  # OSError: uvicorn's word for a send after the hang-up
            log.debug("client hung up")


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def event(fields: Event) -> bytes:
    """A server-sent event (HTML, 9.2.5); JSON in ASCII holds no line break."""
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


async def events(items: AsyncGenerator[Event, None], end: bytes = b"") -> AsyncGenerator[bytes, None]:
    """Server-sent events, and `end` after the last. An engine's failure after the first is the last event, without `end`."""
    has_begun = False
    async with aclosing(items):
        try:
            async for item in items:
                yield event(item)
                has_begun = True
        except EngineError as error:
            if not has_begun:
                raise
            yield event(errors.of_engine(error).body)
            return
    if end:
        yield end
