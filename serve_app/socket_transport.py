"""A Starlette WebSocket for a session: what it raises for a lost peer becomes a `ConnectionLost`.

Where uvicorn's protocol is ours (`direct_socket`), text frames do not pass through Starlette at all, nor does
what is sent while the client reads it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from starlette.websockets import WebSocket, WebSocketDisconnect

from . import direct_socket
from .session.transport import ConnectionLost

log = logging.getLogger("voice_serve.server")

CLOSE_S = 1.0
"""A peer that does not read the close is waited for so long."""


class SocketTransport:
    """Must be there before the socket is accepted: the client may speak at once."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._early: list[str] = []
        """Text frames that came before anyone wanted them."""
        self._direct = direct_socket.of(socket.scope)
        if self._direct is not None:
            self._direct.on_text = self._keep

    def _keep(self, text: str) -> None:
        self._early.append(text)
        self.pause()

    def deliver_to(self, on_text: Callable[[str], None]) -> None:
        if self._direct is None:
            return
        self._direct.on_text = on_text
        self.resume()  # nothing is read before this returns, and to whom the early text is too much pauses again
        for text in self._early:
            on_text(text)
        self._early.clear()

    def pause(self) -> None:
        if self._direct is not None:
            self._direct.pause()

    def resume(self) -> None:
        if self._direct is not None:
            self._direct.resume()

    async def receive(self) -> str | bytes:
        try:
            message = await self._socket.receive()
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: receive after a disconnect
            raise ConnectionLost from error
        if message["type"] == "websocket.disconnect":
            raise ConnectionLost(is_deliberate=message.get("code") == 1000)
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    @property
    def is_writable(self) -> bool:
        return self._direct is not None and self._direct.is_writable

    def send_at_once(self, texts: Sequence[str]) -> None:
        assert self._direct is not None, "it is never writable"
        self._direct.send_at_once(texts)

    async def send(self, text: str) -> None:
        try:
            await self._socket.send({"type": "websocket.send", "text": text})
        except (WebSocketDisconnect, RuntimeError, OSError) as error:  # RuntimeError: send after close
            raise ConnectionLost from error

    async def close(self, code: int, reason: str) -> None:
        short = reason.encode()[:123].decode(errors="ignore")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code, short)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            log.debug("peer was gone before the close")
