"""A Redis server of one's own on a socket file, that can be killed and started again; it keeps nothing on disk."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

START_S = 20.0


class NoRedis(Exception):
    """There is none on this machine, or it did not start; the message says what to install."""


class RedisServer:
    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._socket = folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Returns once it listens, empty. Raises NoRedis."""
        command = [
            self._program,
            "--port",
            "0",
            "--unixsocket",
            str(self._socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        process = subprocess.Popen(command, cwd=self._socket.parent, stdout=subprocess.DEVNULL)
        self._process, deadline = process, time.monotonic() + START_S
        while not self._socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoRedis(f"redis-server has not opened its socket within {START_S:g} s")
            time.sleep(0.02)

    def keys(self) -> int:
        """How many records it holds."""
        from redis import Redis

        with Redis.from_url(self.url) as client:
            held: int = client.dbsize()
        return held

    def kill(self) -> None:
        """SIGKILL; all records are gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket.unlink(missing_ok=True)


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Raises NoRedis."""
    if find_spec("redis") is None:
        raise NoRedis("redis-py is not installed (extra: redis)")
    program = shutil.which("redis-server")
    if program is None:
        raise NoRedis("redis-server is not installed (Debian: redis-server)")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(program, Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()
