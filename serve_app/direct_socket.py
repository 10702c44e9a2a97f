"""Text frames straight from the socket to the session: uvicorn's WebSocket protocol without the queues behind it.

By ASGI a message passes uvicorn's queue, the task and the queue of Ray's receive proxy and Starlette before a session
sees it: two tasks are woken for every 20 ms of every caller, and reading is switched off and on in the kernel. Here
the protocol may be told to call a function instead, in the loop's own read callback, and what is sent goes down at once
where nothing has to be waited for. A frame that holds a whole text, as nearly all do, is taken apart here; the handshake,
every other frame and what is not as it should be go the protocol's own way.

Who is to be turned away is turned away from here too (`install`): behind the protocol lie Ray Serve's and FastAPI's
layers, which cost a full server as much again as the refusal.

`install` makes it uvicorn's protocol in this process, for Ray Serve leaves no choice of one. Where the server is
another process (Serve's default proxy) or another thread, `of` finds nothing, and a session receives by ASGI.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast
from weakref import ref

import uvicorn.config
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # of its C extension, where that is there
from websockets.protocol import OPEN
from websockets.streams import StreamReader

_EXTENSION = "voice_serve.direct"
"""Of the ASGI scope: a weak reference to the protocol, which has the scope."""

_WHOLE_TEXT = 0x81
"""The first byte of a frame that holds a whole message of text, not compressed (RFC 6455 5.2)."""
_AT_FIRST_BYTE = StreamReader.at_eof.__code__
_MASKED = 0x80
_LENGTH_IN_TWO_BYTES = 126


Doorkeeper = Callable[[Scope], ASGIApp | None]
"""Looks at a caller's scope: what is to turn the caller away, or None for one whom the application may see."""


class DirectWebSocket(WebSocketsSansIOProtocol):
    on_text: Callable[[str], None] | None = None
    """Is given each text frame as soon as it is whole, and must not raise; None: they go by ASGI."""
    doorkeeper: ClassVar[Doorkeeper | None] = None

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was refused, and there is no scope
            self.scope["extensions"][_EXTENSION] = ref(self)  # type: ignore[assignment]

    async def run_asgi(self) -> None:
        looks_at, scope = DirectWebSocket.doorkeeper, cast("Scope", self.scope)
        if looks_at is not None and (refusal := looks_at(scope)) is not None:
            self.app = refusal
        await super().run_asgi()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_text = None  # the session knows the socket, and must not wait for the garbage collector

    def data_received(self, data: bytes) -> None:
        if self.on_text is not None and self._is_between_messages:
            data = data[self._take_texts(data) :]
            if not data:
                return
        super().data_received(data)

    @property
    def _is_between_messages(self) -> bool:
        if self.conn.state is not OPEN or self.conn.current_size is not None:
            return False
        innermost: Any = (
            self.conn.parser
        )  # a generator, which waits for the first byte of a frame, or for more of one
        while (inner := innermost.gi_yieldfrom) is not None:
            innermost = inner
        return innermost.gi_code is _AT_FIRST_BYTE

    def _take_texts(self, data: bytes) -> int:
        """Deliver what of it is whole texts. Returns where the rest begins: another frame, or a part of one."""
        start, size = 0, len(data)
        while size - start > 6 and data[start] == _WHOLE_TEXT and data[start + 1] & _MASKED:
            length, mask = data[start + 1] - _MASKED, start + 2
            if length == _LENGTH_IN_TWO_BYTES:
                length, mask = (data[mask] << 8) + data[mask + 1], mask + 2
            elif length > _LENGTH_IN_TWO_BYTES:
                break
            end = mask + 4 + length
            if end > size or length > self.config.ws_max_size or self.close_sent or self.on_text is None:
                break
            try:
                text = apply_mask(data[mask + 4 : end], data[mask : mask + 4]).decode()
            except UnicodeDecodeError:
                break  # the protocol knows how to refuse it
            self.on_text(text)
            start = end
        return start

    @property
    def is_writable(self) -> bool:
        """It is open, and the client reads what it gets."""
        is_open = self.conn.state is OPEN and not self.disconnected
        return is_open and self.handshake_complete and self.writable.is_set()

    def send_at_once(self, texts: Sequence[str]) -> None:
        """A frame each, in one write."""
        for text in texts:
            self.conn.send_text(text.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))

    def send_receive_event_to_app(self) -> None:
        on_text = self.on_text
        if on_text is None or self.curr_msg_data_type != "text" or self.close_sent:
            super().send_receive_event_to_app()
            return
        try:
            text = b"".join(self.frames).decode()
        except UnicodeDecodeError:
            super().send_receive_event_to_app()  # knows how to refuse it
            return
        self.frames = []
        on_text(text)

    def pause(self) -> None:
        """Nothing more is read until `resume`, and the client's TCP window fills. What was read already still comes."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()


def install(doorkeeper: Doorkeeper | None = None) -> None:
    """From now on what uvicorn starts in this process, unless told which protocol to use, uses this one."""
    DirectWebSocket.doorkeeper = doorkeeper
    uvicorn.config.WS_PROTOCOLS["auto"] = f"{__name__}:{DirectWebSocket.__name__}"


def of(scope: Scope) -> DirectWebSocket | None:
    """The protocol below a WebSocket's scope, if it is there and its loop is the caller's."""
    reference = scope.get("extensions", {}).get(_EXTENSION)
    protocol = reference() if isinstance(reference, ref) else None
    if isinstance(protocol, DirectWebSocket) and protocol.loop is asyncio.get_running_loop():
        return protocol
    return None
