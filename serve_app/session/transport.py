"""The socket as a session sees it, and why it is closed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

NORMAL = 1000
SUPERSEDED = 4001
"""A close code of our own (RFC 6455 7.4.2): the session goes on at another socket, and this one must not come back."""
SERVICE_RESTART = 1012
"""The IANA registry's code for it: come back, to another replica."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a session ended: `code` as in RFC 6455 7.4.1, `reason` a sentence for the client."""

    code: int
    reason: str
    is_peer_gone: bool = False

    @property
    def is_final(self) -> bool:
        """The session is over; after any other end it can be resumed."""
        return self.code == NORMAL


class ConnectionLost(Exception):
    """The peer is gone, or the socket broke; nothing more can be sent or received."""

    def __init__(self, *, is_deliberate: bool = False) -> None:
        self.is_deliberate = is_deliberate
        """The peer has closed with 1000: its purpose was fulfilled (RFC 6455 7.4.1)."""
        super().__init__()


class Transport(Protocol):
    async def receive(self) -> str | bytes:
        """The next frame: str for text, bytes for binary. Raises ConnectionLost."""
        ...

    def deliver_to(self, on_text: Callable[[str], None]) -> None:
        """From now on text frames need not be received: those that can be are given to `on_text` as they come.

        `on_text` does not raise. A transport that cannot do so does nothing.
        """
        ...

    def pause(self) -> None:
        """Nothing is given to `on_text` until `resume`, but for what was read already: it is bounded."""
        ...

    def resume(self) -> None: ...

    @property
    def is_writable(self) -> bool:
        """What is sent need not be waited for."""
        ...

    def send_at_once(self, texts: Sequence[str]) -> None:
        """Hand them to the network, a frame each, while `is_writable`."""
        ...

    async def send(self, text: str) -> None:
        """Returns when the frame was handed to the network. Raises ConnectionLost."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Never raises and never waits long; `code` and `reason` as in RFC 6455 7.4, the reason cut to 123 bytes."""
        ...
