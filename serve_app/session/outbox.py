"""The outbound half of a session: what waits to be sent, and how it goes out.

What one turn of the loop leaves goes out together at its end, in one write, where the socket takes it; where it has to be
waited for, the writer does.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.conversation.events import AudioSent, ChunkId, ResponseId

from .transport import ConnectionLost, Ending, Transport


@dataclass(frozen=True, slots=True)
class OutgoingAudio:
    """A chunk whose `AudioSent` is awaited."""

    chunk_id: ChunkId
    response_id: ResponseId
    text: str


class Outbox:
    """What one session has yet to send, in order. A client that does not read it ends the session.

    Of audio it never holds more than one chunk (`Playout` waits for `AudioSent`), so what fills it are the events
    that a client's own requests cause.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        max_bytes: int,
        send_s: float,
        report: Callable[[AudioSent], None],
        end: Callable[[Ending], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """`send_s`: how long one frame may take. `on_failure` is told what `report` raises."""
        self._transport = transport
        self._max_bytes = max_bytes
        self._send_s = send_s
        self._report = report
        self._end = end
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._frames: deque[str | OutgoingAudio] = deque()
        self._bytes = 0
        self._turn: asyncio.Handle | None = None
        """The end of this turn of the loop."""
        self._has_to_wait = asyncio.Event()
        """The writer is asked, or at work."""

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: str | OutgoingAudio) -> None:
        self._bytes += _size(frame)
        if self._bytes > self._max_bytes:
            self._end(Ending(1008, f"the client reads too slowly: {self._max_bytes} bytes wait for it"))
            return
        self._frames.append(frame)
        if self._turn is not None or self._has_to_wait.is_set():
            return
        if self._transport.is_writable:
            self._turn = self._loop.call_soon(self._send_all)
        else:
            self._has_to_wait.set()

    def _send_all(self) -> None:
        self._turn = None
        if not self._frames:  # it was sound that is not wanted any more
            return
        if not self._transport.is_writable:
            self._has_to_wait.set()
            return
        sent = list(self._frames)
        self.clear()
        self._transport.send_at_once([_text(frame) for frame in sent])
        try:
            for frame in sent:
                if isinstance(frame, OutgoingAudio):
                    self._report(AudioSent(frame.chunk_id))
        except Exception as error:
            self._on_failure(error)

    async def write(self) -> None:
        """Send what has to be waited for, until the socket fails."""
        while True:
            await self._has_to_wait.wait()
            while self._frames:
                frame = self._frames.popleft()
                self._bytes -= _size(frame)
                try:
                    async with asyncio.timeout(self._send_s):
                        await self._transport.send(_text(frame))
                except TimeoutError:
                    self._end(Ending(1008, f"the client has read nothing for {self._send_s:g} s"))
                    return
                except ConnectionLost:
                    self._end(Ending(1001, "the client left", is_peer_gone=True))
                    return
                if isinstance(frame, OutgoingAudio):
                    self._report(AudioSent(frame.chunk_id))
            self._has_to_wait.clear()

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


def _text(frame: str | OutgoingAudio) -> str:
    return frame if isinstance(frame, str) else frame.text


def _size(frame: str | OutgoingAudio) -> int:
    return len(_text(frame))
