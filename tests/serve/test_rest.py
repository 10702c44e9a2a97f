"""REST behind real Ray Serve: streamed as it is made, and stopped in the replica when the client hangs up."""

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.shared_params import FunctionDefinition

from loadtest.application import Application

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to its own shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
LONG = {"model": "m", "input": " ".join(f"word{number}" for number in range(40)), "voice": "alloy"}
"""About 12 s of sound, which the slow voice makes at 0.9 of real time."""


@pytest.fixture
async def sdk(app: Application) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=f"{app.http}/v1", max_retries=0) as client:
        yield client


async def test_the_three_endpoints(sdk: AsyncOpenAI, shared_audio: Path) -> None:
    recording = shared_audio / "speech" / "p287_001.flac"
    heard = await sdk.audio.transcriptions.create(model="whisper-1", file=recording)
    answer = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": heard.text}], max_tokens=5
    )
    spoken = await sdk.audio.speech.create(
        model="tts-1", voice="alloy", input=answer.choices[0].message.content or "", response_format="wav"
    )
    assert heard.text == "tell me something"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert len(spoken.content) == 44 + 5 * 0.3 * 24_000 * 2


async def test_a_function_call_crosses_the_handle(sdk: AsyncOpenAI) -> None:
    function: FunctionDefinition = {"name": "get_weather", "parameters": {"type": "object"}}
    answer = await sdk.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=3,
        tools=[{"type": "function", "function": function}],
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city":"Paris"}')


@pytest.mark.parametrize(
    ("path", "body", "deployment"),
    [
        ("/v1/chat/completions", {**CHAT, "stream": True}, "LanguageModel"),
        ("/v1/audio/speech", LONG, "TextToSpeech"),
        ("/v1/audio/speech", {**LONG, "stream_format": "sse"}, "TextToSpeech"),
    ],
)
async def test_hanging_up_in_mid_answer_stops_the_replica(
    app: Application, path: str, body: dict[str, object], deployment: str
) -> None:
    before = await app.until_idle(deployment)
    async with (
        httpx.AsyncClient(base_url=app.http) as http,
        http.stream("POST", path, json=body) as response,
    ):
        assert response.status_code == 200
        parts = response.aiter_bytes()  # httpx hangs up when this is collected
        await anext(parts)
        assert (await app.stats(deployment))["active"] == 1
    after = await app.until_idle(deployment, within_s=2)
    assert after["cancelled"] == before["cancelled"] + 1


async def test_hanging_up_before_the_answer_stops_the_replica(app: Application) -> None:
    """60 words at 8 a second: the whole answer would take 7.5 s."""
    before = await app.until_idle("LanguageModel")
    async with httpx.AsyncClient(base_url=app.http) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/v1/chat/completions", json=CHAT, timeout=1.0)
    after = await app.until_idle("LanguageModel", within_s=2)
    assert after["cancelled"] == before["cancelled"] + 1


async def test_sound_comes_while_the_rest_is_made(app: Application) -> None:
    began = time.monotonic()
    async with (
        httpx.AsyncClient(base_url=app.http) as http,
        http.stream("POST", "/v1/audio/speech", json={**LONG, "response_format": "pcm"}) as response,
    ):
        parts = response.aiter_bytes()
        await anext(parts)
        assert time.monotonic() - began < 4, "the whole takes 11 s"


async def test_a_refusal_by_the_engine_crosses_the_handle_with_its_status(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    assert refused.value.code == "engine_bad_request"


async def test_what_is_too_large_is_refused(sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await sdk.audio.transcriptions.create(model="whisper-1", file=io.BytesIO(bytes(26 * 2**20)))
    assert refused.value.status_code == 413


async def test_sound_that_breaks_off_does_not_look_whole(app: Application) -> None:
    """Its replica is killed; Serve starts another."""
    async with httpx.AsyncClient(base_url=app.http, timeout=20) as http:
        async with http.stream("POST", "/v1/audio/speech", json=LONG) as response:
            parts = response.aiter_bytes()
            await anext(parts)
            os.kill(int((await app.stats("TextToSpeech"))["pid"]), signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                await _drained(parts)
        async with asyncio.timeout(60):
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.2)


async def _drained(parts: AsyncIterator[bytes]) -> None:
    async with asyncio.timeout(30):
        async for _ in parts:
            pass
