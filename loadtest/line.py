"""A WebSocket that costs its process as little as it can: hundreds of callers must not be what is measured.

Frames of the microphone are made once, masked (RFC 6455 5.3) and ready for the socket, and written as they are; what
comes is parsed by the sans-I/O half of `websockets`. `serve_app.client` is the client to use where cost is no matter.
"""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

OnText = Callable[[float, bytes], None]

MAX_WAITING_BYTES = 1 << 20
"""Of what the peer does not read; a microphone's frames beyond it are dropped: fifteen seconds."""
RATE = 24_000
OPEN_S = 10.0
CLOSE_S = 2.0
_CONTROL_OR_TEXT = (Opcode.TEXT, Opcode.CONT)
_DELTA = b'{"type":"response.output_audio.delta"'


@dataclass(frozen=True, slots=True)
class Ended:
    """How a line ended: `code` as in RFC 6455 7.4.1, 1006 where no close came."""

    code: int
    reason: str = ""


class NotOpened(Exception):
    """No line: nobody listens, or the handshake was refused."""


def text_message(text: str) -> bytes:
    """A whole message as a client puts it on the wire, with a mask drawn once."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


def append_message(pcm: bytes) -> bytes:
    """`input_audio_buffer.append` of PCM16 at 24 kHz, ready for `Line.send`."""
    event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()}
    return text_message(json.dumps(event))


def sound_in(text: bytes) -> tuple[str, float] | None:
    """Of an answer's sound its item and its seconds, without parsing it; None: another event."""
    if not text.startswith(_DELTA):
        return None
    return _between(text, b'"item_id":"').decode(), len(_between(text, b'"delta":"')) * 3 / 4 / 2 / RATE


def _between(text: bytes, mark: bytes) -> bytes:
    start = text.index(mark) + len(mark)
    return text[start : text.index(b'"', start)]


class Line(asyncio.Protocol):
    """One session's socket. `on_text` is called with each message of the server and when it came (monotonic)."""

    def __init__(self, url: str, on_text: OnText) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        """With the server's close frame, or with the connection where none came."""
        self._opened: asyncio.Future[None] = loop.create_future()
        self._on_text = on_text
        self._protocol = ClientProtocol(parse_uri(url), max_size=None)
        self._parts: list[bytes] = []

    def send(self, message: bytes) -> None:
        """`message` from `text_message` or `append_message`. Nothing happens on a line that has ended."""
        if self.ended.done():
            return
        if self._transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            return
        self._transport.write(message)

    def tell(self, type_: str, **fields: Any) -> None:
        self.send(text_message(json.dumps({"type": type_, **fields})))

    async def close(self) -> None:
        """Hang up, politely if the server answers in time."""
        if not self.ended.done():
            self._protocol.send_close(1000)
            self._flush()
        try:
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self._transport.abort()
        else:
            self._transport.close()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        now = time.monotonic()
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._shake_hands()
            elif isinstance(event, Frame) and event.opcode in _CONTROL_OR_TEXT:
                self._take_in(event, now)
        self._flush()
        if self._protocol.close_rcvd is not None:
            self._end()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._refuse(NotOpened("the connection ended in the handshake"))

    def _end(self) -> None:
        close = self._protocol.close_rcvd
        if not self.ended.done():
            self.ended.set_result(Ended(close.code, close.reason) if close else Ended(1006))

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def _shake_hands(self) -> None:
        error = self._protocol.handshake_exc
        if error is None:
            if not self._opened.done():
                self._opened.set_result(None)
            return
        status = error.response.status_code if isinstance(error, InvalidStatus) else None
        self._refuse(NotOpened(f"HTTP {status}" if status else str(error)))
        self._transport.close()

    def _refuse(self, error: NotOpened) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)

    def _take_in(self, frame: Frame, now: float) -> None:
        self._parts.append(bytes(frame.data))
        if frame.fin:
            whole, self._parts = b"".join(self._parts), []
            self._on_text(now, whole)

    async def until_open(self) -> None:
        """Raises NotOpened."""
        await self._opened


async def open_line(url: str, on_text: OnText) -> Line:
    """Raises NotOpened. A server that is full ends the line after the handshake: see `Line.ended`."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if parts.scheme == "wss" else None
    line = Line(url, on_text)
    try:
        async with asyncio.timeout(OPEN_S):
            await loop.create_connection(
                lambda: line, parts.hostname or "", parts.port or (443 if tls else 80), ssl=tls
            )
            await line.until_open()
    except (OSError, TimeoutError, InvalidHandshake) as error:
        raise NotOpened(str(error) or type(error).__name__) from error
    return line
