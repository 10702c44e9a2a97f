"""Text from a real client through a real uvicorn to a function, and all that must remain as it was by ASGI."""

import asyncio
import logging
import random
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvicorn.config
from sockets.serving import OURS, POLL_S, UVICORNS, WITHIN_S, Line, line, more, serving, text, until
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode

from serve_app import direct_socket
from serve_app.direct_socket import DirectWebSocket
from serve_app.session.transport import ConnectionLost

MOST_READ = 256 * 1024
"""Bytes that asyncio and uvloop read at once."""


@pytest.fixture(autouse=True)
def _no_trouble(caplog: pytest.LogCaptureFixture):
    yield
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def lost(line: Line) -> ConnectionLost:
    """It is what is received next."""
    async with asyncio.timeout(WITHIN_S):
        with pytest.raises(ConnectionLost) as caught:
            await line.transport.receive()
    return caught.value


# --- text -----------------------------------------------------------------------------------------------------------


async def test_text_is_delivered_in_order_and_needs_no_receive():
    sent = [str(number) for number in range(500)] + ["", "ü€😀", "x" * 300_000, "last"]
    async with line() as both:
        both.deliver()
        for message in sent:
            await both.client.send(message)
        await both.until_got(len(sent))
        assert both.got == sent
        assert both.protocol.queue.empty()


async def test_many_messages_of_one_read_are_all_delivered():
    async with line() as both:
        both.deliver()
        both.write(*(text(str(number)) for number in range(2000)))
        await both.until_got(2000)
        assert both.got == [str(number) for number in range(2000)]


async def test_text_that_came_before_anyone_wanted_it_is_delivered_first():
    async with line() as both:
        both.write(text("1"), text("2"))
        await until(lambda: not both.protocol.transport.is_reading())
        await both.client.send("3")
        for _ in range(10):
            await asyncio.sleep(POLL_S)
        both.deliver()
        assert both.got == ["1", "2"], "at once, and what came after them was not read"
        await both.client.send("4")
        await both.until_got(4)
        assert both.got == ["1", "2", "3", "4"]


async def test_who_pauses_while_the_early_text_is_delivered_is_not_resumed():
    async with line() as both:
        both.write(text("1"), text("2"))
        await until(lambda: not both.protocol.transport.is_reading())

        def pausing(message: str) -> None:
            both.got.append(message)
            both.transport.pause()

        both.transport.deliver_to(pausing)
        assert both.got == ["1", "2"]
        assert not both.protocol.transport.is_reading()
        await both.client.send("3")
        both.transport.resume()
        await both.until_got(3)


async def test_a_message_in_fragments_is_delivered_when_it_is_whole():
    async with line() as both:
        both.deliver()
        both.write(text("one, ", fin=False), more("two ", fin=False))
        both.write(Frame(Opcode.PING, b"between"), more(b"\xe2", fin=False))
        for _ in range(5):
            await asyncio.sleep(POLL_S)
        assert both.got == []
        both.write(more(b"\x82\xac"), text("next"))
        await both.until_got(2)
        assert both.got == ["one, two €", "next"]


async def test_a_binary_message_is_received_while_text_is_delivered():
    async with line() as both:
        both.deliver()
        await both.client.send("before")
        await both.client.send(b"\x00\x01")
        await both.client.send([b"\x02", b"\x03"])
        await both.client.send("after")
        async with asyncio.timeout(WITHIN_S):
            assert await both.transport.receive() == b"\x00\x01"
            assert await both.transport.receive() == b"\x02\x03"
        await both.until_got(2)
        assert both.got == ["before", "after"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(
    "frames", [[text(b"\xff")], [text(b"\xe2", fin=False), more(b"\x82")], [text(b"\xff"), text("after")]]
)
async def test_text_that_is_not_utf_8_closes_with_1007(
    frames: list[Frame], wanted: bool, caplog: pytest.LogCaptureFixture
):
    async with line() as both:
        if wanted:
            both.deliver()
        both.write(*frames)
        assert not (await lost(both)).is_deliberate
        await both.client.wait_closed()
        assert both.client.close_code == 1007
        if not wanted:
            both.deliver()
        assert both.got == []
    assert {record.message for record in caplog.records} >= {"Invalid UTF-8 sequence received from client."}
    caplog.clear()


@pytest.mark.parametrize(
    "frames",
    [[text("x" * 1001)], [text("x" * 600, fin=False), more("x" * 401)]],
    ids=["whole", "in fragments"],
)
async def test_a_message_over_the_servers_limit_closes_with_1009(frames: list[Frame]):
    async with line(ws_max_size=1000) as both:
        both.deliver()
        await both.client.send("x" * 1000)
        await both.until_got(1)
        both.write(*frames)
        assert not (await lost(both)).is_deliberate
        await both.client.wait_closed()
        assert both.client.close_code == 1009
        assert both.got == ["x" * 1000]


async def test_a_handshake_that_is_none_is_refused():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("is not asked")

    async with serving(app) as url:
        host = urlsplit(url).netloc
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n\r\n".encode())
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400")
        writer.close()


async def test_an_application_may_refuse_a_handshake():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async with serving(app) as url:
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None)
        assert refused.value.response.status_code == 403


# --- frames taken apart without the protocol's parser ---------------------------------------------------------------


async def test_whole_texts_do_not_pass_the_parser(monkeypatch: pytest.MonkeyPatch):
    """Who sees this fail after an update of websockets: they still come, a few microseconds later each."""
    async with line() as both:
        both.deliver()
        monkeypatch.setattr(both.protocol.conn, "receive_data", None)
        sent = ["", "ü€😀", "x" * 125, "x" * 126, "x" * 3000]
        both.write(*map(text, sent))
        await both.until_got(len(sent))
        assert both.got == sent


def some_messages(dice: random.Random) -> tuple[list[Frame], list[str]]:
    """Frames as a client may send them, and the texts in them."""
    frames, texts = [], []
    for number in range(dice.randrange(1, 12)):
        said = f"{number} {'é' * dice.choice([0, 1, 40, 100, 40_000])}"
        match dice.choice(["whole", "whole", "whole", "parts", "ping", "pong"]):
            case "whole":
                frames.append(text(said))
                texts.append(said)
            case "parts":
                cut = len(said) // 2
                frames += [text(said[:cut], fin=False), Frame(Opcode.PING, b"amid"), more(said[cut:])]
                texts.append(said)
            case "ping":
                frames.append(Frame(Opcode.PING, b"there?"))
            case "pong":
                frames.append(Frame(Opcode.PONG, b""))
    return frames, texts


async def test_however_the_network_cuts_the_frames_the_texts_are_the_same():
    async with line() as both:
        both.deliver()
        dice = random.Random(7)
        expected = []
        for _ in range(200):
            frames, texts = some_messages(dice)
            data = b"".join(frame.serialize(mask=True) for frame in frames)
            cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice([0, 1, 5])))
            for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
                both.protocol.data_received(data[start:stop])
            expected += texts
            assert both.got == expected
        await both.client.send("and by the network")
        await both.until_got(len(expected) + 1)


# --- what is sent at once -------------------------------------------------------------------------------------------


async def test_what_is_sent_at_once_arrives_in_order_a_message_each():
    async with line() as both:
        assert both.transport.is_writable
        both.transport.send_at_once(["one", "zwei €", "x" * 70_000])
        await both.transport.send("last")
        got = [await both.client.recv() for _ in range(4)]
        assert got == ["one", "zwei €", "x" * 70_000, "last"]


async def test_what_is_sent_at_once_is_one_write(monkeypatch: pytest.MonkeyPatch):
    async with line() as both:
        writes: list[bytes] = []
        monkeypatch.setattr(both.protocol, "transport", SimpleNamespace(write=writes.append))
        both.transport.send_at_once(["one", "two"])
        assert len(writes) == 1
        monkeypatch.undo()


async def test_a_client_that_does_not_read_makes_it_unwritable_until_it_reads():
    async with line() as both:
        both.client.transport.pause_reading()
        sent = 0
        while both.transport.is_writable:
            both.transport.send_at_once(["x" * 10_000])
            sent += 1
            await asyncio.sleep(0)
        both.client.transport.resume_reading()
        for _ in range(sent):
            await both.client.recv()
        await until(lambda: both.transport.is_writable)


@pytest.mark.parametrize("how", ["closed by the server", "closed by the client", "broken off"])
async def test_a_socket_that_is_over_is_not_writable(how: str):
    async with line() as both:
        match how:
            case "closed by the server":
                await both.transport.close(1000, "")
            case "closed by the client":
                await both.client.close()
            case _:
                both.client.transport.abort()
                await lost(both)
        await until(lambda: not both.transport.is_writable)


# --- flow control ---------------------------------------------------------------------------------------------------


async def test_a_client_that_floods_is_held_back_until_it_is_resumed():
    size, count = 16 * 1024, 2000
    async with line() as both:

        def take_one_read(message: str) -> None:
            take(message)
            both.transport.pause()

        def take(message: str) -> None:
            both.got.append(message.rstrip())

        async def flood() -> None:
            for number in range(count):
                await both.client.send(str(number).ljust(size))

        both.transport.deliver_to(take_one_read)
        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(flood())
            for _ in range(10):
                before = len(both.got)
                both.transport.resume()
                await both.until_got(before + 1)
                for _ in range(10):
                    await asyncio.sleep(POLL_S)
                assert (len(both.got) - before - 1) * size <= MOST_READ, (
                    "what was read with the first of them"
                )
            assert not flooding.done(), "the network holds less than this"
            both.transport.deliver_to(take)
            await both.until_got(count)
        assert both.got == [str(number) for number in range(count)]


async def test_pausing_and_resuming_a_socket_that_is_gone_does_nothing():
    async with line() as both:
        both.deliver()
        protocol = both.protocol
        both.client.transport.abort()
        await lost(both)
        for act in (protocol.pause, protocol.pause, protocol.resume, protocol.resume, protocol.resume):
            act()


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "is_deliberate"), [(1000, True), (1001, False), (3000, False)])
async def test_a_close_is_received_after_the_text_before_it(code: int, is_deliberate: bool):
    async with line() as both:
        both.deliver()
        await both.client.send("bye")
        await both.client.close(code)
        assert (await lost(both)).is_deliberate == is_deliberate
        assert both.got == ["bye"]
        assert not (await lost(both)).is_deliberate, "once is enough"


async def test_a_connection_that_breaks_off_is_lost():
    async with line() as both:
        both.deliver()
        both.client.transport.abort()
        assert not (await lost(both)).is_deliberate


async def test_a_close_behind_a_pause_is_received_when_it_is_resumed():
    async with line() as both:
        both.deliver()
        both.transport.pause()
        await both.client.send("bye")
        closing = asyncio.create_task(both.client.close(1000))
        both.transport.resume()
        assert (await lost(both)).is_deliberate
        assert both.got == ["bye"]
        await closing


async def test_text_that_comes_after_the_servers_close_is_dropped():
    async with line() as both:
        both.deliver()
        await both.client.send("before")
        await both.until_got(1)
        both.client.transport.pause_reading()  # it does not see the close yet
        both.transport.pause()
        await both.transport.close(1013, "full")
        both.write(*(text("after") for _ in range(100)))
        for _ in range(5):
            await asyncio.sleep(POLL_S)
        both.client.transport.resume_reading()
        await both.client.wait_closed()
        assert (both.client.close_code, both.client.close_reason) == (1013, "full")
        assert both.got == ["before"]
        with pytest.raises(ConnectionLost):
            await both.transport.send("too late")


# --- keep-alive -----------------------------------------------------------------------------------------------------


async def test_pings_are_answered_both_ways_while_text_is_delivered():
    async with line(ws_ping_interval=0.01, ws_ping_timeout=60.0) as both:
        both.deliver()
        await until(lambda: both.protocol.last_ping_rtt > 0)
        first = both.protocol.last_ping_rtt
        await both.client.send("here")
        await until(lambda: both.protocol.last_ping_rtt != first)
        async with asyncio.timeout(30):
            await (await both.client.ping())
        assert both.got == ["here"]


async def test_a_client_that_answers_no_ping_is_lost():
    async with line(ws_ping_interval=0.01, ws_ping_timeout=0.05) as both:
        both.deliver()
        both.client.transport.pause_reading()
        assert not (await lost(both)).is_deliberate


# --- where it is not there ------------------------------------------------------------------------------------------


async def test_with_uvicorns_own_protocol_all_is_received():
    async with line(ws=UVICORNS) as both:
        assert direct_socket.of(both.scope) is None
        both.deliver()
        both.transport.pause()
        for message in ("one", b"two", "three"):
            await both.client.send(message)
        assert [await both.transport.receive() for _ in range(3)] == ["one", b"two", "three"]
        both.transport.resume()
        await both.client.close(1000)
        assert (await lost(both)).is_deliberate
        assert both.got == []


async def test_text_that_nobody_asks_to_be_delivered_goes_by_asgi():
    """An application that knows nothing of it, on the same server."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"] + "!"})

    async with serving(app) as url, connect(url, proxy=None) as client:
        for message in ("one", "two"):
            await client.send(message)
            assert await client.recv() == message + "!"


async def test_only_on_its_own_loop_it_is_found():
    async with line() as both:
        assert isinstance(direct_socket.of(both.scope), DirectWebSocket)

        async def elsewhere() -> DirectWebSocket | None:
            return direct_socket.of(both.scope)

        assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) is None


async def test_a_scope_without_extensions_has_none():
    assert direct_socket.of({"type": "websocket"}) is None
    assert direct_socket.of({"type": "websocket", "extensions": {"voice_serve.direct": "a text"}}) is None


def test_what_is_installed_is_uvicorns_choice_unless_it_is_told_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uvicorn.config, "WS_PROTOCOLS", dict(uvicorn.config.WS_PROTOCOLS))

    def chosen(ws: str) -> object:
        config = uvicorn.Config("no:app", ws=ws)
        protocols = uvicorn.config.WS_PROTOCOLS
        return uvicorn.config.import_from_string(protocols.get(config.ws, config.ws))  # as Config.load does

    before = chosen("auto")
    direct_socket.install()
    assert before is not DirectWebSocket
    assert chosen("auto") is DirectWebSocket
    assert chosen(OURS) is DirectWebSocket
    assert chosen(UVICORNS) is WebSocketsSansIOProtocol
