"""The REST endpoints in memory: through the `openai` SDK, and message by message for clients that hang up. No ports."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import soundfile
from openai import AsyncOpenAI
from session.calls import active_calls, tone

from serve_app.server import VoiceServer
from serve_app.web import routes

Json = dict[str, Any]
Audio = npt.NDArray[np.float32]
RATE = 16_000


@asynccontextmanager
async def http_of(server: VoiceServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=routes(server))
    async with httpx.AsyncClient(transport=transport, base_url="http://voice.test") as client:
        yield client


@asynccontextmanager
async def sdk_of(server: VoiceServer, api_key: str = "none") -> AsyncIterator[AsyncOpenAI]:
    async with http_of(server) as http:
        yield AsyncOpenAI(api_key=api_key, base_url="http://voice.test/v1", http_client=http, max_retries=0)


def file_of(audio: Audio, *, rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=kind)
    return file.getvalue()


def speech(seconds: float, rate: int = RATE) -> Audio:
    """What the detector of these tests takes for speech."""
    return tone(0, round(seconds * rate), rate)


def silence(seconds: float, rate: int = RATE) -> Audio:
    return np.zeros(round(seconds * rate), dtype=np.float32)


def events_in(text: str) -> list[Json | str]:
    """The data of each server-sent event, as JSON where it is."""
    found: list[Json | str] = []
    for block in text.split("\n\n"):
        if block:
            assert block.startswith("data: "), block
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


@dataclass
class Exchange:
    """One request, as a server process sees it."""

    messages: asyncio.Queue[Json] = field(default_factory=asyncio.Queue)
    status: int = 0
    body: bytes = b""
    is_whole: bool = False
    reads_bytes: int = 10**9
    """After so many it reads no more: the server's `send` then waits."""
    is_full: bool = False

    async def take(self, message: Json) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")
            self.is_whole = not message.get("more_body", False)
        if len(self.body) > self.reads_bytes:
            self.is_full = True
            await asyncio.Event().wait()

    def hang_up(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def until(self, condition: Callable[[], bool], within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)


def http_scope(path: str, headers: Mapping[str, str]) -> Json:
    named = {"host": "voice.test", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(key.lower().encode(), value.encode()) for key, value in named.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
    }


@asynccontextmanager
async def asked(
    server: VoiceServer,
    path: str,
    body: bytes,
    content_type: str = "application/json",
    *,
    reads_bytes: int = 10**9,
) -> AsyncIterator[tuple[Exchange, asyncio.Task[None]]]:
    """The request, under way, and the task that serves it; it must be over when the block is."""
    exchange = Exchange(reads_bytes=reads_bytes)
    exchange.messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
    scope = http_scope(path, {"content-type": content_type})
    app = routes(server)
    serving = asyncio.create_task(app(scope, exchange.messages.get, exchange.take))
    try:
        yield exchange, serving
        await asyncio.wait([serving], timeout=2)
        assert serving.done(), "the request is still served"
    finally:
        serving.cancel()


async def until_idle(server: VoiceServer, within_s: float = 0.5) -> None:
    """Raises TimeoutError if an engine call goes on."""
    async with asyncio.timeout(within_s):
        while active_calls(server._engines):
            await asyncio.sleep(0.005)
