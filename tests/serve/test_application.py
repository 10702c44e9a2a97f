"""The application behind real Ray Serve: cancellation reaches the replicas, a lost replica costs one call.

Speech is a recording of `../shared/audio`. Nothing here depends on how fast the machine is: limits are for hangs.
"""

import asyncio
import base64
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI
from ray import serve
from realtime.order import OrderChecker

from deployments.interfaces import BadRequest, ChatMessage, EngineFailed, Sampling
from loadtest.application import APPLICATION, Application
from loadtest.caller import caller
from serve_app.audio.pcm import Audio, encode_pcm
from serve_app.client.connection import SessionEnded, realtime_client
from serve_app.session.engine_clients import RemoteChatModel, RemoteSynthesizer
from serve_app.talk import load_recording

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to its own shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def question(shared_audio: Path) -> Audio:
    return load_recording(shared_audio / "speech" / "p287_001.flac")


@pytest.fixture(scope="module")
def interruption(shared_audio: Path) -> Audio:
    return load_recording(shared_audio / "digits" / "jackson-10.flac")


async def test_every_stage_is_ready_and_named(app: Application) -> None:
    async with httpx.AsyncClient(base_url=app.http) as http:
        assert (await http.get("/readyz")).json() == {"ready": True, "stages": {}}
        [model] = (await http.get("/v1/models")).json()["data"]
        assert {stage["stage"]: stage["engine"] for stage in model["stages"]} == {
            "vad": "silero",
            "stt": "scripted",
            "llm": "scripted",
            "tts": "scripted",
        }
        for stage in model["stages"]:
            assert stage.get("details", {}).get("loaded", "") == "", (
                "a replica imports only what its engine needs"
            )
        assert "text/html" in (await http.get("/")).headers["content-type"]


async def test_a_spoken_turn_is_answered_in_the_order_that_clients_rely_on(
    app: Application, question: Audio
) -> None:
    order = OrderChecker()
    async with caller(app.realtime) as one:
        one.say(question)
        sound = await one.until_type("response.output_audio.delta")
        await one.client.send("response.cancel")
        done = await one.until_type("response.done")
        for arrival in one.arrivals:
            order.push(arrival.event)
    assert len(sound.audio) > 0
    assert done.event["response"]["status_details"]["reason"] == "client_cancelled"
    assert float(done.event["response"]["metadata"]["latency.total_ms"]) >= 500


async def test_a_barge_in_stops_the_engines_in_their_replicas(
    app: Application, question: Audio, interruption: Audio
) -> None:
    before = {name: (await app.stats(name))["cancelled"] for name in ("LanguageModel", "TextToSpeech")}
    async with caller(app.realtime) as one:
        one.say(question)
        await one.until_type("response.output_audio.delta")
        await asyncio.sleep(1)
        after = len(one.arrivals)
        one.say(interruption)
        started = await one.until_type("input_audio_buffer.speech_started", after=after)
        done = await one.until_type("response.done", after=after)
        assert done.event["response"]["status_details"]["reason"] == "turn_detected"
        for name, count in before.items():
            counts = await app.until_idle(name)
            assert counts["cancelled"] == count + 1, name
        stale = [chunk for chunk in one.player.arrivals if chunk.is_stale]
        ahead = max(chunk.ahead_s for chunk in one.player.arrivals if chunk.at < started.at)
    assert stale == []
    assert ahead <= 0.3 + 0.08 + 0.05


async def test_a_caller_who_hangs_up_leaves_nothing_behind(app: Application, question: Audio) -> None:
    async with caller(app.realtime) as one:
        one.say(question)
        await one.until_type("response.output_audio.delta")
    for name in ("SpeechToText", "LanguageModel", "TextToSpeech"):
        await app.until_idle(name, within_s=10)
    async with httpx.AsyncClient(base_url=app.http) as http, asyncio.timeout(10):
        while (await http.get("/healthz")).json()["sessions"]:
            await asyncio.sleep(0.05)


async def test_leaving_a_stream_early_cancels_it_in_its_replica(app: Application) -> None:
    """The one rule of cancellation (`engine_clients.cancelling`): break, exception or cancelled task alike."""
    chat = RemoteChatModel(serve.get_deployment_handle("LanguageModel", APPLICATION))
    messages = [ChatMessage("user", "hello")]
    cancelled = (await app.stats("LanguageModel"))["cancelled"]

    async def first_token() -> None:
        stream = chat.generate(messages, sampling=Sampling())
        await anext(stream)
        await stream.aclose()

    async def all_tokens() -> None:
        async for _ in chat.generate(messages, sampling=Sampling()):
            pass

    await first_token()
    await app.until_idle("LanguageModel")
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(all_tokens())
        await asyncio.sleep(0.5)
        task.cancel()
    await app.until_idle("LanguageModel")
    assert (await app.stats("LanguageModel"))["cancelled"] == cancelled + 2


async def test_an_engines_error_crosses_the_handle_as_what_it_is(app: Application) -> None:
    voice = RemoteSynthesizer(serve.get_deployment_handle("TextToSpeech", APPLICATION))
    with pytest.raises(BadRequest) as caught:
        async for _ in voice.synthesize("hello", voice="nobody", speed=1.0):
            pass
    assert caught.value.stage == "tts"


async def test_a_fault_of_a_replica_costs_its_call_and_not_the_session(app: Application) -> None:
    """Over gRPC whatever a replica raises arrives as itself, here an AttributeError."""
    chat = RemoteChatModel(serve.get_deployment_handle("LanguageModel", APPLICATION))
    with pytest.raises(EngineFailed, match="the replica failed"):
        await _drained(chat.generate([ChatMessage("user", "hello")], sampling=None))  # type: ignore[arg-type]


async def test_a_killed_replica_costs_one_call_and_the_session_goes_on(
    app: Application, question: Audio
) -> None:
    chat = RemoteChatModel(serve.get_deployment_handle("LanguageModel", APPLICATION))
    stream = chat.generate([ChatMessage("user", "hello")], sampling=Sampling())
    await anext(stream)
    os.kill(int((await app.stats("LanguageModel"))["pid"]), signal.SIGKILL)
    with pytest.raises(EngineFailed, match="replica was lost"):
        await _drained(stream)
    async with caller(app.realtime) as one:
        await one.client.send("session.update", session={"type": "realtime", "output_modalities": ["text"]})
        async with asyncio.timeout(60):
            status = ""
            while status != "completed":
                after = len(one.arrivals)
                await one.client.ask("Are you there?")
                done = await one.until_type("response.done", after=after, within_s=40)
                status = done.event["response"]["status"]
                assert status in ("completed", "failed")


async def _drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def test_a_full_server_says_so_and_closes_1013(app: Application) -> None:
    async with asyncio.TaskGroup() as tasks:
        full = asyncio.Event()

        async def hold(opened: list[Any]) -> None:
            async with realtime_client(app.realtime) as client:
                await client.receive()
                opened.append(client)
                await full.wait()

        opened: list[Any] = []
        for _ in range(60):
            tasks.create_task(hold(opened))
        async with asyncio.timeout(30):
            while len(opened) < 60:
                await asyncio.sleep(0.05)
        async with realtime_client(app.realtime) as turned_away:
            error = await turned_away.receive()
            with pytest.raises(SessionEnded) as ended:
                await turned_away.receive()
        full.set()
    assert error.event["error"]["code"] == "server_full"
    assert ended.value.code == 1013
    assert "full" in ended.value.reason


async def test_the_openai_sdk_holds_a_conversation(app: Application, question: Audio) -> None:
    """Text turn, cancel, truncate, and an answer of sound; every event comes out of the SDK as its own type."""
    sdk = AsyncOpenAI(api_key="none", websocket_base_url=app.realtime.removesuffix("/realtime"))
    order, seen = OrderChecker(), []
    async with asyncio.timeout(60), sdk.realtime.connect(model="voice-serve") as connection:

        async def until(type_: str) -> Any:
            async for event in connection:
                order.push(event.to_dict())
                seen.append(event.type)
                if event.type == type_:
                    return event
            raise AssertionError(f"{type_} never came")

        await until("session.created")
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await until("session.updated")
        item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        done = await until("response.done")
        assert done.response.status == "completed"
        assert done.response.usage.total_tokens > 0
        await connection.response.create(response={"output_modalities": ["audio"]})
        delta = await until("response.output_audio.delta")
        await connection.response.cancel()
        cancelled = await until("response.done")
        assert cancelled.response.status == "cancelled"
        await connection.conversation.item.truncate(
            item_id=delta.item_id, content_index=0, audio_end_ms=10**6
        )
        truncated = await until("conversation.item.truncated")
        assert truncated.audio_end_ms < 10**6
        await connection.response.cancel()
        error = await until("error")
        assert error.error.code == "response_cancel_not_active"


async def test_the_openai_sdk_gives_the_agent_a_function(app: Application) -> None:
    """The tools reach the replica, its call comes back, and the output is part of what it is told next."""
    sdk = AsyncOpenAI(api_key="none", websocket_base_url=app.realtime.removesuffix("/realtime"))
    order = OrderChecker()
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: Any = {"type": "function", "name": "get_weather", "description": "Weather.", "parameters": schema}
    async with asyncio.timeout(90), sdk.realtime.connect(model="voice-serve") as connection:

        async def until(type_: str) -> Any:
            async for event in connection:
                order.push(event.to_dict())
                if event.type == type_:
                    return event
            raise AssertionError(f"{type_} never came")

        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"], "tools": [tool]}
        )
        assert (await until("session.updated")).session.tools[0].name == "get_weather"
        item: Any = {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Weather?"}],
        }
        await connection.conversation.item.create(item=item)
        await connection.response.create()
        arguments = await until("response.function_call_arguments.done")
        first = await until("response.done")
        said, call = first.response.output
        assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", '{"city":"Paris"}')
        assert arguments.call_id == call.call_id
        wrong: Any = {"type": "function_call_output", "call_id": "unknown", "output": "x"}
        await connection.conversation.item.create(item=wrong)
        assert (await until("error")).error.code == "call_not_found"
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny and warm."}
        await connection.conversation.item.create(item=output)
        await connection.response.create()
        second = await until("response.done")
    assert [item.type for item in second.response.output] == ["message"]
    told = second.response.usage.input_tokens - first.response.usage.input_tokens
    assert told == len(said.content[0].text.split()) + 3  # words of the output
    order.finish()


async def test_the_openai_sdk_speaks_is_answered_and_interrupts(
    app: Application, question: Audio, interruption: Audio
) -> None:
    sdk = AsyncOpenAI(api_key="none", websocket_base_url=app.realtime.removesuffix("/realtime"))
    order, events = OrderChecker(), []
    async with asyncio.timeout(60), sdk.realtime.connect(model="voice-serve") as connection:

        async def speak(audio: Audio) -> None:
            silence = np.zeros(24_000, dtype=np.float32)
            for frame in np.split(np.concatenate((audio, silence)), range(480, len(audio) + 24_000, 480)):
                await connection.input_audio_buffer.append(audio=base64.b64encode(encode_pcm(frame)).decode())
                await asyncio.sleep(0.02)

        async def until(type_: str) -> Any:
            async for event in connection:
                order.push(event.to_dict())
                events.append(event)
                if event.type == type_:
                    return event
            raise AssertionError(f"{type_} never came")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak(question))
            heard = await until("conversation.item.input_audio_transcription.completed")
            sound = await until("response.output_audio.delta")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak(interruption))
            done = await until("response.done")
            await connection.conversation.item.truncate(
                item_id=sound.item_id, content_index=0, audio_end_ms=100
            )
            truncated = await until("conversation.item.truncated")
    assert heard.transcript
    assert done.response.status == "cancelled"
    assert done.response.status_details.reason == "turn_detected"
    assert truncated.audio_end_ms == 100
