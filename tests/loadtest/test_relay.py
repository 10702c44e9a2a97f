"""The network that can be cut and slowed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from loadtest.relay import Relay, relay_to


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def echo_behind_relay() -> AsyncIterator[Relay]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, relay_to("127.0.0.1", server.sockets[0].getsockname()[1]) as relay:
        yield relay


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_what_is_sent_comes_through_both_ways():
    async with echo_behind_relay() as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        writer.write_eof()
        assert await reader.read() == b"", "and the end of it"
        await close(writer)


async def test_a_cut_ends_the_share_of_connections_that_was_asked_for():
    async with echo_behind_relay() as relay:
        lines = [await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(4)]
        for reader, writer in lines:
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
        assert (relay.accepted, relay.open_now) == (4, 4)
        assert relay.cut(0.5) == 2
        ended = 0
        for reader, writer in lines:
            try:
                writer.write(b"b")
                ended += await reader.read(1) == b""
            except ConnectionError:
                ended += 1
            await close(writer)
        assert ended == 2
        assert relay.accepted == 4, "so many there were, and were not more"


async def test_a_slow_network_takes_its_time():
    async with echo_behind_relay() as relay:
        relay.bytes_per_s = 20_000
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        began = time.monotonic()
        writer.write(b"x" * 6000)
        await reader.readexactly(6000)
        assert time.monotonic() - began >= 0.25
        await close(writer)


async def test_a_server_that_is_gone_ends_the_connection():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with relay_to("127.0.0.1", port) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await close(writer)
