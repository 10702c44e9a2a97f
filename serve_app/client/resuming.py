"""A session that outlives its socket: when to come back, with what, and when to give up."""

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.client import ClientConnection

from serve_app.audio.pcm import Audio

from .connection import (
    Arrival,
    ClientError,
    Endpoint,
    NotConnected,
    RealtimeClient,
    SessionEnded,
    with_query,
)
from .player import Played

LOSSES = frozenset({1001, 1005, 1006, 1011, 1012, 1014})
"""After these the session may still be there for who comes back with its token (RFC 6455 7.4.1, IANA)."""
RESUME_HEADER = "X-Voice-Serve-Resume"
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 4.0
"""Between attempts to come back: up to so much, doubled each time; the draw keeps a crowd from coming at once."""
PASSING_ERRORS = frozenset({"server_full", "server_draining", "resume_unavailable"})
"""Refusals that another attempt, perhaps at another replica, need not meet."""
ABOUT_AUDIO = "input_audio_buffer."
MOST_UNCONFIRMED = 64
"""Events that are kept to be sent again; more are not under way in the quarter of a second between two snapshots."""


class ResumingClient(RealtimeClient):
    """A session that goes on at another socket when its own is lost, for as long as the server keeps it.

    `receive` is what reconnects; the events after a return begin with `session.created` again. Audio that is sent in
    the meantime is lost; other events wait, and those that the server has not taken in are sent again, once each. What
    was being played must stop: `stop` does that and says how far it was.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        connection: ClientConnection,
        *,
        stop: Callable[[], Played | None],
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
        self._unconfirmed: deque[tuple[str, str]] = deque(maxlen=MOST_UNCONFIRMED)
        """Ids and texts of what was sent last."""
        self._is_here = asyncio.Event()
        self._is_here.set()
        self._end: SessionEnded | None = None

    @property
    def connection(self) -> ClientConnection:
        """The socket in use now."""
        return self._connection

    async def send(self, type_: str, **fields: Any) -> str:
        await self._back()
        event_id, text = self._event(type_, fields)
        is_audio = type_ == "input_audio_buffer.append"
        if not is_audio:
            self._unconfirmed.append((event_id, text))
        try:
            await self._write(text)
        except SessionEnded as ended:
            if not self._can_resume(ended):
                raise
            if not is_audio:
                self._is_here.clear()  # until `receive`, which finds the same, has come back and sent it again
                await self._back()
        return event_id

    async def _back(self) -> None:
        await self._is_here.wait()
        if self._end is not None:
            raise self._end

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
                with suppress(SessionEnded):  # lost again: so it finds `receive`
                    await self._send_again(arrival.event.get("resume") or {})
                self._on_news("The session goes on.")
                self._is_here.set()
                return arrival
            if time.monotonic() > deadline:
                self._give_up(ended)
                raise last

    async def _send_again(self, resume: dict[str, Any]) -> None:
        """What the server has not taken in. What is about audio is lost as the audio is."""
        known = resume.get("last_event_id")
        if known is None:  # the server does not say
            return
        ids = [event_id for event_id, _ in self._unconfirmed]
        for _ in range(ids.index(known) + 1 if known in ids else 0):
            self._unconfirmed.popleft()
        for _, text in list(self._unconfirmed):
            if not json.loads(text)["type"].startswith(ABOUT_AUDIO):
                await self._write(text)

    async def _try(self, token: str, stopped: Played | None) -> Arrival:
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
    stop: Callable[[], Played | None],
    on_news: Callable[[str], None],
) -> AsyncIterator[ResumingClient]:
    """As `connection.realtime_client`, with a session that outlives its socket; the arguments are those of `ResumingClient`."""
    endpoint = Endpoint(with_query(url, {}, {"own_events": "1"}), api_key)
    client = ResumingClient(endpoint, await endpoint.connect(), stop=stop, on_news=on_news)
    try:
        yield client
    finally:
        await client.connection.close()
