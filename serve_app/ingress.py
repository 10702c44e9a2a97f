"""The front door as a deployment: a `VoiceServer` with the clients of the engine deployments, behind Ray Serve."""

import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.interfaces import EngineInfo, SpeechDetector, TurnJudge

from . import direct_socket
from .config import Config
from .draining import until_draining
from .observability import Metrics
from .server import StageStatus, VoiceServer
from .session.engine_clients import RemoteChatModel, RemoteSynthesizer, RemoteTranscriber, cancelling
from .session.resumption import SessionStore
from .session.stages import Engines
from .web import routes

HEALTH_S = 5.0
"""A stage that does not answer for so long is not ready."""
FULL_COLLECTION_EVERY = 100
"""Of the collections of Python's middle generation; its own default is 10, every twelve seconds at 100 sessions.

A full collection holds the event loop, and on a busy core the answers of the whole next second are late. There is little
for it to find: what a session leaves is freed when it ends (tests/ingress/test_remains.py).
"""


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
        gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION_EVERY)
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
        direct_socket.install(self._server.refusing)
        keep_what_is_here()

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


def keep_what_is_here() -> None:
    """What was loaded by now stays: full collections need not look through it.

    It is 136,000 of the 186,000 objects that a replica with 100 sessions has; without them a full collection takes 13
    to 35 ms instead of 80 to 105.
    """
    gc.collect()
    gc.freeze()


def share_log_handlers() -> None:
    """Serve logs what its own logger is told; ours says it through the same handlers, in the same format."""
    ours = logging.getLogger("voice_serve")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for handler in logging.getLogger("ray.serve").handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
