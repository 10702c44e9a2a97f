"""A client that hangs up stops the work, however the server tells of it; what breaks off does not look whole."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest
from ingress.asgi import server_of
from rest.wire import Exchange, asked, events_in, file_of, speech, until_idle
from session.calls import scripted
from session.faulty import Fault, FaultyChatModel, FaultySynthesizer
from starlette.requests import ClientDisconnect, Request

from deployments.interfaces import EngineFailed
from deployments.options import ScriptedLlm, ScriptedStt, ScriptedTts
from serve_app.rest.streams import streamed
from serve_app.rest.transcriptions import hear
from serve_app.server import VoiceServer

SLOW = {
    "stt": ScriptedStt(latency_s=20),
    "llm": ScriptedLlm(first_token_s=0.05, tokens_per_s=4, answer_words=80),
    "tts": ScriptedTts(first_audio_s=0.05, word_s=0.2, realtime_factor=1.0),
}
TEXT = " ".join(f"word{number}" for number in range(60))


def chat(**fields: Any) -> tuple[str, bytes, str]:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return "/v1/chat/completions", json.dumps(body).encode(), "application/json"


def voice(**fields: Any) -> tuple[str, bytes, str]:
    return "/v1/audio/speech", json.dumps({"input": TEXT, **fields}).encode(), "application/json"


def transcription(**fields: str) -> tuple[str, bytes, str]:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + file_of(speech(1)) + b"\r\n--x--\r\n"
    return "/v1/audio/transcriptions", body, "multipart/form-data; boundary=x"


def hang_up(exchange: Exchange, serving: asyncio.Task[None]) -> None:
    """What uvicorn says."""
    exchange.hang_up()


def cancel(exchange: Exchange, serving: asyncio.Task[None]) -> None:
    """What Serve's own proxy does."""
    serving.cancel()


Leave = Callable[[Exchange, "asyncio.Task[None]"], None]
LEAVING = pytest.mark.parametrize("leave", [hang_up, cancel])


@LEAVING
@pytest.mark.parametrize(
    ("stage", "request_"),
    [
        ("transcriber", transcription()),
        ("transcriber", transcription(stream="true")),
        ("chat", chat()),
        ("chat", chat(stream=True)),
        ("synthesizer", voice()),
        ("synthesizer", voice(response_format="pcm")),
        ("synthesizer", voice(stream_format="sse")),
    ],
)
async def test_hanging_up_cancels_the_engines_call(
    stage: str, request_: tuple[str, bytes, str], leave: Leave
):
    engines = scripted(**SLOW)
    server, engine = server_of(engines=engines), getattr(engines, stage)
    async with asked(server, *request_) as (exchange, serving):
        await exchange.until(lambda: engine.active == 1)
        leave(exchange, serving)
        await until_idle(server)
        assert (engine.started, engine.cancelled) == (1, 1)
    assert not exchange.is_whole or exchange.status == 499


@LEAVING
@pytest.mark.parametrize(
    ("stage", "request_"),
    [("chat", chat(stream=True)), ("synthesizer", voice()), ("synthesizer", voice(stream_format="sse"))],
)
async def test_hanging_up_in_mid_answer_cancels_the_engines_call(
    stage: str, request_: tuple[str, bytes, str], leave: Leave
):
    engines = scripted(**SLOW)
    server, engine = server_of(engines=engines), getattr(engines, stage)
    async with asked(server, *request_) as (exchange, serving):
        await exchange.until(lambda: len(exchange.body) > 0)
        leave(exchange, serving)
        await until_idle(server)
        assert engine.cancelled == 1
    assert exchange.status == 200
    assert not exchange.is_whole


@LEAVING
@pytest.mark.parametrize(
    ("stage", "request_"), [("chat", chat(stream=True)), ("synthesizer", voice(response_format="pcm"))]
)
async def test_a_client_that_stops_reading_and_leaves_stops_the_engine(
    stage: str, request_: tuple[str, bytes, str], leave: Leave
):
    """The answer waits in `send` then, with the engine's stream suspended between two items."""
    engines = scripted(**SLOW)
    server, engine = server_of(engines=engines), getattr(engines, stage)
    async with asked(server, *request_, reads_bytes=100) as (exchange, serving):
        await exchange.until(lambda: exchange.is_full)
        leave(exchange, serving)
        await until_idle(server)
        assert (engine.started, engine.cancelled) == (1, 1)


async def test_hanging_up_as_the_first_part_comes_closes_the_engines_stream():
    closed = []

    async def parts() -> AsyncGenerator[bytes, None]:
        try:
            await asyncio.sleep(0)
            yield b"first"
        finally:
            closed.append(True)

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    stream = parts()
    with pytest.raises(ClientDisconnect):
        await streamed(Request({"type": "http"}, receive), stream, "audio/pcm")
    assert closed


async def test_hanging_up_stops_the_thread_that_listens_to_a_long_file():
    heard = []

    class Patient:
        def probability(self, frame: object) -> float:
            heard.append(time.sleep(0.002))
            return 0.0

    file = file_of(speech(40))  # 1250 frames, 2.5 s
    task = asyncio.create_task(hear(file, Patient))
    async with asyncio.timeout(5):
        while not heard:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.3)
    count = len(heard)
    await asyncio.sleep(0.1)
    assert task.cancelled()
    assert len(heard) == count < 1000


async def test_nobody_is_transcribed_for_who_left_while_the_file_was_decoded():
    engines = scripted(**SLOW)
    server = server_of(engines=engines)
    async with asked(server, *transcription()) as (exchange, _):
        exchange.hang_up()
    assert engines.transcriber.started == 0  # type: ignore[attr-defined]


# --- what breaks off ------------------------------------------------------------------------------------------------


def breaking(stage: str, at: int) -> VoiceServer:
    engines = scripted(tts=ScriptedTts(first_audio_s=0, realtime_factor=0))
    fault = [Fault("fails", at)]
    if stage == "chat":
        return server_of(engines=replace(engines, chat=FaultyChatModel(engines.chat, fault)))
    return server_of(engines=replace(engines, synthesizer=FaultySynthesizer(engines.synthesizer, fault)))


@pytest.mark.parametrize("response_format", ["pcm", "wav", "mp3"])
async def test_sound_that_breaks_off_is_not_ended_as_if_it_were_whole(response_format: str):
    server = breaking("synthesizer", at=3)
    async with asked(server, *voice(response_format=response_format)) as (exchange, serving):
        with pytest.raises(EngineFailed, match="it broke"):
            await serving
    assert exchange.status == 200
    assert len(exchange.body) > 0
    assert not exchange.is_whole


@pytest.mark.parametrize(
    ("stage", "request_"), [("chat", chat(stream=True)), ("synthesizer", voice(stream_format="sse"))]
)
async def test_events_that_break_off_end_in_the_error(stage: str, request_: tuple[str, bytes, str]):
    async with asked(breaking(stage, at=3), *request_) as (exchange, serving):
        await serving
    *_, last = events_in(exchange.body.decode())
    assert exchange.status == 200
    assert isinstance(last, dict)
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "engine_failed")


@pytest.mark.parametrize(
    ("stage", "request_"),
    [
        ("chat", chat()),
        ("chat", chat(stream=True)),
        ("synthesizer", voice()),
        ("synthesizer", voice(stream_format="sse")),
    ],
)
async def test_what_fails_before_the_first_item_has_a_status(stage: str, request_: tuple[str, bytes, str]):
    async with asked(breaking(stage, at=0), *request_) as (exchange, serving):
        await serving
    assert exchange.status == 502
    assert json.loads(exchange.body)["error"]["code"] == "engine_failed"
