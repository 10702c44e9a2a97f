"""Text frames straight from the socket to the session: uvicorn's WebSocket protocol without the queues behind it.

By ASGI a message passes uvicorn's queue, the task and the queue of Ray's receive proxy and Starlette before a session
sees it: two tasks are woken for every 20 ms of every caller, and reading is switched off and on in the kernel. Here
the protocol may be told to call a function instead, in the loop's own read callback. The handshake, binary frames,
pings, the close and everything that is sent remain uvicorn's.

`install` makes it uvicorn's protocol in this process, for Ray Serve leaves no choice of one. Where the server is
another process (Serve's default proxy) or another thread, `of` finds nothing, and a session receives by ASGI.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import ref

import uvicorn.config
from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_EXTENSION = "voice_serve.direct"
"""Of the ASGI scope: a weak reference to the protocol, which has the scope."""


class DirectWebSocket(WebSocketsSansIOProtocol):
    on_text: Callable[[str], None] | None = None
    """Is given each text frame as soon as it is whole, and must not raise; None: they go by ASGI."""

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else the handshake was refused, and there is no scope
            self.scope["extensions"][_EXTENSION] = ref(self)  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.on_text = None  # the session knows the socket, and must not wait for the garbage collector

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


def install() -> None:
    """From now on what uvicorn starts in this process, unless told which protocol to use, uses this one."""
    uvicorn.config.WS_PROTOCOLS["auto"] = f"{__name__}:{DirectWebSocket.__name__}"


def of(scope: Scope) -> DirectWebSocket | None:
    """The protocol below a WebSocket's scope, if it is there and its loop is the caller's."""
    reference = scope.get("extensions", {}).get(_EXTENSION)
    protocol = reference() if isinstance(reference, ref) else None
    if isinstance(protocol, DirectWebSocket) and protocol.loop is asyncio.get_running_loop():
        return protocol
    return None
