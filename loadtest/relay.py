"""A TCP relay that callers connect through, so that their network can be cut and slowed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

BLOCK = 8192
PAUSE_S = 0.02


class Relay:
    """Every connection to `port` is carried on to the server at `host` and `to_port`."""

    def __init__(self, host: str, to_port: int) -> None:
        self.port = 0
        self.accepted = 0
        """Connections so far."""
        self.bytes_per_s: float | None = None
        """Of each connection, each way; None: as fast as it goes."""
        self._to = host, to_port
        self._open: dict[int, tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        self._open[id(writer)] = writer, far_writer
        self.accepted += 1
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(reader, far_writer))
                ways.create_task(self._carry(far_reader, writer))
        except asyncio.CancelledError:
            return  # the relay stops; asyncio's server would log a cancelled handler as an error
        finally:
            self._open.pop(id(writer), None)
            self._tasks.discard(task)
            for end in (writer, far_writer):
                end.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(self._block()):
                writer.write(data)
                await writer.drain()
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def _block(self) -> int:
        return BLOCK if self.bytes_per_s is None else max(1, int(self.bytes_per_s * PAUSE_S))

    @property
    def open_now(self) -> int:
        return len(self._open)

    def cut(self, share: float = 1.0) -> int:
        """End so many of the connections without a word; returns how many."""
        cut = list(self._open.values())[: round(len(self._open) * share)]
        for near, far in cut:
            near.transport.abort()
            far.transport.abort()
        return len(cut)

    async def stop(self) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0)  # what was aborted is closed in the loop's next round


@asynccontextmanager
async def relay_to(host: str, port: int) -> AsyncIterator[Relay]:
    relay = Relay(host, port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()
