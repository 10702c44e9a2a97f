"""All that one ingress process serves: admission, authentication, readiness; one `Session` a socket.

It runs in memory over any engines, as the tests do it, and has no cluster of its own to ask: `web.routes` makes it an
application, and `ingress.Ingress` puts that behind Ray Serve.

A caller who cannot be served is accepted first and then closed with a code and a sentence: browsers show neither a
refused handshake's status nor its text.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from deployments.interfaces import EngineError, EngineInfo

from .access import is_authorized, is_origin_allowed, shown_keys
from .config import Config
from .conversation.commands import Refused
from .conversation.events import Settings
from .conversation.parameters import Parameters
from .conversation.plain import NotReadable
from .handshake import NOT_RESUMED, CallerRefused, resume_token, returned
from .observability import Metrics, RefusalLog, SessionLog, TurnObserver, unix_time
from .opening import (
    as_kept,
    conversation_config,
    listening_config,
    listening_only_options,
    resume_options,
    session_options,
)
from .realtime import codec
from .realtime.mapper import Mapper
from .realtime.session_config import SessionConfig, SessionKind
from .rest.errors import ApiError
from .rest.routes import Server as RestServer
from .session.engine_clients import for_session
from .session.resumption import (
    GuardedStore,
    Lease,
    NotResumable,
    SessionStore,
    StoreUnavailable,
    Token,
    claim,
)
from .session.session import Session
from .session.stages import Engines
from .session.transport import SERVICE_RESTART, ConnectionLost
from .socket_transport import SocketTransport

log = logging.getLogger("voice_serve.server")

MODEL_NAME = "voice-serve"
HANDOVER_S = 3.0
"""A session that is resumed while its old socket hangs here has so long to end."""

REALTIME = "/v1/realtime"

StageStatus = EngineInfo | str
"""What serves a stage, or why it cannot serve now."""


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
        self._refusals = RefusalLog(metrics)
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
        transport = await _accepted(socket)
        try:
            token = resume_token(socket)
            self._check(socket, token)
            with self._counted():
                lease = await self._lease(token)
                await self._hold(socket, transport, lease)
        except CallerRefused as refused:
            await self._refuse(transport, refused)

    def refusing(self, scope: Scope) -> ASGIApp | None:
        """What turns this caller away, if it comes for a session and none can be had: a `direct_socket.Doorkeeper`.

        `realtime` would do it too, behind all layers of the application.
        """
        if not scope["path"].endswith(REALTIME):
            return None
        caller = HTTPConnection(scope)
        try:
            self._check(caller, resume_token(caller))
        except CallerRefused as refused:
            return partial(self._turn_away, refused)
        return None

    async def _turn_away(self, refused: CallerRefused, scope: Scope, receive: Receive, send: Send) -> None:
        await self._refuse(await _accepted(WebSocket(scope, receive, send)), refused)

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

    def _check(self, caller: HTTPConnection, token: str) -> None:
        """Raises CallerRefused. A resumed session shows its key again and needs a place like any other."""
        headers = caller.headers
        if not is_origin_allowed(headers.get("origin"), headers.get("host"), self._config.access):
            sentence = "pages of this origin may not connect; see access.allowed_origins"
            raise CallerRefused(1008, "origin_not_allowed", sentence)
        if not is_authorized(shown_keys(headers, caller.scope.get("subprotocols", [])), self._api_keys):
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
        self._refusals.note(refused.close_code, refused.error_code)
        [refusal] = Mapper("refused", SessionConfig()).events(Refused(refused.error_code, refused.sentence))
        try:
            await transport.send(codec.encode(refusal))
        except ConnectionLost:
            return
        await transport.close(refused.close_code, refused.sentence)

    async def _session_config(self, socket: WebSocket, lease: Lease) -> SessionConfig:
        kept, query = lease.snapshot, socket.query_params
        kind = query.get("intent") if kept is None else kept.kind
        if kind == "transcription":
            fresh = listening_config(self._config)
        else:
            model = query.get("model", MODEL_NAME)[:256]
            fresh = conversation_config(self._config, model, await self.voices())
        return fresh if kept is None else as_kept(fresh, kept)

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
        if not is_authorized(shown_keys(headers, []), self._api_keys):
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


async def _accepted(socket: WebSocket) -> SocketTransport:
    transport = SocketTransport(socket)
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
    return transport


_STARTED = unix_time()


@dataclass(frozen=True, slots=True)
class _Held:
    session: Session
    kind: SessionKind
    is_over: asyncio.Event
    """Its last snapshot is in the store."""
