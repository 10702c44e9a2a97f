"""A model hub of a few files on 127.0.0.1, as far as `huggingface_hub` asks of one."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files` by "repository/name". With `stall_after` a download stops in mid-file until `go_on` is set."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.stall_after: int | None = None
        self.is_silent = False
        self.breaks = 0
        """Downloads, from now on, that break off at `stall_after` instead of waiting there."""
        self.damage = b""
        """Sent instead of the first bytes of each download."""
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.ranges: list[str | None] = []
        """The Range header of each download, in order."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-download is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        if content := self._file():
            self._head(200, content, 0)

    def do_GET(self) -> None:
        if self.server.is_silent:
            self.server.go_on.wait(30)
        elif self.path.startswith("/api/models/"):
            self._describe()
        elif content := self._file():
            self._send(content)

    def _describe(self) -> None:
        repository = urlsplit(self.path).path.removeprefix("/api/models/").removesuffix("/revision/main")
        names = [name for name in self.server.files if name.startswith(f"{repository}/")]
        siblings = [
            {"rfilename": name.removeprefix(f"{repository}/"), "size": len(self.server.files[name])}
            for name in names
        ]
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200 if names else 404)
        if not names:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self) -> bytes | None:
        path = re.sub(f"/resolve/(main|{COMMIT})/", "/", unquote(urlsplit(self.path).path))
        content = self.server.files.get(path.removeprefix("/"))
        if content is None:
            self.send_error(404)
        return content

    def _head(self, status: int, content: bytes, start: int) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()

    def _send(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self._head(206 if asked else 200, content, start)
        content = self.server.damage + content[len(self.server.damage) :]
        stop = self.server.stall_after
        if stop is not None:
            self.wfile.write(content[start:stop])
            if self.server.breaks:
                self.server.breaks -= 1
                self.close_connection = True
                return
            self.server.stalled.set()
            self.server.go_on.wait(30)
            start = stop
        self.wfile.write(content[start:])


@contextmanager
def running_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        thread.join()
        hub.server_close()
