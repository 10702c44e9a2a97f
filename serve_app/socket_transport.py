"""Where what Starlette raises for a lost peer becomes a `ConnectionLost`."""

import asyncio
import logging

from starlette.websockets import WebSocket, WebSocketDisconnect

from .session.transport import ConnectionLost

log = logging.getLogger("voice_serve.server")

CLOSE_S = 1.0
"""A peer that does not read the close is waited for so long."""


class SocketTransport:
    """An accepted Starlette WebSocket as a session's transport."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

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
