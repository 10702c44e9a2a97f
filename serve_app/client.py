"""A client of the realtime endpoint: the wire, a live microphone and a loudspeaker that can be asked what it played.

`voice-serve talk` and the load tests are built on it, so it shares no code with the server but the sample formats:
what it measures is what a stranger would measure. All times are seconds of the monotonic clock.

- `RealtimeClient` sends and receives events and decides nothing. `ResumingClient` outlives its socket.
- `LiveMicrophone` sends 20 ms every 20 ms of wall clock: a recording sent faster would say nothing about a caller.
- `Player` is arithmetic without a clock of its own: it plays at 1x from the arrival of each chunk, as a page does.
"""

import asyncio
import base64
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)

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
    1012: "it is being replaced",
    1013: "it is full, try again later",
    4001: "it was resumed elsewhere",
    4004: "it could not be resumed",
}
LOSSES = frozenset({1001, 1005, 1006, 1011, 1012, 1014})
"""After these the session may still be there for who comes back with its token (RFC 6455 7.4.1, IANA)."""
RESUME_HEADER = "X-Voice-Serve-Resume"
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 4.0
"""Between attempts to come back: up to so much, doubled each time; the draw keeps a crowd from coming at once."""
PASSING_ERRORS = frozenset({"server_full", "server_draining", "resume_unavailable"})
"""Refusals that another attempt, perhaps at another replica, need not meet."""


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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where sessions are opened, and with what key."""

    url: str
    api_key: str | None = None
    open_timeout_s: float = 10

    async def connect(self, headers: dict[str, str] | None = None, **query: str) -> ClientConnection:
        """Raises NotConnected."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        opening = connect(
            _with_query(self.url, {"model": MODEL}, query),
            additional_headers=key | (headers or {}),
            open_timeout=self.open_timeout_s,
            close_timeout=2,
            max_size=None,
            compression=None,  # base64 of sound: deflate costs milliseconds and gains nothing on a local line
        )
        url = self.url
        try:
            return await opening
        except InvalidStatus as refused:
            raise NotConnected(_refusal_words(url, refused.response.status_code)) from refused
        except (InvalidHandshake, InvalidURI, InvalidMessage) as error:
            raise NotConnected(f"{url} is not a realtime endpoint: {error}") from error
        except TimeoutError as error:
            raise NotConnected(f"{url} did not answer within {self.open_timeout_s:g} s.") from error
        except OSError as error:
            raise NotConnected(f"Nobody answers at {url}. Is the server running? (make run)") from error


class ResumingClient(RealtimeClient):
    """A session that goes on at another socket when its own is lost, for as long as the server keeps it.

    `receive` is what reconnects; the events after a return begin with `session.created` again. Audio that is sent in
    the meantime is lost, other events wait. What was being played must stop: `stop` does that and says how far it was.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        connection: ClientConnection,
        *,
        stop: Callable[[], "Played | None"],
        on_news: Callable[[str], None],
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(connection)
        self.resumed = 0
        """How often it has come back."""
        self._endpoint = endpoint
        self._stop = stop
        self._on_news = on_news
        self._random = rng or random.Random()
        self._resume: dict[str, Any] | None = None
        self._is_here = asyncio.Event()
        self._is_here.set()
        self._end: SessionEnded | None = None

    @property
    def connection(self) -> ClientConnection:
        """The socket in use now."""
        return self._connection

    async def send(self, type_: str, **fields: Any) -> str:
        while True:
            await self._is_here.wait()
            if self._end is not None:
                raise self._end
            try:
                return await super().send(type_, **fields)
            except SessionEnded as ended:
                if not self._can_resume(ended):
                    raise
                if type_ == "input_audio_buffer.append":
                    return ""
                self._is_here.clear()  # until `receive`, which finds the same, has come back

    async def append(self, audio: Audio) -> None:
        if self._is_here.is_set():  # what is said into a dead line is lost
            await super().append(audio)

    async def receive(self) -> Arrival:
        while True:
            try:
                arrival = await super().receive()
            except SessionEnded as ended:
                if not self._can_resume(ended):
                    self._give_up(ended)
                    raise
                arrival = await self._come_back(ended)
            if arrival.type == "session.created":
                self._resume = arrival.event.get("resume")
            return arrival

    def _can_resume(self, ended: SessionEnded) -> bool:
        return self._resume is not None and ended.code in LOSSES

    def _give_up(self, ended: SessionEnded) -> None:
        self._end = ended
        self._is_here.set()

    async def _come_back(self, ended: SessionEnded) -> Arrival:
        """The first event at the new socket. Raises SessionEnded, or NotConnected once the session's time is over."""
        self._is_here.clear()
        assert self._resume is not None
        stopped, delay_s = self._stop(), FIRST_DELAY_S
        deadline = time.monotonic() + float(self._resume["within_s"])
        is_moving = ended.code == 1012
        self._on_news("The session moves to another server." if is_moving else "The connection was lost.")
        while True:
            await asyncio.sleep(self._random.uniform(0, delay_s))
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            try:
                arrival = await self._try(str(self._resume["token"]), stopped)
            except NotConnected as error:
                last: ClientError = error
            except SessionEnded as again:
                if again.code not in LOSSES | {1013}:
                    self._give_up(again)
                    raise
                last = again
            else:
                self.resumed += 1
                self._on_news("The session goes on.")
                self._is_here.set()
                return arrival
            if time.monotonic() > deadline:
                self._give_up(ended)
                raise last

    async def _try(self, token: str, stopped: "Played | None") -> Arrival:
        position = (
            {"item_id": stopped.item_id, "audio_end_ms": str(int(stopped.played_s * 1000))} if stopped else {}
        )
        connection = await self._endpoint.connect({RESUME_HEADER: token}, **position)
        self._connection = connection
        arrival = await super().receive()
        if arrival.type == "error":
            error = arrival.event["error"]
            await connection.close()
            code = 1013 if error["code"] in PASSING_ERRORS else 4004
            raise SessionEnded(code, error["message"])
        return arrival


@asynccontextmanager
async def resuming_client(
    url: str,
    *,
    api_key: str | None = None,
    stop: Callable[[], "Played | None"],
    on_news: Callable[[str], None],
) -> AsyncIterator[ResumingClient]:
    """As `realtime_client`, with a session that outlives its socket; the arguments are those of `ResumingClient`."""
    endpoint = Endpoint(_with_query(url, {}, {"own_events": "1"}), api_key)
    client = ResumingClient(endpoint, await endpoint.connect(), stop=stop, on_news=on_news)
    try:
        yield client
    finally:
        await client.connection.close()


def _ended(closed: ConnectionClosed) -> SessionEnded:
    if closed.rcvd is None:
        return SessionEnded(1006, "")
    return SessionEnded(closed.rcvd.code, closed.rcvd.reason)


@contextmanager
def session_end_alone() -> Iterator[None]:
    """Around a TaskGroup: a session's end, which each of its tasks may report, comes out as one ClientError."""
    try:
        yield
    except ExceptionGroup as group:
        ended, others = group.split(ClientError)
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
    connection = await Endpoint(url, api_key, open_timeout_s).connect()
    try:
        yield RealtimeClient(connection)
    finally:
        await connection.close()


def _with_query(url: str, defaults: dict[str, str], wanted: dict[str, str]) -> str:
    parts = urlsplit(url)
    query = defaults | dict(parse_qsl(parts.query)) | wanted
    return urlunsplit(parts._replace(query=urlencode(query)))


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
