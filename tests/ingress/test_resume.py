"""Coming back to `/v1/realtime` with a token: who gets the session, who is refused, and what becomes of the old socket."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from ingress.asgi import Socket, connected, server_of
from ingress.test_realtime_socket import refusal
from session.virtual import the_loop, virtual_time
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from serve_app.client.resuming import ResumingClient
from serve_app.conversation.commands import HistoryRestored, ResponseDone, ResponseLost
from serve_app.handshake import NOT_RESUMED, RESUME_HEADER
from serve_app.server import VoiceServer
from serve_app.session.replay import replay_file
from serve_app.session.resumption import Claimed, StoreUnavailable
from serve_app.session.transport import SERVICE_RESTART, SUPERSEDED
from serve_app.stores.memory import MemoryStore

KEY = "sk-right"


def store_of_the_loop() -> MemoryStore:
    return MemoryStore(the_loop().time)


async def token_of(socket: Socket) -> str:
    token: str = (await socket.until("session.created"))["resume"]["token"]
    return token


@asynccontextmanager
async def resuming(
    server: VoiceServer, token: str, more: str = "", **handshake: Any
) -> AsyncIterator[Socket]:
    async with connected(server, query=f"resume={token}{more}", **handshake) as socket:
        yield socket


def ask(socket: Socket) -> None:
    content = [{"type": "input_text", "text": "Tell me."}]
    socket.send(
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}
    )
    socket.send({"type": "response.create"})


def words(socket: Socket) -> list[str]:
    [resumed] = socket.all("session.resumed")
    return [item["content"][0]["transcript"] for item in resumed["items"]]


@pytest.mark.parametrize("by", ["query", "header"])
@virtual_time
async def test_on_another_replica_it_goes_on_with_the_history_that_was_heard(by: str):
    store = store_of_the_loop()
    here, there = server_of(store=store), server_of(store=store)
    async with connected(here, query="model=gpt-realtime") as socket:
        token, session = await token_of(socket), socket.events[0]["session"]
        await socket.spoken_turn()
        items = [e["item"]["id"] for e in socket.all("conversation.item.added")]
    handshake = {"query": f"resume={token}"} if by == "query" else {"headers": {RESUME_HEADER: token}}
    async with connected(there, **handshake) as again:
        await again.until("session.resumed")
        created = again.events[0]
        assert created["session"]["id"] == session["id"]
        assert created["session"]["model"] == "gpt-realtime"
        assert created["resume"]["token"] != token
        assert [i["id"] for i in again.all("session.resumed")[0]["items"]] == items
        await again.spoken_turn()
        new = [e["item"]["id"] for e in again.all("conversation.item.added")]
        assert not set(new) & set(items)
    assert there.session_count == here.session_count == 0


@virtual_time
async def test_a_token_opens_once():
    server = server_of(store=store_of_the_loop())
    async with connected(server) as socket:
        token = await token_of(socket)
    async with resuming(server, token) as again:
        await again.until("session.resumed")
    async with resuming(server, token) as thrice:
        code, _ = await thrice.until_closed()
        assert (code, refusal(thrice)) == (NOT_RESUMED, "resume_token_invalid")
    assert server.session_count == 0


@pytest.mark.parametrize(
    "token", ["x", "abc.", "0123456789abcdef.AAAAAAAAAAAAAAAAAAAAAA", "%00.%ff", "." * 5000]
)
@virtual_time
async def test_a_bad_token_is_refused_and_no_new_session_given(token: str):
    server = server_of(store=store_of_the_loop())
    async with resuming(server, token) as socket:
        assert (await socket.until_closed())[0] == NOT_RESUMED
        assert refusal(socket) == "resume_token_invalid"
    assert server.session_count == 0


@virtual_time
async def test_an_expired_token_is_refused():
    server = server_of(store=store_of_the_loop(), resume={"within_s": 10})
    async with connected(server) as socket:
        token = await token_of(socket)
        assert socket.events[0]["resume"]["within_s"] == 10
    await asyncio.sleep(11)
    async with resuming(server, token) as late:
        assert (await late.until_closed())[0] == NOT_RESUMED


@pytest.mark.parametrize("where", ["the same replica", "another"])
@virtual_time
async def test_the_newer_socket_wins(where: str):
    store = store_of_the_loop()
    here = server_of(store=store)
    there = here if where == "the same replica" else server_of(store=store)
    async with connected(here) as old:
        token = await token_of(old)
        await old.spoken_turn()
        async with resuming(there, token) as new:
            await new.until("session.resumed")
            assert len(words(new)) == 2
            if there is not here:
                assert old.closed is None, "it learns of it when it writes"
                old.send(
                    {
                        "type": "session.update",
                        "session": {"type": "realtime", "instructions": "From the past."},
                    }
                )
            assert (await old.until_closed())[0] == SUPERSEDED
            await new.spoken_turn()
            last = await token_of(new)
        async with resuming(here, last) as final:
            await final.until("session.resumed")
            assert len(words(final)) == 4
            assert final.events[0]["session"]["instructions"] != "From the past."


@virtual_time
async def test_a_stranger_cannot_end_a_session_whose_id_it_knows():
    server = server_of(store=store_of_the_loop())
    async with connected(server) as socket:
        session_id = (await token_of(socket)).split(".")[0]
        async with resuming(server, f"{session_id}.AAAAAAAAAAAAAAAAAAAAAA") as stranger:
            assert (await stranger.until_closed())[0] == NOT_RESUMED
        await socket.spoken_turn()


@virtual_time
async def test_of_two_that_come_back_at_once_one_gets_it():
    store = store_of_the_loop()
    servers = [server_of(store=store), server_of(store=store)]
    async with connected(servers[0]) as socket:
        token = await token_of(socket)
    async with resuming(servers[0], token) as one, resuming(servers[1], token) as two:
        await asyncio.sleep(1)
        assert sorted(bool(s.closed) for s in (one, two)) == [False, True]


@virtual_time
async def test_a_resume_shows_its_key_and_takes_a_place_like_any_other():
    store = store_of_the_loop()
    shown = {"headers": {"Authorization": f"Bearer {KEY}"}}
    server = server_of(store=store, api_keys=[KEY], limits={"max_sessions_per_replica": 1})
    other = server_of(store=store, api_keys=[KEY], limits={"max_sessions_per_replica": 1})
    async with connected(server, **shown) as socket:
        token = await token_of(socket)
        async with resuming(server, token) as keyless:
            await keyless.until_closed()
            assert refusal(keyless) == "invalid_api_key"
        async with connected(other, **shown) as guest:
            await guest.until("session.created")
            async with resuming(other, token, **shown) as full:
                assert (await full.until_closed())[0] == 1013
                assert refusal(full) == "server_full"
        async with resuming(server, token, **shown) as again:  # its own old place
            await again.until("session.resumed")
            assert server.session_count == 1


@virtual_time
async def test_the_position_of_the_playback_comes_with_the_token():
    server = server_of(store=store_of_the_loop())
    async with connected(server) as socket:
        token = await token_of(socket)
        ask(socket)
        delta = await socket.until("response.output_audio.delta", count=12)
        item_id = delta["item_id"]
    async with resuming(server, token, f"&item_id={item_id}&audio_end_ms=410") as again:
        done = await again.until("response.done")
        assert done["response"]["status"] == "incomplete"
        assert done["response"]["metadata"]["heard.audio_ms"] == "410"


@virtual_time
async def test_a_session_that_only_transcribes_goes_on_as_one():
    store = store_of_the_loop()
    async with connected(server_of(store=store), query="intent=transcription") as socket:
        token = await token_of(socket)
        assert socket.events[0]["session"]["type"] == "transcription"
    async with resuming(server_of(store=store), token) as again:
        await again.until("session.resumed")
        assert again.events[0]["session"]["type"] == "transcription"


@pytest.mark.parametrize("position", ["-1", "1e3", "x", "", "9" * 5000, "²"])
@virtual_time
async def test_a_position_that_is_none_is_as_good_as_absent(position: str):
    server = server_of(store=store_of_the_loop())
    async with connected(server) as socket:
        token = await token_of(socket)
    async with resuming(server, token, f"&audio_end_ms={position}") as again:
        await again.until("session.resumed")


# --- stores ---------------------------------------------------------------------------------------------------------


class Broken(MemoryStore):
    is_broken = True

    async def save(self, *record: Any) -> None:
        if self.is_broken:
            raise StoreUnavailable("the store is down")
        await super().save(*record)

    async def claim(self, *record: Any) -> Any:
        if self.is_broken:
            raise StoreUnavailable("the store is down")
        return await super().claim(*record)


@virtual_time
async def test_a_store_that_is_down_is_shown_and_keeps_nobody_from_talking():
    store = Broken(the_loop().time)
    server = server_of(store=store)
    async with connected(server) as socket:
        assert "resume" not in await socket.until("session.created")
        assert (await socket.spoken_turn())["status"] == "completed"
        [model] = (await server.models())["data"]  # type: ignore[misc]
        assert model["resume"] == {"store": "actor", "problem": "the store is down"}
    async with resuming(server, "0123456789abcdef.AAAAAAAAAAAAAAAAAAAAAA") as again:
        assert (await again.until_closed())[0] == 1013
        assert refusal(again) == "resume_unavailable"
    store.is_broken = False
    await asyncio.sleep(6)
    async with connected(server) as socket:
        await token_of(socket)
    assert (await server.models())["data"][0]["resume"]["problem"] == ""  # type: ignore[index]


@virtual_time
async def test_a_snapshot_of_another_version_is_refused_with_words():
    store = store_of_the_loop()
    server = server_of(store=store)
    async with connected(server) as socket:
        token = await token_of(socket)
    session_id = token.split(".")[0]
    store.table._records[session_id].snapshot = '{"conversation":{"schema":99}}'
    async with resuming(server, token) as again:
        assert (await again.until_closed())[0] == NOT_RESUMED
        assert refusal(again) == "resume_not_possible"


@virtual_time
async def test_no_token_is_ever_logged(caplog: Any):
    server = server_of(store=store_of_the_loop())
    with caplog.at_level(logging.DEBUG):
        async with connected(server) as socket:
            token = await token_of(socket)
            await socket.spoken_turn()
        async with resuming(server, token) as again:
            new = await token_of(again)
            await again.until("session.resumed")
        async with resuming(server, token) as refused:
            await refused.until_closed()
    written = " ".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
    assert "session resumed" in written
    for each in (token, new):
        assert each.split(".")[1] not in written


@virtual_time
async def test_each_socket_has_a_session_log_of_its_own_that_replays(tmp_path: Path):
    server = server_of(store=store_of_the_loop(), session_log=str(tmp_path))
    async with connected(server) as socket:
        token = await token_of(socket)
        ask(socket)
        await socket.until("response.output_audio.delta", count=5)
    async with resuming(server, token, "&audio_end_ms=410") as again:
        await again.spoken_turn()
        session_id = token.split(".")[0]
    first, second = (replay_file(tmp_path / f"{session_id}{n}.jsonl") for n in ("", ".2"))
    assert first
    notices = [command for _, commands in second for command in commands]
    assert isinstance(notices[0], HistoryRestored)
    [lost] = [n for n in notices if isinstance(n, ResponseLost)]
    assert lost.heard is not None
    assert lost.heard.audio_ms == 410
    done = [n.response_id for n in notices if isinstance(n, ResponseDone)]
    assert done == [
        e["response"]["id"] for e in again.all("response.done") if e["response"]["status"] == "completed"
    ]


# --- a replica that is to go ----------------------------------------------------------------------------------------


@virtual_time
async def test_a_replica_that_is_to_go_takes_nobody_and_lets_its_sessions_move():
    store = store_of_the_loop()
    going, other = server_of(store=store), server_of(store=store)
    async with connected(going, query="own_events=1") as idle, connected(going) as busy:
        token = await token_of(idle)
        await token_of(busy)
        ask(busy)
        await busy.until("response.output_audio.delta")
        going.drain()
        assert (await idle.until_closed())[0] == SERVICE_RESTART
        assert idle.all("session.draining")
        async with connected(going) as late:
            assert (await late.until_closed())[0] == SERVICE_RESTART
            assert refusal(late) == "server_draining"
        async with resuming(going, token) as wrong:
            assert (await wrong.until_closed())[0] == SERVICE_RESTART
        async with resuming(other, token) as moved:
            await moved.until("session.resumed")
        assert busy.closed is None
        done = await busy.until("response.done")
        assert done["response"]["status"] == "completed"
        assert (await busy.until_closed())[0] == SERVICE_RESTART
        assert not busy.all("session.draining")
    assert going.session_count == 0


class SlowClaims(MemoryStore):
    """Each claim takes a while, so that something can come between it and the session."""

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        claimed = await super().claim(session_id, token_hash, new_hash, expires_s)
        await asyncio.sleep(0.5)
        return claimed


@virtual_time
async def test_who_is_on_the_way_in_when_the_replica_is_told_to_go_moves_on_with_the_next_token():
    store = SlowClaims(the_loop().time)
    going, other = server_of(store=store), server_of(store=store)
    async with connected(going) as socket:
        token = await token_of(socket)
    async with resuming(going, token) as again:
        await asyncio.sleep(0.1)
        going.drain()
        next_token = await token_of(again)
        assert (await again.until_closed())[0] == SERVICE_RESTART
    async with resuming(other, next_token) as moved:
        await moved.until("session.resumed")
    assert going.session_count == 0


# --- what the client sent as its session was lost -------------------------------------------------------------------


class Line:
    """An application in memory as the client library's connection."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.is_dead = False
        """The server does not know it yet."""
        self._taken = 0

    async def send(self, text: str) -> None:
        self._check()
        self.socket.send(text)

    async def recv(self) -> str:
        while self.is_dead or len(self.socket.events) == self._taken:
            self._check()
            await asyncio.sleep(0.001)
        self._taken += 1
        return json.dumps(self.socket.events[self._taken - 1])

    async def close(self) -> None:
        self.socket.hang_up()

    def _check(self) -> None:
        if self.is_dead:
            raise ConnectionClosedError(None, None)
        if self.socket.closed is not None:
            raise ConnectionClosedError(Close(*self.socket.closed), None)


class Way:
    """An endpoint that leads to the last of its servers."""

    def __init__(self, server: VoiceServer, lines: AsyncExitStack) -> None:
        self._lines = lines
        self.to = [server]

    async def connect(self, headers: dict[str, str] | None = None, **query: str) -> Any:
        handshake: dict[str, Any] = {"query": urlencode(query | {"own_events": "1"}), "headers": headers}
        return Line(await self._lines.enter_async_context(connected(self.to[-1], **handshake)))


@asynccontextmanager
async def client_of(server: VoiceServer) -> AsyncIterator[tuple[ResumingClient, Way, list[Any]]]:
    """A client of the library in a session, the way that it takes, and all events that come to it."""
    async with AsyncExitStack() as lines, asyncio.TaskGroup() as tasks:
        way = Way(server, lines)
        events: list[Any] = []
        endpoint: Any = way
        client = ResumingClient(endpoint, await way.connect(), stop=lambda: None, on_news=lambda _: None)

        async def listen() -> None:
            async for arrival in client:
                events.append(arrival.event)  # noqa: PERF401  # it never ends

        listening = tasks.create_task(listen())
        while not events:
            await asyncio.sleep(0.01)
        yield client, way, events
        listening.cancel()


def questions(events: list[Any]) -> list[str]:
    added = [e["item"] for e in events if e["type"] == "conversation.item.added"]
    return [item["content"][0]["text"] for item in added if item["role"] == "user"]


def answers(events: list[Any]) -> list[str]:
    return [e["response"]["status"] for e in events if e["type"] == "response.done"]


@pytest.mark.parametrize("turns", range(24))
@virtual_time
async def test_what_is_asked_while_the_session_moves_is_answered_once(turns: int):
    """So many turns of the loop after the replica was told to go: before, between and after all steps of the move."""
    store = store_of_the_loop()
    going, other = server_of(store=store), server_of(store=store)
    async with client_of(going) as (client, way, events):
        await client.ask("First.")
        await asyncio.sleep(20)
        way.to.append(other)
        going.drain()
        for _ in range(turns):
            await asyncio.sleep(0)
        await client.ask("Second.")
        await asyncio.sleep(20)
        assert client.resumed == 1
        assert answers(events) == ["completed", "completed"]
        [resumed] = [e for e in events if e["type"] == "session.resumed"]
        kept = [item["content"][0].get("text") for item in resumed["items"] if item["role"] == "user"]
        after = events[events.index(resumed) :]
        assert kept + questions(after) == ["First.", "Second."]


@pytest.mark.parametrize("pause_s", [0, 0.05, 0.2, 0.4, 1.0])
@virtual_time
async def test_what_a_dying_server_took_in_and_did_not_save_is_asked_again(pause_s: float):
    """Its last snapshot is older than the question, or holds it and the beginning of the answer."""

    class Forgetful(MemoryStore):
        is_cut = False

        async def save(self, session_id: str, generation: int, *record: Any) -> None:
            if generation > 1 or not self.is_cut:
                await super().save(session_id, generation, *record)

    store = Forgetful(the_loop().time)
    dying, other = server_of(store=store), server_of(store=store)
    async with client_of(dying) as (client, way, events):
        await client.ask("First.")
        await asyncio.sleep(20)
        await client.ask("Second.")
        await asyncio.sleep(pause_s)
        store.is_cut = True
        way.to.append(other)
        line: Any = client.connection
        line.is_dead = True
        await asyncio.sleep(20)
        assert client.resumed == 1
        history = [e for e in events if e["type"] == "session.resumed"][-1]["items"]
        after = events[[e["type"] for e in events].index("session.resumed") :]
        asked = [i["content"][0]["text"] for i in history if i["role"] == "user"] + questions(after)
        assert asked == ["First.", "Second."]
        assert answers(events)[:1] == ["completed"]
        again = answers(events)[1:]  # an answer of which nothing had been heard is cut, and given anew
        assert again in (["completed"], ["incomplete"], ["incomplete", "completed"])
