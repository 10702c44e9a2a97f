"""The lean line against a server: how it opens, and how it ends."""

import asyncio

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from loadtest.application import free_port
from loadtest.line import Ended, Line, NotOpened, open_line, sound_in, text_message
from serve_app.realtime.codec import encode_audio_delta


async def test_messages_go_both_ways_and_the_caller_hangs_up():
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    came: asyncio.Queue[bytes] = asyncio.Queue()
    async with serve(echo, "127.0.0.1", 0) as server:
        line = await open_line(url_of(server), lambda at, text: came.put_nowait(text))
        for text in ("one", "x" * 70_000):
            line.send(text_message(text))
            assert await came.get() == text.encode()
        line.tell("response.cancel", response_id="resp_1")
        assert await came.get() == b'{"type": "response.cancel", "response_id": "resp_1"}'
        await line.close()
        assert line.ended.result() == Ended(1000)
        line.send(text_message("nobody hears this"))


def url_of(server) -> str:
    return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/realtime"


async def test_a_refused_handshake_is_no_line():
    def busy(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(503, "busy")

    async with serve(echo_nothing, "127.0.0.1", 0, process_request=busy) as server:
        with pytest.raises(NotOpened, match="HTTP 503"):
            await open_line(url_of(server), print)
    with pytest.raises(NotOpened):
        await open_line(f"ws://127.0.0.1:{free_port()}/", print)


async def echo_nothing(socket: ServerConnection) -> None:
    await socket.wait_closed()


async def test_a_connection_that_is_cut_ends_the_line_with_1006():
    async def cut(socket: ServerConnection) -> None:
        socket.transport.abort()

    async with serve(cut, "127.0.0.1", 0) as server:
        line = await open_line(url_of(server), print)
        assert await line.ended == Ended(1006)
        await line.close()


class Cable(asyncio.Transport):
    """To a server that is a protocol without a socket."""

    def __init__(self, server: ServerProtocol) -> None:
        super().__init__()
        self.server = server
        self.is_closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.server.receive_data(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.is_closed = True


async def test_a_line_has_ended_with_the_close_frame_whatever_becomes_of_the_connection():
    server = ServerProtocol()
    cable, line = Cable(server), Line("ws://nowhere/", print)
    line.connection_made(cable)
    [request] = server.events_received()
    server.send_response(server.accept(request))
    line.data_received(b"".join(server.data_to_send()))
    await line.until_open()
    assert not line.ended.done()
    server.send_close(1013, "full")
    line.data_received(b"".join(server.data_to_send()))
    assert line.ended.result() == Ended(1013, "full")
    assert server.close_rcvd is not None, "it was answered"
    assert not cable.is_closed, "that is the server's part (RFC 6455 7.1.1)"
    await line.close()
    assert cable.is_closed


def test_sound_is_told_from_other_events():
    delta = encode_audio_delta("event_1", "resp_1", "item_1", bytes(4800))
    assert sound_in(delta.encode()) == ("item_1", pytest.approx(0.1))
    assert sound_in(b'{"type":"response.done","item_id":"item_1"}') is None
