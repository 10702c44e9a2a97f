"""A WebSocket client of an ASGI application in memory, and the application of these tests. No ports."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from realtime.order import OWN_EVENTS, OrderChecker
from session.calls import FAST_LLM, FAST_TTS, append, scripted, tone

from deployments.interfaces import EngineInfo
from serve_app.config import Config
from serve_app.server import StageStatus, VoiceServer
from serve_app.session.resumption import SessionStore
from serve_app.session.stages import Engines
from serve_app.web import routes

Json = dict[str, Any]
SCRIPTED = {stage: {"engine": "scripted"} for stage in ("stt", "llm", "tts")}
INFOS = {stage: EngineInfo(stage, "scripted", "none") for stage in ("vad", "stt", "llm", "tts")}
_SDK: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def server_of(
    *,
    engines: Engines | None = None,
    api_keys: Sequence[str] = (),
    health: Mapping[str, StageStatus] = INFOS,
    voices: Any = ("any", "af_heart"),
    store: SessionStore | None = None,
    metrics: Any = None,
    **config: Any,
) -> VoiceServer:
    """`voices`: names, or what asking for them raises."""

    async def stages() -> Mapping[str, StageStatus]:
        return health

    async def names() -> Sequence[str]:
        if isinstance(voices, Exception):
            raise voices
        return list(voices)

    return VoiceServer(
        Config.parse(SCRIPTED | config),
        engines or scripted(llm=FAST_LLM, tts=FAST_TTS),
        api_keys=frozenset(api_keys),
        health=stages,
        voices=names,
        metrics=metrics,
        store=store,
    )


@dataclass
class Socket:
    """The client's end."""

    sent: asyncio.Queue[Json] = field(default_factory=asyncio.Queue)
    events: list[Json] = field(default_factory=list)
    accepted: Json | None = None
    closed: tuple[int, str] | None = None
    failed: str = ""
    """What the application raised."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, frame: Json | str | bytes) -> None:
        if isinstance(frame, bytes):
            self.sent.put_nowait({"type": "websocket.receive", "bytes": frame})
        else:
            text = frame if isinstance(frame, str) else json.dumps(frame)
            self.sent.put_nowait({"type": "websocket.receive", "text": text})

    def hang_up(self) -> None:
        self.sent.put_nowait({"type": "websocket.disconnect", "code": 1005})

    async def take(self, message: Json) -> None:
        """What the application sends."""
        assert self.closed is None, f"{message['type']} after the close"
        match message["type"]:
            case "websocket.accept":
                assert self.accepted is None
                self.accepted = message
            case "websocket.send":
                assert self.accepted is not None
                self.events.append(json.loads(message["text"]))
            case "websocket.close":
                self.closed = (message.get("code", 1000), message.get("reason") or "")
                self.hang_up()
            case kind:
                raise AssertionError(kind)
        self._news.set()

    def all(self, kind: str) -> list[Json]:
        return [event for event in self.events if event["type"] == kind]

    async def until(self, kind: str, *, count: int = 1, within: float = 30.0) -> Json:
        async with asyncio.timeout(within):
            while len(found := self.all(kind)) < count:
                assert self.closed is None, f"closed: {self.closed}"
                assert not self.failed
                self._news.clear()
                await self._news.wait()
        return found[count - 1]

    async def until_closed(self, within: float = 30.0) -> tuple[int, str]:
        async with asyncio.timeout(within):
            while self.closed is None:
                assert not self.failed
                self._news.clear()
                await self._news.wait()
        return self.closed

    async def answer_to(self, *frames: Json | str) -> list[Json]:
        """All that comes back at once."""
        before = len(self.events)
        for frame in frames:
            self.send(frame)
        while not self.sent.empty():
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        return self.events[before:]

    async def spoken_turn(self) -> Json:
        """A question of half a second, sent at once; the response that it got."""
        count = len(self.all("response.done")) + 1
        audio = np.concatenate([np.zeros(2400), tone(0, 12_000, 24_000), np.zeros(24_000)])
        self.send(append(audio.astype(np.float32)))
        done = await self.until("response.done", count=count)
        response: Json = done["response"]
        return response

    def note_end(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and running.exception() is not None:
            self.failed = repr(running.exception())
        self._news.set()

    def check(self) -> None:
        order = OrderChecker()
        for event in self.events:
            if self.events[0]["type"] == "session.created":
                order.push(event)
            if event["type"] not in OWN_EVENTS:
                _SDK.validate_python(event)


def scope(
    path: str = "/v1/realtime",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
) -> Json:
    named = {"host": "voice.test:8000", **(headers or {})}
    return {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(key.lower().encode(), value.encode("latin-1")) for key, value in named.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "subprotocols": list(subprotocols),
        "extensions": {},
    }


@asynccontextmanager
async def connected(server: VoiceServer, **handshake: Any) -> AsyncIterator[Socket]:
    """A connection, hung up at the end if the server has not closed it; both must end the application's call."""
    socket = Socket()
    socket.sent.put_nowait({"type": "websocket.connect"})
    app = routes(server)
    running = asyncio.create_task(app(scope(**handshake), socket.sent.get, socket.take))
    running.add_done_callback(socket.note_end)
    try:
        yield socket
    finally:
        if socket.closed is None:
            socket.hang_up()
        await asyncio.wait([running], timeout=2.0)
        is_over = running.done()
        running.cancel()
    assert is_over, "the application goes on after the connection's end"
    running.result()
    socket.check()
