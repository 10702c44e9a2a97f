"""What a session leaves behind when it is over: nothing, at once, even where the garbage collector never runs.

A mistake of ours is left to it: the log's traceback costs more than the session that is in it.
A circle of references is no leak, but at a hundred sessions a minute it is as good as one: each held 300 KB until the
next full collection, a minute later, which then held the event loop for 20 ms and left the memory in pieces.
"""

import asyncio
import gc
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from ingress.asgi import server_of
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from session.calls import append, tone
from session.virtual import the_loop, virtual_time
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config as UvicornConfig
from uvicorn.server import ServerState
from websockets.frames import Close, Frame, Opcode

from serve_app.direct_socket import DirectWebSocket
from serve_app.server import VoiceServer
from serve_app.web import routes

HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: voice.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
QUESTION = np.concatenate([tone(0, 12_000, 24_000), np.zeros(24_000, dtype=np.float32)])
AUDIO = b'"type":"response.output_audio.delta"'


class Wire(asyncio.Transport):
    """A socket that takes everything at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._is_closed = False

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self._is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    async def until(self, mark: bytes, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while sum(mark in data for data in self.sent) < count:
                await asyncio.sleep(0.01)


def closes(protocol: DirectWebSocket) -> None:
    protocol.data_received(_masked(Opcode.CLOSE, Close(1000, "").serialize()))


def vanishes(protocol: DirectWebSocket) -> None:
    """Its connection breaks, without a close."""


def breaks_the_rules(protocol: DirectWebSocket) -> None:
    protocol.data_received(_masked(Opcode.BINARY, b"\0"))


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """pytest keeps the records, and with them the tracebacks."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


ENDINGS = [closes, vanishes, breaks_the_rules]
Ending = Callable[[DirectWebSocket], None]


@pytest.mark.parametrize("ends", ENDINGS)
@pytest.mark.parametrize("front", ["uvicorn", "ray"])
@virtual_time
async def test_nothing_of_a_session_waits_for_the_garbage_collector(ends: Ending, front: str):
    server = server_of()
    app: ASGIApp = behind_ray(routes(server)) if front == "ray" else routes(server)
    await visit(server, app, ends)  # what is made once for all is made now
    with no_garbage_collector():
        before = ours()
        for _ in range(3):
            await visit(server, app, ends)
        left = ours() - before
    assert not left


async def visit(server: VoiceServer, app: ASGIApp, ends: Ending) -> None:
    """A question, its answer, another question in the midst of it, and the end in the midst of that."""
    config, state = UvicornConfig(app, lifespan="off", log_config=None, ws=DirectWebSocket), ServerState()
    config.load()
    protocol, wire = DirectWebSocket(config, state, {}), Wire()
    protocol.connection_made(wire)
    protocol.data_received(HANDSHAKE)
    await wire.until(b"session.created")
    for _ in range(2):
        heard = sum(AUDIO in data for data in wire.sent)
        protocol.data_received(_text(append(QUESTION)))
        await wire.until(AUDIO, heard + 2)
    ends(protocol)
    await asyncio.sleep(0.05)
    protocol.connection_lost(None)
    await asyncio.wait(state.tasks, timeout=5) if state.tasks else None
    while server.session_count:  # the application's own task may outlive uvicorn's
        await asyncio.sleep(0.01)
    await asyncio.sleep(60.0)  # longer than any timer


def behind_ray(app: ASGIApp) -> ASGIApp:
    """As a replica calls its application in HAProxy mode (ray.serve._private.replica, _direct_ingress_asgi): that the
    peer is gone, it says by cancelling."""

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        proxy = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        receiving = proxy.fetch_until_disconnect_task()
        serving = the_loop().create_task(_awaited(app(scope, proxy, send)))
        done, _ = await asyncio.wait([serving, receiving], return_when=asyncio.FIRST_COMPLETED)
        if serving in done:
            receiving.cancel()
            await serving
        else:
            serving.cancel()
            raise asyncio.CancelledError

    return behind


async def _awaited(served: Awaitable[None]) -> None:
    await served


@contextmanager
def no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ours() -> Counter[str]:
    """The objects of our classes that are there now, counted by class."""
    kinds = map(type, gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("serve_app."))


def _text(event: dict[str, Any]) -> bytes:
    return _masked(Opcode.TEXT, json.dumps(event).encode())


def _masked(opcode: Opcode, data: bytes) -> bytes:
    return Frame(opcode, data).serialize(mask=True)
