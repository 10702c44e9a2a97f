"""The web application of one `VoiceServer`: its socket, the REST endpoints, the page, and what a prober asks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .config import Config
from .observability import process_figures
from .opening import session_options
from .rest.errors import of_http
from .rest.routes import Options as RestOptions
from .rest.routes import router as rest_router
from .server import REALTIME, VoiceServer

STATIC = Path(__file__).parent / "static"
CSP = "default-src 'self'; connect-src 'self' ws: wss:; style-src 'self'; img-src 'self' data:; worker-src 'self' blob:"


def routes(server: VoiceServer, *, while_running: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """`while_running` is awaited beside the requests, from the start of the application to its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(_completed(while_running), name="beside-the-requests")
            yield
            beside.cancel()

    app = FastAPI(title="voice-serve", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        """This replica lives; what it holds tells a leak from a load."""
        return {"ok": True, "sessions": server.session_count, **process_figures()}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Every stage can serve; 503 names those that cannot."""
        return await server.ready()

    app.include_router(rest_router(server.rest, rest_options(server.config)))

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return of_http(error, request.url.path).response()

    @app.websocket(REALTIME)
    async def realtime(socket: WebSocket) -> None:
        await server.realtime(socket)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(SecureHeaders)
    return app


async def _completed(work: Callable[[], Awaitable[None]] | None) -> None:
    if work is not None:
        await work()


class SecureHeaders:
    """The page may load nothing from elsewhere, and nothing is taken for what it is not.

    Not Starlette's BaseHTTPMiddleware: it ends a stream that broke off as if it were whole.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CSP
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-cache")  # after an upgrade no old module stays
            await send(message)

        await self._app(scope, receive, send_with_headers)


def rest_options(config: Config) -> RestOptions:
    options = session_options(config)
    return RestOptions(
        time_limits=options.time_limits,
        sampling=options.sampling,
        context_tokens=config.llm.context_tokens,
        mixes_voices=config.tts.mixes_voices,
        voice=config.tts.voice,
        speed=config.tts.speed,
        speech_threshold=config.turn_taking.threshold,
    )
