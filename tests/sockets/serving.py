"""uvicorn on a free port of this machine, and an application whose end of the socket a test holds in its hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from serve_app import direct_socket
from serve_app.direct_socket import DirectWebSocket
from serve_app.socket_transport import SocketTransport

OURS = "serve_app.direct_socket:DirectWebSocket"
UVICORNS = "websockets-sansio"
POLL_S = 0.005
WITHIN_S = 20.0
"""What does not come within this does not come."""


@asynccontextmanager
async def serving(app: ASGIApp, **options: Any) -> AsyncIterator[str]:
    """The address of the server, of the WebSocket kind; `options`: uvicorn's."""
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=2, **({"ws": OURS} | options)
    )
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(server.serve())
        await until(lambda: server.started)
        host, port = server.servers[0].sockets[0].getsockname()
        try:
            yield f"ws://{host}:{port}"
        finally:
            server.should_exit = True
            await running


async def until(condition: Any) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(POLL_S)


@dataclass
class Line:
    """Both ends of one socket."""

    client: ClientConnection
    scope: Scope
    transport: SocketTransport
    got: list[str] = field(default_factory=list)
    """What was delivered."""

    @property
    def protocol(self) -> DirectWebSocket:
        protocol = direct_socket.of(self.scope)
        assert protocol is not None
        return protocol

    def deliver(self) -> None:
        self.transport.deliver_to(self.got.append)

    async def until_got(self, count: int) -> None:
        await until(lambda: len(self.got) >= count)

    def write(self, *frames: Frame) -> None:
        """Frames as they are, in one piece, whatever the client's own protocol says of them."""
        self.client.transport.write(b"".join(frame.serialize(mask=True) for frame in frames))


def text(data: bytes | str, *, fin: bool = True) -> Frame:
    return Frame(Opcode.TEXT, data.encode() if isinstance(data, str) else data, fin)


def more(data: bytes | str, *, fin: bool = True) -> Frame:
    return Frame(Opcode.CONT, data.encode() if isinstance(data, str) else data, fin)


@asynccontextmanager
async def line(**options: Any) -> AsyncIterator[Line]:
    """A socket that is accepted and whose text nobody has asked for yet."""
    opened: asyncio.Queue[tuple[Scope, SocketTransport]] = asyncio.Queue()
    is_over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        transport = SocketTransport(socket)
        await socket.accept()
        opened.put_nowait((scope, transport))
        await is_over.wait()

    async with serving(app, **options) as url:
        client = await connect(url, compression=None, ping_interval=None, proxy=None, close_timeout=1)
        try:
            yield Line(client, *await opened.get())
        finally:
            is_over.set()
            client.transport.abort()
            await client.wait_closed()
