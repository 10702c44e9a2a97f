"""A realtime server with a script instead of engines: what the page and `voice-serve talk` are proven against.

It serves the real static files and speaks the real wire, in the order of the protocol. It hears by loudness alone,
transcribes by a list of lines, and answers with a tone, paced with a fixed lead like the real one. Everything that a
client sent is kept in `StubServer.received`, with the time of its arrival.
"""

import asyncio
import base64
import json
import mimetypes
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

STATIC = Path(__file__).parents[2] / "serve_app" / "static"
RATE = 24_000
CHUNK_S = 0.08
LEAD_S = 0.24
LOUD = 10 ** (-40 / 20)
CSP = "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'"

LINES = ["What is the weather like on the Orkney islands?", "Stop, that is enough.", "And now?"]
ANSWER = (
    "It is windy there, as on most days of the year. The islands lie where the Atlantic meets the North Sea, "
    "so the weather changes before you have found your coat. Bring a good one, and do not trust the morning."
)
ANSWER_S = 9.0
LATENCY_MS = {
    "endpointing": 500,
    "stt": 40,
    "llm_ttft": 210,
    "first_segment": 95,
    "tts_ttfb": 130,
    "overhead": 12,
    "total": 987,
}
STAGES = [
    {"stage": "vad", "engine": "silero", "model": "silero_vad.onnx", "reason": "", "remedy": ""},
    {
        "stage": "stt",
        "engine": "pocketsphinx",
        "model": "en-us",
        "reason": "The weights of faster-whisper base.en are not on this machine.",
        "remedy": "voice-serve models pull",
    },
    {"stage": "llm", "engine": "llama_cpp", "model": "SmolLM2-135M-Instruct", "reason": "", "remedy": ""},
    {"stage": "tts", "engine": "kokoro", "model": "Kokoro-82M", "reason": "", "remedy": ""},
]


@dataclass
class StubServer:
    """What the stub is to do, and what it has seen. Change the fields before a client comes."""

    lines: list[str] = field(default_factory=lambda: list(LINES))
    answer: str = ANSWER
    answer_s: float = ANSWER_S
    think_s: float = 0.15
    is_full: bool = False
    is_resumable: bool = False
    refuses_to_resume: bool = False
    last_event_id: str | None = None
    """What it says to who comes back to have taken in of it."""
    refusals_before_resume: int = 0
    """So many attempts are answered as by a server that is full."""
    returns: list[dict[str, str]] = field(default_factory=list)
    """What each client that came back showed: resume, item_id, audio_end_ms."""
    api_key: str | None = None
    unready_polls: int = 0
    received: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    sent: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    sessions: list["StubSession"] = field(default_factory=list)

    def of_type(self, type_: str) -> list[dict[str, Any]]:
        """The client's events of this type, in order."""
        return [event for _, event in self.received if event["type"] == type_]

    def sent_of_type(self, type_: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at, event) for at, event in self.sent if event["type"] == type_]

    @property
    def realtime_url(self) -> str:
        return self.url.replace("http", "ws") + "/v1/realtime"

    async def handle(self, connection: ServerConnection) -> None:
        if self.is_full:
            await refuse(connection, 1013, "the server is full (4 sessions a replica); try again in a moment")
            return
        if self.api_key is not None and not self._has_key(connection):
            await refuse(
                connection, 1008, "a valid API key is needed: Authorization: Bearer, or the subprotocol"
            )
            return
        back = self._shown_token(connection)
        if back is not None and not await self._lets_back(connection, back):
            return
        session = StubSession(self, connection, back=back)
        self.sessions.append(session)
        try:
            await session.run()
        except* ConnectionClosed:
            pass

    def _shown_token(self, connection: ServerConnection) -> dict[str, str] | None:
        assert connection.request is not None
        shown = dict(parse_qsl(urlsplit(connection.request.path).query))
        token = connection.request.headers.get("X-Voice-Serve-Resume") or shown.get("resume")
        return None if token is None else shown | {"resume": token}

    async def _lets_back(self, connection: ServerConnection, shown: dict[str, str]) -> bool:
        self.returns.append(shown)
        if self.refusals_before_resume > 0:
            self.refusals_before_resume -= 1
            await refuse(connection, 1013, "the server is full", code="server_full")
            return False
        if self.refuses_to_resume or shown["resume"] != f"sess_1.token{len(self.sessions)}":
            await refuse(connection, 4004, "this token is used", code="resume_token_invalid")
            return False
        return True

    async def drop_clients(self) -> None:
        """As when a cable is pulled: no closing handshake."""
        for session in self.sessions:
            session.connection.transport.abort()

    def _has_key(self, connection: ServerConnection) -> bool:
        assert connection.request is not None
        headers = connection.request.headers
        offered = headers.get("Sec-WebSocket-Protocol", "")
        bearer = headers.get("Authorization", "")
        return f"openai-insecure-api-key.{self.api_key}" in offered or bearer == f"Bearer {self.api_key}"

    def answer_http(self, connection: ServerConnection, request: Request) -> Response | None:
        """None lets the WebSocket handshake go on."""
        path = request.path.split("?")[0]
        if path == "/v1/realtime":
            return None
        if path == "/readyz":
            return self._readiness()
        if path == "/v1/models":
            if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
                return json_response(HTTPStatus.UNAUTHORIZED, {"error": {"message": "An API key is needed."}})
            return json_response(HTTPStatus.OK, self._models())
        return static_response(path)

    def _readiness(self) -> Response:
        if self.unready_polls > 0:
            self.unready_polls -= 1
            body = {"ready": False, "stages": {"llm": "loading the model"}}
            return json_response(HTTPStatus.SERVICE_UNAVAILABLE, body)
        return json_response(HTTPStatus.OK, {"ready": True, "stages": {}})

    def _models(self) -> dict[str, Any]:
        model = {"id": "voice-serve", "object": "model", "created": 0, "owned_by": "voice-serve"}
        return {
            "object": "list",
            "data": [model | {"stages": STAGES, "voices": ["af_heart", "bm_george"], "limits": {}}],
        }


class StubSession:
    """One conversation of the script."""

    def __init__(
        self, server: StubServer, connection: ServerConnection, *, back: dict[str, str] | None = None
    ) -> None:
        self._back = back
        before = server.sessions[-1] if back and server.sessions else None
        self.open_response = before.open_response if before else None
        """The answer under way: its response and its item."""
        self._server = server
        self.connection = connection
        self._ids = before._ids if before else 0
        self._lines = before._lines if before else deque(server.lines)
        self._loud = deque[bool](maxlen=5)
        self._samples = 0
        self._speech_item: str | None = None
        self._quiet_since = 0
        self._answer: asyncio.Task[None] | None = None
        self._said: dict[str, str] = {}
        self._playing: tuple[str, float] | None = None
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            session = {
                "type": "realtime",
                "id": "sess_1",
                "instructions": "You are a helpful companion. Answer in one or two short sentences.",
                "audio": {
                    "input": {"transcription": {"language": "en"}},
                    "output": {"voice": "af_heart"},
                },
            }
            number = len(self._server.sessions)
            offer = {"token": f"sess_1.token{number}", "within_s": 30}
            if self._back is not None and self._server.last_event_id is not None:
                offer["last_event_id"] = self._server.last_event_id
            await self._send(
                "session.created", session=session, **({"resume": offer} if self._server.is_resumable else {})
            )
            if self._back is not None:
                await self._resume(self._back)
            try:
                async for message in self.connection:
                    event = json.loads(message)
                    self._server.received.append((time.monotonic(), event))
                    await self._on_event(event)
            finally:
                if self._answer is not None:
                    self._answer.cancel()

    async def _resume(self, back: dict[str, str]) -> None:
        lost = [self._server.sessions[-2]._speech_item] if self._server.sessions[-2]._speech_item else []
        await self._send("session.resumed", session_id="sess_1", items=[], lost_items=lost)
        if self.open_response is not None:
            response_id, item = self.open_response
            self.open_response = None
            heard = self._heard(int(back.get("audio_end_ms", "0")) / 1000)
            response = {
                "id": response_id,
                "object": "realtime.response",
                "status": "incomplete",
                "status_details": {"type": "incomplete"},
                "output": [item],
                "metadata": {"heard.text": heard},
            }
            await self._send("response.done", response=response)

    async def _send(self, type_: str, **fields: Any) -> None:
        self._ids += 1
        event = {"type": type_, "event_id": f"event_{self._ids}", **fields}
        self._server.sent.append((time.monotonic(), event))
        await self.connection.send(json.dumps(event))

    async def _on_event(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "input_audio_buffer.append":
                await self._hear(np.frombuffer(base64.b64decode(event["audio"]), "<i2"))
            case "session.update":
                if event["session"].get("audio", {}).get("output", {}).get("voice") == "bm_george":
                    await self._error(event, "invalid_value", "There is no voice bm_george here.")
                else:
                    await self._send("session.updated", session=event["session"])
            case "conversation.item.create":
                item = event["item"] | {"id": self._new_id("item")}
                await self._send("conversation.item.added", item=item, previous_item_id=None)
            case "response.create":
                self._begin_answer(latency=False)
            case "response.cancel":
                await self._interrupt("client_cancelled")
            case "conversation.item.truncate":
                fields = {key: event[key] for key in ("item_id", "content_index", "audio_end_ms")}
                self._said[event["item_id"]] = self._heard(event["audio_end_ms"] / 1000)
                await self._send("conversation.item.truncated", **fields)
            case "conversation.item.retrieve":
                content = [{"type": "output_audio", "transcript": self._said[event["item_id"]]}]
                item = {"id": event["item_id"], "type": "message", "role": "assistant", "content": content}
                await self._send("conversation.item.retrieved", item=item)

    async def _error(self, event: dict[str, Any], code: str, message: str) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
        await self._send("error", error=error | {"event_id": event.get("event_id")})

    def _new_id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}_{self._ids}"

    # --- hearing ------------------------------------------------------------------------------------------------

    async def _hear(self, pcm: np.ndarray) -> None:
        self._samples += len(pcm)
        rms = float(np.sqrt(np.mean((pcm / 32768.0) ** 2)))
        self._loud.append(rms > LOUD)
        if rms > LOUD:
            self._quiet_since = self._samples
        if self._speech_item is None and sum(self._loud) >= 4:
            await self._start_speech()
        elif self._speech_item is not None and self._samples - self._quiet_since > RATE // 2:
            await self._stop_speech()

    async def _start_speech(self) -> None:
        self._speech_item = self._new_id("item")
        start_ms = max(0, self._samples * 1000 // RATE - 400)
        await self._send(
            "input_audio_buffer.speech_started", item_id=self._speech_item, audio_start_ms=start_ms
        )
        await self._interrupt("turn_detected")

    async def _stop_speech(self) -> None:
        item_id, self._speech_item = self._speech_item, None
        end_ms = self._samples * 1000 // RATE
        text = self._lines.popleft() if self._lines else "And so on."
        await self._send("input_audio_buffer.speech_stopped", item_id=item_id, audio_end_ms=end_ms)
        await self._send("input_audio_buffer.committed", item_id=item_id, previous_item_id=None)
        content = [{"type": "input_audio", "transcript": None}]
        item = {
            "id": item_id,
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": content,
        }
        await self._send("conversation.item.added", item=item, previous_item_id=None)
        await self._send("conversation.item.done", item=item, previous_item_id=None)
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item_id,
            content_index=0,
            transcript=text,
        )
        if text:
            self._begin_answer(latency=True)
        else:
            await self._send("conversation.item.deleted", item_id=item_id)

    # --- answering ----------------------------------------------------------------------------------------------

    def _begin_answer(self, *, latency: bool) -> None:
        self._answer = self._tasks.create_task(self._speak(self._new_id("resp"), latency=latency))

    def _heard(self, played_s: float) -> str:
        share = min(1.0, played_s / self._server.answer_s)
        words = self._server.answer.split(" ")
        return " ".join(words[: int(len(words) * share)])

    async def _interrupt(self, reason: str) -> None:
        if self._answer is None or self._answer.done():
            return
        self._answer.cancel(reason)
        with suppress(asyncio.CancelledError):
            await self._answer

    async def _speak(self, response_id: str, *, latency: bool) -> None:
        item_id = self._new_id("item")
        ids = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        metadata = {f"latency.{name}_ms": str(ms) for name, ms in LATENCY_MS.items()} if latency else {}
        response = {"id": response_id, "object": "realtime.response", "status": "in_progress", "output": []}
        await self._send("response.created", response=response)
        await asyncio.sleep(self._server.think_s)
        item = {
            "id": item_id,
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        self.open_response = response_id, item
        await self._send("response.output_item.added", response_id=response_id, output_index=0, item=item)
        await self._send("conversation.item.added", item=item, previous_item_id=None)
        part = {"type": "audio", "transcript": ""}
        await self._send("response.content_part.added", **ids, part=part)
        began = time.monotonic()
        status: dict[str, Any] = {"status": "completed"}
        try:
            await self._send_audio(ids, began)
        except asyncio.CancelledError as stop:
            reason = stop.args[0] if stop.args else "turn_detected"
            heard = self._heard(time.monotonic() - began)
            metadata |= {"heard.text": heard}
            self._said[item_id] = heard
            status = {"status": "cancelled", "status_details": {"type": "cancelled", "reason": reason}}
        await self._send("response.output_audio.done", **ids)
        await self._send("response.output_audio_transcript.done", **ids, transcript=self._server.answer)
        done = {**item, "status": "completed" if status["status"] == "completed" else "incomplete"}
        await self._send("response.output_item.done", response_id=response_id, output_index=0, item=done)
        await self._send(
            "response.done", response=response | status | {"output": [done], "metadata": metadata}
        )
        self.open_response = None  # not if the line is dead by now

    async def _send_audio(self, ids: dict[str, Any], began: float) -> None:
        audio = tone(self._server.answer_s)
        size = int(CHUNK_S * RATE)
        words = self._server.answer.split(" ")
        shown = 0
        for start in range(0, len(audio), size):
            await asyncio.sleep(began + start / RATE - LEAD_S - time.monotonic())
            due = int(len(words) * min(1.0, (start + RATE) / len(audio)))
            if due > shown:
                text = " ".join(words[shown:due])
                await self._send(
                    "response.output_audio_transcript.delta", **ids, delta=text if shown == 0 else " " + text
                )
                shown = due
            chunk = base64.b64encode(audio[start : start + size].tobytes()).decode()
            await self._send("response.output_audio.delta", **ids, delta=chunk)


async def refuse(
    connection: ServerConnection, close_code: int, sentence: str, *, code: str = "refused"
) -> None:
    """As the real server: an event for clients that show those, then the close."""
    error = {"type": "invalid_request_error", "code": code, "message": sentence, "param": None}
    await connection.send(json.dumps({"type": "error", "event_id": "event_1", "error": error}))
    await connection.close(close_code, sentence)


def tone(seconds: float) -> np.ndarray:
    """An answer to listen to: a soft tone, int16."""
    times = np.arange(int(seconds * RATE)) / RATE
    return (3000 * np.sin(2 * np.pi * 220 * times)).astype("<i2")


def json_response(status: HTTPStatus, body: dict[str, Any]) -> Response:
    headers = Headers({"Content-Type": "application/json"})
    return with_length(Response(status.value, status.phrase, headers, json.dumps(body).encode()))


def static_response(path: str) -> Response:
    name = "index.html" if path == "/" else path.removeprefix("/static/")
    file = STATIC / name
    if "/" in name or not file.is_file():
        return json_response(HTTPStatus.NOT_FOUND, {"error": {"message": f"nothing at {path}"}})
    type_ = mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = Headers({"Content-Type": type_, "Content-Security-Policy": CSP, "Cache-Control": "no-store"})
    return with_length(Response(200, "OK", headers, file.read_bytes()))


def with_length(response: Response) -> Response:
    response.headers["Content-Length"] = str(len(response.body))
    response.headers["Connection"] = "close"
    return response


@asynccontextmanager
async def stub_server(host: str = "127.0.0.1") -> AsyncIterator[StubServer]:
    """A stub on a free port of `host`, until the block ends."""
    stub = StubServer()
    server: Server
    async with serve(
        stub.handle,
        host,
        0,
        process_request=stub.answer_http,
        select_subprotocol=lambda _, offered: "realtime" if "realtime" in offered else None,  # type: ignore[arg-type, return-value]
        compression=None,
    ) as server:
        port = server.sockets[0].getsockname()[1]
        stub.url = f"http://{host}:{port}"
        yield stub
