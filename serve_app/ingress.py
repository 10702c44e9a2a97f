"""The front door: routes, admission, authentication, health; one `Session` a socket.

`VoiceServer` is the whole of it, free of Ray, so that tests run it in memory over any engines. `Ingress` at the end
puts it behind Ray Serve with the clients of the engine deployments.

A caller who cannot be served is accepted first and then closed with a code and a sentence: browsers show neither a
refused handshake's status nor its text.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.interfaces import EngineError, EngineInfo, Sampling, SpeechDetector, TurnJudge

from .config import Access, Config
from .conversation.commands import Refused
from .conversation.events import Settings
from .conversation.parameters import Parameters
from .conversation.plain import NotReadable
from .draining import until_draining
from .handshake import NOT_RESUMED, CallerRefused, resume_options, resume_token, returned
from .observability import Metrics, SessionLog, TurnObserver, process_figures, unix_time
from .realtime import codec
from .realtime.mapper import Mapper
from .realtime.session_config import SessionConfig, SessionKind, listening_only
from .rest.errors import ApiError, of_http
from .rest.routes import Options as RestOptions
from .rest.routes import Server as RestServer
from .rest.routes import router as rest_router
from .session.engine_clients import (
    RemoteChatModel,
    RemoteSynthesizer,
    RemoteTranscriber,
    cancelling,
    for_session,
)
from .session.resumption import (
    GuardedStore,
    Lease,
    NotResumable,
    SessionStore,
    StoreUnavailable,
    Token,
    claim,
)
from .session.session import SERVICE_RESTART, Session, SessionOptions
from .session.stages import Engines, TimeLimits
from .session.transport import ConnectionLost

log = logging.getLogger("voice_serve.ingress")

STATIC = Path(__file__).parent / "static"
MODEL_NAME = "voice-serve"
KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""How a browser, which cannot set headers on a WebSocket, shows its key to an OpenAI Realtime server."""
HANDOVER_S = 3.0
"""A session that is resumed while its old socket hangs here has so long to end."""
CLOSE_S = 1.0
CSP = "default-src 'self'; connect-src 'self' ws: wss:; style-src 'self'; img-src 'self' data:; worker-src 'self' blob:"

StageStatus = EngineInfo | str
"""What serves a stage, or why it cannot serve now."""


class SocketTransport:
    """An accepted Starlette WebSocket as a session's transport."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> str | bytes:
        try:
            message = await self._socket.receive()
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: receive after a disconnect
            raise ConnectionLost from error
        if message["type"] == "websocket.disconnect":
            raise ConnectionLost(is_deliberate=message.get("code") == 1000)
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def send(self, text: str) -> None:
        try:
            await self._socket.send({"type": "websocket.send", "text": text})
        except (WebSocketDisconnect, RuntimeError, OSError) as error:  # RuntimeError: send after close
            raise ConnectionLost from error

    async def close(self, code: int, reason: str) -> None:
        short = reason.encode()[:123].decode(errors="ignore")
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code, short)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            log.debug("peer was gone before the close")


class VoiceServer:
    """All that one ingress process serves."""

    def __init__(
        self,
        config: Config,
        engines: Engines,
        *,
        api_keys: frozenset[str] = frozenset(),
        health: Callable[[], Awaitable[Mapping[str, StageStatus]]],
        voices: Callable[[], Awaitable[Sequence[str]]],
        metrics: Metrics | None = None,
        store: SessionStore | None = None,
    ) -> None:
        self._config = config
        self._engines = engines
        self._api_keys = api_keys
        self._health = health
        self._list_voices = voices
        self._session_log = SessionLog(Path(config.session_log)) if config.session_log else None
        self._observer = TurnObserver(metrics, self._session_log)
        self._metrics = metrics
        self._options = session_options(config, judges_turns=engines.turn_judge is not None)
        self._resume_options = resume_options(config)
        self.store = GuardedStore(store, self._resume_options)
        self._callers = 0
        """Sessions, those that are being opened included."""
        self._sessions: dict[str, _Held] = {}
        self.is_draining = False
        self._voices: frozenset[str] | None = None

    @property
    def session_count(self) -> int:
        return self._callers

    # --- the socket -------------------------------------------------------------------------------------------------

    async def realtime(self, socket: WebSocket) -> None:
        """`/v1/realtime`: from the handshake to the close."""
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        transport = SocketTransport(socket)
        try:
            token = resume_token(socket)
            self._check(socket, token)
            with self._counted():
                lease = await self._lease(token)
                await self._hold(socket, transport, lease)
        except CallerRefused as refused:
            await self._refuse(transport, refused)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._callers += 1
        try:
            yield
        finally:
            self._callers -= 1

    async def _hold(self, socket: WebSocket, transport: SocketTransport, lease: Lease) -> None:
        """One session, from its first event to its last."""
        session_id, config = lease.session_id, await self._session_config(socket, lease)
        is_listening = config.kind == "transcription"
        options = listening_only_options(self._options) if is_listening else self._options
        with self._recorded(lease, options.parameters, config.settings):
            session = Session(
                session_id,
                transport,
                for_session(self._engines, session_id),
                config,
                options,
                self._observer,
                lease=lease,
                returned=returned(socket),
                hears_own_events=socket.query_params.get("own_events") == "1",
            )
            held = self._sessions[session_id] = _Held(session, config.kind, asyncio.Event())
            self._count(config.kind)
            if self.is_draining:  # it was on its way in
                session.drain(self._config.resume.drain_s)
            try:
                ending = await session.run()
            finally:
                del self._sessions[session_id]
                held.is_over.set()
                self._count(config.kind)
        fields = {"session": session_id, "kind": config.kind, "socket": lease.generation}
        log.info("session ended", extra=fields | {"code": ending.code, "reason": ending.reason})

    # --- resuming and moving ----------------------------------------------------------------------------------------

    async def _lease(self, token: str) -> Lease:
        """The right to a session's record: a new one, or that of the token. Raises CallerRefused."""
        if not token:
            return Lease(self.store, self._resume_options, uuid4().hex[:16])
        try:
            await self._end_here(Token.parse(token))
            lease = await claim(self.store, self._resume_options, token)
        except NotResumable:
            sentence = "this resume token is unknown, was used or has expired; begin a new session without it"
            raise CallerRefused(NOT_RESUMED, "resume_token_invalid", sentence) from None
        except NotReadable as error:
            log.warning("a snapshot cannot be read", extra={"error": str(error)})
            sentence = "this session was saved by another version of the server; begin a new one"
            raise CallerRefused(NOT_RESUMED, "resume_not_possible", sentence) from None
        except StoreUnavailable:
            sentence = "sessions cannot be resumed at the moment; try again, or begin a new one"
            raise CallerRefused(1013, "resume_unavailable", sentence) from None
        log.info("session resumed", extra={"session": lease.session_id, "socket": lease.generation})
        if self._metrics is not None:
            self._metrics.resumed()
        return lease

    async def _end_here(self, token: Token) -> None:
        """The newer socket wins: where the old one hangs on this replica, it says its last word to the store first.

        Raises NotResumable for a token that is not the session's: nobody else may end it.
        """
        held = self._sessions.get(token.session_id)
        if held is None:
            return
        held.session.hand_over(token)
        try:
            async with asyncio.timeout(HANDOVER_S):
                await held.is_over.wait()
        except TimeoutError:
            raise CallerRefused(1013, "resume_unavailable", "the old socket is still being closed") from None

    def drain(self) -> None:
        """This replica is to go: it takes no new session, and those it has move at the end of their turn."""
        if self.is_draining:
            return
        self.is_draining = True
        log.warning("this replica is to go: its sessions move", extra={"sessions": len(self._sessions)})
        for held in list(self._sessions.values()):
            held.session.drain(self._config.resume.drain_s)

    @contextmanager
    def _recorded(self, lease: Lease, parameters: Parameters, settings: Settings) -> Iterator[None]:
        """A session in the session log, where there is one."""
        if self._session_log is None:
            yield
            return
        session_id = lease.session_id
        self._session_log.begin(session_id, parameters, settings, lease)
        try:
            yield
        finally:
            self._session_log.end(session_id)

    def _check(self, socket: WebSocket, token: str) -> None:
        """Raises CallerRefused. A resumed session shows its key again and needs a place like any other."""
        headers = socket.headers
        if not is_origin_allowed(headers.get("origin"), headers.get("host"), self._config.access):
            sentence = "pages of this origin may not connect; see access.allowed_origins"
            raise CallerRefused(1008, "origin_not_allowed", sentence)
        if not self.is_authorized(shown_keys(headers, socket.scope.get("subprotocols", []))):
            sentence = "a valid API key is needed: Authorization: Bearer, or the subprotocol"
            raise CallerRefused(1008, "invalid_api_key", sentence)
        if self.is_draining:
            sentence = "this replica is being replaced; connect again"
            raise CallerRefused(SERVICE_RESTART, "server_draining", sentence)
        limit = self._config.limits.max_sessions_per_replica
        is_moving_here = token.partition(".")[0] in self._sessions
        if self._callers - is_moving_here >= limit:
            sentence = f"the server is full ({limit} sessions a replica); try again in a moment"
            raise CallerRefused(1013, "server_full", sentence)

    async def _refuse(self, transport: SocketTransport, refused: CallerRefused) -> None:
        if self._metrics is not None:
            self._metrics.refused(refused.error_code)
        log.info("caller refused", extra={"code": refused.close_code, "error_code": refused.error_code})
        [refusal] = Mapper("refused", SessionConfig()).events(Refused(refused.error_code, refused.sentence))
        try:
            await transport.send(codec.encode(refusal))
        except ConnectionLost:
            return
        await transport.close(refused.close_code, refused.sentence)

    async def _session_config(self, socket: WebSocket, lease: Lease) -> SessionConfig:
        kept = lease.snapshot
        is_listening = socket.query_params.get("intent") == "transcription"
        if kept is not None:
            is_listening = kept.kind == "transcription"
        fresh = self._listening_config() if is_listening else await self._fresh_config(socket)
        if kept is None:
            return fresh
        return replace(
            fresh,
            settings=kept.conversation.settings,
            input_format=kept.input_format,
            output_format=kept.output_format,
            model=kept.model,
        )

    async def _fresh_config(self, socket: WebSocket) -> SessionConfig:
        config = self._config
        settings = Settings(
            instructions=config.llm.system_prompt,
            turn_detection=config.server_vad(),
            voice=config.tts.voice,
            speed=config.tts.speed,
            language=config.stt.language,
        )
        return SessionConfig(
            settings=settings,
            model=socket.query_params.get("model", MODEL_NAME)[:256],
            transcription_model=config.stt.engine,
            voices=await self.voices(),
            mixes_voices=config.tts.mixes_voices,
            default_voice=config.tts.voice,
            default_vad=config.server_vad(),
        )

    def _listening_config(self) -> SessionConfig:
        """Of a session that only transcribes: neither the language model nor the voice is asked for anything."""
        vad = listening_only(self._config.server_vad())
        return SessionConfig(
            settings=Settings(turn_detection=vad, language=self._config.stt.language),
            transcription_model=self._config.stt.engine,
            default_vad=vad,
            kind="transcription",
        )

    async def voices(self) -> frozenset[str] | None:
        """The voices a client may name, asked for once; None while the voice's deployment cannot say."""
        if self._voices is None:
            try:
                names = await self._list_voices()
            except (TimeoutError, OSError, RuntimeError, EngineError) as error:
                log.warning("the voices are not known yet", extra={"error": str(error)})
                return None
            self._voices = frozenset([*names, self._config.tts.voice]) if names else None
        return self._voices

    def _count(self, kind: SessionKind) -> None:
        if self._metrics is not None:
            self._metrics.sessions(kind, sum(held.kind == kind for held in self._sessions.values()))

    def is_authorized(self, shown: Sequence[str]) -> bool:
        if not self._api_keys:
            return True
        return any(hmac.compare_digest(a.encode(), b.encode()) for a in shown for b in self._api_keys)

    # --- over HTTP --------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        return self._config

    @property
    def rest(self) -> RestServer:
        """What the REST endpoints (`rest`) need of this server. Their requests are no sessions and are not counted."""
        return RestServer(self._engines, self.voices, self.models, self._rest_refusal)

    def _rest_refusal(self, request: Request) -> ApiError | None:
        headers = request.headers
        if not is_origin_allowed(headers.get("origin"), headers.get("host"), self._config.access):
            message = "Pages of this origin may not ask; see access.allowed_origins."
            return ApiError(403, message, code="origin_not_allowed")
        if not self.is_authorized(shown_keys(headers, [])):
            message = "A valid API key is needed: Authorization: Bearer ..."
            bearer = {"WWW-Authenticate": "Bearer"}
            return ApiError(401, message, code="invalid_api_key", headers=bearer)
        return None

    async def ready(self) -> Response:
        status = await self._health()
        broken = {stage: why for stage, why in status.items() if isinstance(why, str)}
        return JSONResponse({"ready": not broken, "stages": broken}, status_code=503 if broken else 200)

    async def models(self) -> dict[str, object]:
        """OpenAI's list of models, with what serves each stage and, for a fallback, why and what to do."""
        stages = [
            {"stage": s.stage, "engine": s.engine, "model": s.model, "reason": s.reason, "remedy": s.remedy}
            | ({"details": dict(s.details)} if s.details else {})
            if isinstance(s, EngineInfo)
            else {"stage": stage, "error": s}
            for stage, s in (await self._health()).items()
        ]
        model = {
            "id": MODEL_NAME,
            "object": "model",
            "created": _STARTED,
            "owned_by": MODEL_NAME,
            "stages": stages,
            "voices": sorted(await self.voices() or ()),
            "limits": self._config.limits.model_dump(),
            "resume": {"store": self._config.resume.store, "problem": self.store.problem},
        }
        return {"object": "list", "data": [model]}


_STARTED = unix_time()


@dataclass(frozen=True, slots=True)
class _Held:
    session: Session
    kind: SessionKind
    is_over: asyncio.Event
    """Its last snapshot is in the store."""


def session_options(config: Config, *, judges_turns: bool = False) -> SessionOptions:
    limits, times, llm = config.limits, config.timeouts, config.llm
    return SessionOptions(
        parameters=replace(config.parameters(), judges_turns=judges_turns),
        time_limits=TimeLimits(
            times.stt_s, times.llm_first_token_s, times.llm_gap_s, times.tts_first_audio_s, times.tts_gap_s
        ),
        sampling=Sampling(llm.max_tokens, llm.temperature, llm.top_p),
        chunk_ms=config.playout.chunk_ms,
        max_session_s=limits.max_session_s,
        idle_timeout_s=limits.idle_timeout_s,
        send_s=times.send_s,
        max_outbox_bytes=limits.max_outbox_bytes,
        input_backlog_s=limits.input_backlog_s,
    )


def listening_only_options(options: SessionOptions) -> SessionOptions:
    """Of a session that never answers: there is no prompt to read ahead."""
    return replace(options, parameters=replace(options.parameters, prefill_after_s=0.0))


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


def shown_keys(headers: Mapping[str, str], subprotocols: Sequence[str]) -> list[str]:
    """The keys that a caller shows, in the header or, as a browser must, in a subprotocol."""
    keys = [p.removeprefix(KEY_SUBPROTOCOL) for p in subprotocols if p.startswith(KEY_SUBPROTOCOL)]
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [*keys, token.strip()] if scheme.lower() == "bearer" else keys


def is_origin_allowed(origin: str | None, host: str | None, access: Access) -> bool:
    """A page may connect to the host that it came from, and from the origins that the config names (RFC 6454)."""
    if origin is None or "*" in access.allowed_origins or origin in access.allowed_origins:
        return True
    try:
        return host is not None and urlsplit(origin).netloc == host
    except ValueError:  # no URL
        return False


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

    @app.websocket("/v1/realtime")
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


# --- behind Ray Serve -----------------------------------------------------------------------------------------------

HEALTH_S = 5.0
"""A stage that does not answer for so long is not ready."""


@serve.deployment(
    name="Ingress",
    max_ongoing_requests=10_000,
    graceful_shutdown_timeout_s=40,  # more than resume.drain_s, and time for the last snapshots
    graceful_shutdown_wait_loop_s=0.5,
    max_surge_percent=100,  # in a redeploy the new replicas serve before the old ones send their sessions away
)
@serve.ingress()
class Ingress:
    """`max_ongoing_requests` is far above the session cap: sessions are counted here, where a refusal has words."""

    def __init__(
        self,
        config: Config,
        api_keys: frozenset[str],
        make_detectors: Callable[[], Callable[[], SpeechDetector]],
        vad: EngineInfo,
        stt: DeploymentHandle[Any],
        llm: DeploymentHandle[Any],
        tts: DeploymentHandle[Any],
        make_store: Callable[[], SessionStore | None],
        turn: EngineInfo | None = None,
        load_turn_judge: Callable[[], TurnJudge] | None = None,
    ) -> None:
        """`turn`: what gives the second opinion on the end of a turn, or why it is not there; None: none is wanted."""
        share_log_handlers()
        self._local = {"vad": vad} | ({"turn": turn} if turn else {})
        self._handles = {"stt": stt, "llm": llm, "tts": tts}
        engines = Engines(
            make_detectors(),
            RemoteTranscriber(stt),
            RemoteChatModel(llm),
            RemoteSynthesizer(tts),
            load_turn_judge and load_turn_judge(),
        )
        self._server = VoiceServer(
            config,
            engines,
            api_keys=api_keys,
            health=self._stages,
            voices=self._voices,
            metrics=Metrics(),
            store=make_store(),
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes(self._server, while_running=self._watch_draining)

    async def _watch_draining(self) -> None:
        await until_draining()
        self._server.drain()

    async def _stages(self) -> dict[str, StageStatus]:
        names = list(self._handles)
        found = await asyncio.gather(*(self._stage(handle) for handle in self._handles.values()))
        return {**self._local, **dict(zip(names, found, strict=True))}

    async def _stage(self, handle: DeploymentHandle[Any]) -> StageStatus:
        response = handle.options(_by_reference=False).info.remote()
        try:
            async with asyncio.timeout(HEALTH_S):
                info: EngineInfo = await response
                return info
        except TimeoutError:
            return f"no replica has answered within {HEALTH_S:g} s: it is starting, or the cluster cannot place it"
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            response.cancel()  # type: ignore[no-untyped-call]  # Ray has not typed it

    async def _voices(self) -> Sequence[str]:
        call = self._handles["tts"].options(_by_reference=False).voices.remote()
        async with asyncio.timeout(HEALTH_S), cancelling(call, "tts"):
            names: Sequence[str] = await call
            return names


def share_log_handlers() -> None:
    """Serve logs what its own logger is told; ours says it through the same handlers, in the same format."""
    ours = logging.getLogger("voice_serve")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
