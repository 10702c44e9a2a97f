"""The whole server behind a real uvicorn, by both ways of text: what a caller sees is the same."""

import asyncio
import base64
import json
import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest
from ingress.asgi import Json, server_of
from session.calls import append, scripted, tone
from sockets.serving import OURS, UVICORNS, serving, text, until
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from deployments.options import ScriptedLlm, ScriptedTts
from serve_app import direct_socket
from serve_app.direct_socket import DirectWebSocket
from serve_app.server import VoiceServer
from serve_app.session.alarm import Alarm
from serve_app.web import routes

WAYS = {"direct": OURS, "asgi": UVICORNS}
KEY = "sk-right"
REQUEST = text(json.dumps({"type": "response.create"})).serialize(mask=True)


@pytest.fixture(params=[*WAYS])
def way(request: pytest.FixtureRequest) -> str:
    return WAYS[request.param]


@pytest.fixture(autouse=True)
def _no_trouble(caplog: pytest.LogCaptureFixture):
    yield
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def quick_server(**options: Any) -> VoiceServer:
    llm = ScriptedLlm(first_token_s=0.02, tokens_per_s=200.0, answer_words=5)
    return server_of(engines=scripted(llm=llm, tts=ScriptedTts(first_audio_s=0.02, word_s=0.1)), **options)


def connected(url: str, **options: Any) -> Any:
    return connect(f"{url}/v1/realtime", proxy=None, max_size=None, max_queue=None, **options)


async def events_until(client: ClientConnection, kind: str) -> list[Json]:
    events: list[Json] = []
    async with asyncio.timeout(30):
        while not events or events[-1]["type"] != kind:
            events.append(json.loads(await client.recv()))
    return events


async def events_until_closed(client: ClientConnection) -> list[Json]:
    events: list[Json] = []
    async with asyncio.timeout(30):
        try:
            while True:
                events.append(json.loads(await client.recv()))
        except ConnectionClosed:
            return events


def question() -> np.ndarray:
    pause = np.zeros(24_000, dtype=np.float32)
    return np.concatenate([pause[:2400], tone(0, 12_000, 24_000), pause])


# --- a turn ---------------------------------------------------------------------------------------------------------


async def turn(ws: str) -> tuple[list[Json], bool]:
    """The events of a spoken turn, and whether text was delivered."""
    server, scopes = quick_server(), []

    def noting(app: ASGIApp) -> ASGIApp:
        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            scopes.append(direct_socket.of(scope))
            await app(scope, receive, send)

        return noted

    async with serving(noting(routes(server)), ws=ws) as url:
        async with connected(url) as client:
            events = await events_until(client, "session.created")
            sound = question()
            for start in range(0, len(sound), 480):
                await client.send(json.dumps(append(sound[start : start + 480])))
            events += await events_until(client, "response.done")
        await until(lambda: server.session_count == 0)
    [protocol] = scopes
    return events, protocol is not None


def told(events: list[Json]) -> dict[str, Any]:
    """What a caller is told, less ids and what depends on the clock: in how many pieces it comes."""
    kinds = Counter(event["type"] for event in events)
    joined = {
        kind: "".join(event["delta"] for event in events if event["type"] == kind)
        for kind in kinds
        if kind.endswith(".delta") and kind != "response.output_audio.delta"
    }
    sound = b"".join(
        base64.b64decode(event["delta"]) for event in events if event["type"] == "response.output_audio.delta"
    )
    whole = {kind: count for kind, count in kinds.items() if not kind.endswith(".delta")}
    [done] = [event["response"] for event in events if event["type"] == "response.done"]
    return {
        "events": whole,
        "deltas": joined,
        "sound": sound,
        "status": done["status"],
        "heard": [
            event["transcript"] for event in events if event["type"].endswith("transcription.completed")
        ],
        "speech": [
            event[key]
            for event in events
            for key in ("audio_start_ms", "audio_end_ms")
            if event["type"].startswith("input_audio_buffer.speech_") and key in event
        ],
    }


async def test_a_spoken_turn_is_the_same_by_both_ways():
    direct, is_direct = await turn(OURS)
    by_asgi, is_direct_by_asgi = await turn(UVICORNS)
    assert (is_direct, is_direct_by_asgi) == (True, False)
    assert told(direct) == told(by_asgi)
    assert told(direct)["status"] == "completed"
    assert len(told(direct)["sound"]) > 0


async def test_the_timer_of_a_session_does_not_spin(monkeypatch: pytest.MonkeyPatch):
    """uvloop's clock has whole milliseconds: what is due in less goes off at once, and thousands of times a second."""
    ticks = []
    tick = Alarm._tick
    monkeypatch.setattr(Alarm, "_tick", lambda alarm: ticks.append(tick(alarm)))
    events, _ = await turn(OURS)
    assert 0 < len(ticks) <= 3 * len(events)


# --- who is refused -------------------------------------------------------------------------------------------------


async def test_a_full_server_turns_away_before_the_application_is_asked(
    way: str, monkeypatch: pytest.MonkeyPatch
):
    server, paths = quick_server(limits={"max_sessions_per_replica": 1}, api_keys=[KEY]), []
    monkeypatch.setattr(DirectWebSocket, "doorkeeper", server.refusing)
    app = routes(server)

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await app(scope, receive, send)

    async def refused(**options: Any) -> tuple[str, str | None, int | None]:
        async with connected(url, **options) as client:
            [event] = await events_until_closed(client)
            return event["error"]["code"], client.subprotocol, client.close_code

    key = {"additional_headers": {"Authorization": f"Bearer {KEY}"}}
    async with serving(noting, ws=way) as url:
        async with connected(url, **key) as first:
            await events_until(first, "session.created")
            assert await refused(**key, subprotocols=["realtime", "other"]) == (
                "server_full",
                "realtime",
                1013,
            )
            assert await refused() == ("invalid_api_key", None, 1008)
        await until(lambda: server.session_count == 0)
        async with connected(url, **key) as second:
            await events_until(second, "session.created")
    assert len(paths) == (2 if way == OURS else 4)


async def test_other_paths_are_not_the_doorkeepers():
    server = quick_server(limits={"max_sessions_per_replica": 1}, api_keys=[KEY])
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b""}
    assert server.refusing(scope) is not None
    assert server.refusing(scope | {"path": "/elsewhere"}) is None


@pytest.mark.parametrize("speaks_at_once", [False, True])
async def test_a_caller_with_a_wrong_key_is_told_so(way: str, speaks_at_once: bool):
    server = quick_server(api_keys=[KEY])
    async with serving(routes(server), ws=way) as url:
        client = await connected(url, additional_headers={"Authorization": "Bearer wrong"})
        if speaks_at_once:
            client.transport.write(REQUEST)
        [error] = await events_until_closed(client)
        assert error["error"]["code"] == "invalid_api_key"
        assert client.close_code == 1008
        async with connected(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as welcome:
            await events_until(welcome, "session.created")


async def test_a_caller_of_a_full_server_is_told_so_even_in_the_midst_of_a_flood(way: str):
    server = quick_server(limits={"max_sessions_per_replica": 1})
    async with serving(routes(server), ws=way) as url, connected(url) as first:
        await events_until(first, "session.created")
        client = await connected(url)
        client.transport.write(REQUEST * 10_000)
        [error] = await events_until_closed(client)
        assert error["error"]["code"] == "server_full"
        assert client.close_code == 1013
        assert server.session_count == 1
        await first.send(json.dumps({"type": "response.create", "response": {"instructions": "Greet."}}))
        assert (await events_until(first, "response.done"))[-1]["response"]["status"] == "completed"


# --- how it ends ----------------------------------------------------------------------------------------------------


async def test_text_behind_what_ended_the_session_does_no_harm(way: str):
    server = quick_server()
    async with serving(routes(server), ws=way) as url:
        client = await connected(url)
        await events_until(client, "session.created")
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
        frames = [text(json.dumps({"type": "conversation.item.create", "item": item}))] * 200
        binary = Frame(Opcode.BINARY, b"\x00")
        client.transport.write(b"".join(frame.serialize(mask=True) for frame in [*frames, binary, *frames]))
        await events_until_closed(client)
        assert client.close_code == 1003
        await until(lambda: server.session_count == 0)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_caller_who_leaves_in_the_midst_of_a_flood_leaves_nothing(way: str, how: str):
    server = quick_server()
    async with serving(routes(server), ws=way) as url:
        client = await connected(url)
        await events_until(client, "session.created")
        for _ in range(300):
            await client.send(json.dumps({"type": "response.create"}))
        if how == "abort":
            client.transport.abort()
        else:
            await client.close()
        await until(lambda: server.session_count == 0)


async def test_a_caller_who_speaks_before_the_session_began_is_heard_in_order(way: str):
    """The store is asked first; the client does not wait for it."""
    server = quick_server()
    server_voices = server.voices
    may_go_on = asyncio.Event()

    async def slow_voices() -> frozenset[str] | None:
        await may_go_on.wait()
        return await server_voices()

    server.voices = slow_voices  # type: ignore[method-assign]
    async with serving(routes(server), ws=way) as url, connected(url) as client:
        names = [f"item-{number}" for number in range(100)]
        for name in names:
            content = [{"type": "input_text", "text": "x"}]
            item = {"type": "message", "role": "user", "id": name, "content": content}
            await client.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await until(lambda: server.session_count == 1)
        may_go_on.set()
        events = await events_until(client, "session.created")
        while len(events) < 1 + 2 * len(names):
            events.append(json.loads(await client.recv()))
        added = [event["item"]["id"] for event in events if event["type"] == "conversation.item.added"]
        assert added == names
