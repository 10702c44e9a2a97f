"""The outbound half of a session: what waits to be sent, and the one writer that sends it."""

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
    ) -> None:
        """`send_s`: how long one frame may take."""
        self._transport = transport
        self._max_bytes = max_bytes
        self._send_s = send_s
        self._report = report
        self._end = end
        self._frames: deque[str | OutgoingAudio] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: str | OutgoingAudio) -> None:
        self._bytes += _size(frame)
        if self._bytes > self._max_bytes:
            self._end(Ending(1008, f"the client reads too slowly: {self._max_bytes} bytes wait for it"))
            return
        self._frames.append(frame)
        self._filled.set()

    async def write(self) -> None:
        """Send what there is as it comes, until the socket fails."""
        while True:
            frame = await self._get()
            text = frame if isinstance(frame, str) else frame.text
            try:
                async with asyncio.timeout(self._send_s):
                    await self._transport.send(text)
            except TimeoutError:
                self._end(Ending(1008, f"the client has read nothing for {self._send_s:g} s"))
                return
            except ConnectionLost:
                self._end(Ending(1001, "the client left", is_peer_gone=True))
                return
            if isinstance(frame, OutgoingAudio):
                self._report(AudioSent(frame.chunk_id))

    async def _get(self) -> str | OutgoingAudio:
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
