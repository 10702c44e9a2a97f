"""A client of the realtime endpoint: the wire, a live microphone and a loudspeaker that can be asked what it played.

`voice-serve talk` and the load tests are built on it, so it shares no code with the server but the sample formats:
what it measures is what a stranger would measure. All times are seconds of the monotonic clock.

- `RealtimeClient` sends and receives events and decides nothing.
- `LiveMicrophone` sends 20 ms every 20 ms of wall clock: a recording sent faster would say nothing about a caller.
- `Player` is arithmetic without a clock of its own: it plays at 1x from the arrival of each chunk, as a page does.
"""

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from .audio.pcm import Audio, Samples, encode_pcm, pcm_samples

RATE = 24_000
FRAME_S = 0.02
FRAME = RATE // 50
MODEL = "voice-serve"

ServerEvent = dict[str, Any]


class ClientError(Exception):
    """The conversation could not be held; the message is a sentence for the person."""


class NotConnected(ClientError):
    """No session was opened: nobody listens there, or the handshake was refused."""


class SessionEnded(ClientError):
    """The server ended the session, or the connection broke; `code` is the WebSocket's."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(
            f"The server ended the session ({code}): {reason or _CLOSE_WORDS.get(code, 'no reason')}"
        )


_CLOSE_WORDS = {
    1000: "normally",
    1001: "it is going away",
    1006: "the connection was lost",
    1008: "refused: is an API key needed?",
    1011: "something failed in the server",
    1013: "it is full, try again later",
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event of the server and when it came."""

    at: float
    event: ServerEvent

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def audio(self) -> bytes:
        """Of a `response.output_audio.delta`: PCM16 at 24 kHz."""
        return base64.b64decode(self.event["delta"])


class RealtimeClient:
    """One session. Iterating gives every event in order, until `SessionEnded`; one iteration at a time."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._event_ids = count(1)

    async def send(self, type_: str, **fields: Any) -> str:
        """Returns the event's id, which an `error` would quote. Raises SessionEnded."""
        event_id = f"client_{next(self._event_ids)}"
        try:
            await self._connection.send(json.dumps({"type": type_, "event_id": event_id, **fields}))
        except ConnectionClosed as closed:
            raise _ended(closed) from closed
        return event_id

    async def append(self, audio: Audio) -> None:
        """Send float32 (n,) at 24 kHz as input audio."""
        await self.send("input_audio_buffer.append", audio=base64.b64encode(encode_pcm(audio)).decode())

    async def ask(self, text: str) -> None:
        """A typed turn: the message, and the wish for an answer."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def truncate(self, item_id: str, played_s: float) -> None:
        """Tell the server how much of an interrupted item was played."""
        audio_end_ms = int(played_s * 1000)
        await self.send(
            "conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=audio_end_ms
        )

    async def receive(self) -> Arrival:
        """The next event. Raises SessionEnded."""
        try:
            message = await self._connection.recv()
        except ConnectionClosed as closed:
            raise _ended(closed) from closed
        return Arrival(time.monotonic(), json.loads(message))

    async def __aiter__(self) -> AsyncIterator[Arrival]:
        while True:
            yield await self.receive()


def _ended(closed: ConnectionClosed) -> SessionEnded:
    if closed.rcvd is None:
        return SessionEnded(1006, "")
    return SessionEnded(closed.rcvd.code, closed.rcvd.reason)


@contextmanager
def session_end_alone() -> Iterator[None]:
    """Around a TaskGroup: a session's end, which each of its tasks may report, comes out as one SessionEnded."""
    try:
        yield
    except ExceptionGroup as group:
        ended, others = group.split(SessionEnded)
        if ended is None or others is not None:
            raise
        raise ended.exceptions[0] from None


@asynccontextmanager
async def realtime_client(
    url: str, *, api_key: str | None = None, open_timeout_s: float = 10
) -> AsyncIterator[RealtimeClient]:
    """A session at `url` (ws:// or wss://; `?model=` is added where it is missing), closed with the block.

    Raises NotConnected. A server that refuses after the handshake (full, no key) shows in the first event instead:
    SessionEnded.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    opening = connect(
        _with_model(url),
        additional_headers=headers,
        open_timeout=open_timeout_s,
        close_timeout=2,
        max_size=None,
        compression=None,  # base64 of sound: deflate costs milliseconds and gains nothing on a local line
    )
    try:
        connection = await opening
    except InvalidStatus as refused:
        raise NotConnected(_refusal_words(url, refused.response.status_code)) from refused
    except (InvalidHandshake, InvalidURI) as error:
        raise NotConnected(f"{url} is not a realtime endpoint: {error}") from error
    except TimeoutError as error:
        raise NotConnected(f"{url} did not answer within {open_timeout_s:g} s.") from error
    except OSError as error:
        raise NotConnected(f"Nobody answers at {url}. Is the server running? (make run)") from error
    try:
        yield RealtimeClient(connection)
    finally:
        await connection.close()


def _with_model(url: str) -> str:
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    return urlunsplit(parts._replace(query=urlencode({"model": MODEL} | query)))


def _refusal_words(url: str, status: int) -> str:
    if status in (401, 403):
        return f"{url} refused the connection ({status}): is an API key needed? (--api-key)"
    return f"{url} answered {status} instead of a WebSocket."


@dataclass(slots=True)
class Utterance:
    """Something said into a `LiveMicrophone`; times are None until they have come."""

    audio: Audio
    began_at: float | None = None
    ended_at: float | None = None
    """When its last frame had been sent."""


class LiveMicrophone:
    """An open microphone: a frame of 20 ms each 20 ms, silence where nothing is said.

    A frame that is late (the event loop was busy) is followed by the next one at its own time, so the stream never
    drifts from the wall clock.
    """

    def __init__(self, client: RealtimeClient) -> None:
        self._client = client
        self._waiting: deque[Utterance] = deque()
        self._said = asyncio.Condition()

    def say(self, audio: Audio) -> Utterance:
        """Queue float32 (n,) at 24 kHz; it begins with the next frame that is free."""
        utterance = Utterance(audio)
        self._waiting.append(utterance)
        return utterance

    async def until_said(self, utterance: Utterance) -> None:
        async with self._said:
            await self._said.wait_for(lambda: utterance.ended_at is not None)

    async def run(self) -> None:
        """Send until cancelled. Raises SessionEnded."""
        began = time.monotonic()
        silence = np.zeros(FRAME, dtype=np.float32)
        for number in count():
            await asyncio.sleep(began + number * FRAME_S - time.monotonic())
            if self._waiting:
                await self._send_frame_of(self._waiting[0])
            else:
                await self._client.append(silence)

    async def _send_frame_of(self, utterance: Utterance) -> None:
        if utterance.began_at is None:
            utterance.began_at = time.monotonic()
        frame, utterance.audio = utterance.audio[:FRAME], utterance.audio[FRAME:]
        await self._client.append(np.pad(frame, (0, FRAME - len(frame))))
        if len(utterance.audio) > 0:
            return
        self._waiting.popleft()
        async with self._said:
            utterance.ended_at = time.monotonic()
            self._said.notify_all()


@dataclass(frozen=True, slots=True)
class Played:
    """An item that was stopped, and how much of it had been played."""

    item_id: str
    played_s: float


@dataclass(frozen=True, slots=True)
class _Span:
    """Samples that sound from `start` on, without a gap."""

    item_id: str
    start: float
    samples: Samples

    @property
    def stop(self) -> float:
        return self.start + len(self.samples) / RATE

    def played(self, now: float) -> Samples:
        due = round((now - self.start) * RATE)
        return self.samples[: max(0, due)]


@dataclass(frozen=True, slots=True)
class ChunkArrival:
    """A chunk of audio as it came: the evidence for what a server sends, and when."""

    at: float
    item_id: str
    duration_s: float
    ahead_s: float
    """How much unplayed audio the player then held, this chunk included."""
    is_stale: bool
    """It belongs to an item that had been stopped: a correct server sends none."""


class Player:
    """A loudspeaker without hardware: plays chunks one after another at 1x, each from its arrival at the earliest.

    Independent of the server's own account of what was heard. Times must not go backwards. Chunks of an item that
    was flushed are recorded in `arrivals` and not played.
    """

    def __init__(self) -> None:
        self.arrivals: list[ChunkArrival] = []
        self._spans: list[_Span] = []
        self._open: set[str] = set()
        self._flushed: set[str] = set()

    def handle(self, arrival: Arrival) -> Played | None:
        """Take in an event; when it stops playback, what was stopped: the caller then sends `truncate`."""
        event = arrival.event
        match event["type"]:
            case "response.output_audio.delta":
                self.push(event["item_id"], arrival.audio, arrival.at)
            case "response.output_audio.done":
                self._open.discard(event["item_id"])
            case "input_audio_buffer.speech_started":
                return self.flush(arrival.at)
            case "response.done":
                self._open.clear()  # an answer that failed half-way ends here
            case _:
                pass
        return None

    def push(self, item_id: str, pcm: bytes, at: float) -> None:
        samples = pcm_samples(pcm)
        is_stale = item_id in self._flushed
        if not is_stale:
            self._open.add(item_id)
            self._spans.append(_Span(item_id, max(at, self.ends_at), samples))
        ahead_s = max(0.0, self.ends_at - at)
        self.arrivals.append(ChunkArrival(at, item_id, len(samples) / RATE, ahead_s, is_stale))

    def flush(self, at: float) -> Played | None:
        """Stop now and forget what was not played; None if all that came had been played and no more was to come."""
        if not self._spans:
            return None
        item_id = next((span.item_id for span in self._spans if span.stop > at), self._spans[-1].item_id)
        if self.ends_at <= at and item_id not in self._open:
            return None
        self._flushed |= {span.item_id for span in self._spans if span.stop > at} | {item_id}
        self._spans = [_Span(s.item_id, s.start, s.played(at)) for s in self._spans if s.start < at]
        self._open -= self._flushed
        return Played(item_id, self.played_s(item_id, at))

    @property
    def ends_at(self) -> float:
        """When the last sound that has come will have been played."""
        return self._spans[-1].stop if self._spans else float("-inf")

    def is_playing(self, now: float) -> bool:
        """An item sounds, or waits for audio of its own."""
        return now < self.ends_at or bool(self._open)

    def began_at(self, item_id: str) -> float | None:
        """When the item's first sample was played."""
        return next((span.start for span in self._spans if span.item_id == item_id), None)

    def played_s(self, item_id: str, now: float) -> float:
        return len(self.played(item_id, now)) / RATE

    def played(self, item_id: str, now: float) -> Samples:
        """Exactly the samples of the item that had been played, gaps left out; int16 at 24 kHz."""
        parts = [span.played(now) for span in self._spans if span.item_id == item_id]
        return _joined(parts)

    def heard(self, now: float) -> Samples:
        """What a listener heard from the first sound on, gaps and all; int16 at 24 kHz."""
        parts: list[Samples] = []
        length = 0
        for span in (span for span in self._spans if span.start < now):
            offset = round((span.start - self._spans[0].start) * RATE)
            sound = span.played(now)
            parts += [np.zeros(max(0, offset - length), dtype=np.int16), sound]
            length = max(length, offset) + len(sound)
        return _joined(parts)


def _joined(parts: list[npt.NDArray[np.int16]]) -> Samples:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int16)
