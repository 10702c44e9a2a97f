"""One session at one socket: the handshake, events both ways, and the end in words for the person."""

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    InvalidURI,
)

from serve_app.audio.pcm import Audio, encode_pcm

RATE = 24_000
"""Samples a second, both ways."""
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
        event_id, text = self._event(type_, fields)
        await self._write(text)
        return event_id

    def _event(self, type_: str, fields: dict[str, Any]) -> tuple[str, str]:
        event_id = f"client_{next(self._event_ids)}"
        return event_id, json.dumps({"type": type_, "event_id": event_id, **fields})

    async def _write(self, text: str) -> None:
        try:
            await self._connection.send(text)
        except ConnectionClosed as closed:
            raise _ended(closed) from closed

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
            with_query(self.url, {"model": MODEL}, query),
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


def with_query(url: str, defaults: dict[str, str], wanted: dict[str, str]) -> str:
    """`url` with more in its query: `defaults` where that says nothing, `wanted` whatever it says."""
    parts = urlsplit(url)
    query = defaults | dict(parse_qsl(parts.query)) | wanted
    return urlunsplit(parts._replace(query=urlencode(query)))


def _refusal_words(url: str, status: int) -> str:
    if status in (401, 403):
        return f"{url} refused the connection ({status}): is an API key needed? (--api-key)"
    return f"{url} answered {status} instead of a WebSocket."
