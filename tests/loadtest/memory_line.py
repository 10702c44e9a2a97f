"""The line of a simulated caller to an application in memory: the real server, no port, any clock."""

import asyncio
import contextlib
from typing import Any

from ingress.asgi import Socket, scope

from loadtest.line import Ended, NotOpened, OnText, text_message
from serve_app.server import VoiceServer
from serve_app.web import routes


class ListeningSocket(Socket):
    """Events go to the caller as they come, as text."""

    line: "MemoryLine"

    async def take(self, message: dict[str, Any]) -> None:
        await super().take(message)
        if message["type"] == "websocket.send":
            self.line.deliver(message["text"])
        elif message["type"] == "websocket.close":
            self.line.end(Ended(*self.closed))


class MemoryLine:
    def __init__(self, on_text: OnText) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.socket = ListeningSocket()
        self.socket.line = self
        self._on_text = on_text
        self._loop = loop
        self.running: asyncio.Task[None]

    def deliver(self, text: str) -> None:
        if not self.ended.done():
            self._on_text(self._loop.time(), text.encode())

    def end(self, ended: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(ended)

    def send(self, message: bytes) -> None:
        if not self.ended.done():
            self.socket.send(payload(message))

    def tell(self, type_: str, **fields: Any) -> None:
        import json

        self.send(text_message(json.dumps({"type": type_, **fields})))

    async def close(self) -> None:
        self.end(Ended(1000))
        self.socket.hang_up()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([self.running], timeout=2.0)

    def break_down(self) -> None:
        """The server's process is gone: nothing more comes, and no close."""
        self.running.cancel()
        self.end(Ended(1006))


def payload(message: bytes) -> str:
    """What a client's text frame carries (RFC 6455 5.2, 5.3)."""
    assert message[0] == 0x81, "a whole text message"
    assert message[1] & 0x80, "a client masks"
    length, at = message[1] & 0x7F, 2
    if length >= 126:
        size = 2 if length == 126 else 8
        length, at = int.from_bytes(message[2 : 2 + size], "big"), 2 + size
    mask, masked = message[at : at + 4], message[at + 4 :]
    assert len(masked) == length
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked)).decode()


class Exchange:
    """Connects callers to a server that may be replaced, as a load balancer does."""

    def __init__(self, server: VoiceServer) -> None:
        self.server = server
        self.lines: list[MemoryLine] = []
        self.addresses: list[str] = []
        self.is_away = False

    async def connect(self, url: str, on_text: OnText) -> MemoryLine:
        """Raises NotOpened while it is away."""
        self.addresses.append(url)
        if self.is_away:
            raise NotOpened("nobody listens there")
        line = MemoryLine(on_text)
        self.lines.append(line)
        line.socket.sent.put_nowait({"type": "websocket.connect"})
        app = routes(self.server)
        line.running = asyncio.create_task(
            app(scope(query=url.partition("?")[2]), line.socket.sent.get, line.socket.take)
        )
        return line
