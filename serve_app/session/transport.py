"""The socket as a session sees it, and the queue of what waits to be sent on it."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from serve_app.conversation.events import ChunkId, ResponseId


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

    async def send(self, text: str) -> None:
        """Returns when the frame was handed to the network. Raises ConnectionLost."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Never raises and never waits long; `code` and `reason` as in RFC 6455 7.4, the reason cut to 123 bytes."""
        ...


@dataclass(frozen=True, slots=True)
class OutgoingAudio:
    """A chunk whose `AudioSent` is awaited."""

    chunk_id: ChunkId
    response_id: ResponseId
    text: str


class OutboxFull(Exception):
    """The client reads too slowly for what it asks for."""


class Outbox:
    """What one session has yet to send, in order; one writer takes from it.

    Of audio it never holds more than one chunk (`Playout` waits for `AudioSent`), so what fills it are the events
    that a client's own requests cause.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[str | OutgoingAudio] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: str | OutgoingAudio) -> None:
        """Raises OutboxFull."""
        self._bytes += _size(frame)
        if self._bytes > self._max_bytes:
            raise OutboxFull
        self._frames.append(frame)
        self._filled.set()

    async def get(self) -> str | OutgoingAudio:
        while not self._frames:
            self._filled.clear()
            await self._filled.wait()
        frame = self._frames.popleft()
        self._bytes -= _size(frame)
        return frame

    def clear(self) -> None:
        self._frames.clear()
        self._bytes = 0

    def drop_audio(self, response_id: ResponseId) -> None:
        """Forget the unsent sound of a response that was interrupted."""
        kept = [
            f for f in self._frames if not (isinstance(f, OutgoingAudio) and f.response_id == response_id)
        ]
        self._frames = deque(kept)
        self._bytes = sum(map(_size, kept))


def _size(frame: str | OutgoingAudio) -> int:
    return len(frame if isinstance(frame, str) else frame.text)
