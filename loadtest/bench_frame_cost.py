"""Where each microsecond of an appended 20 ms goes, in one process and without a network: the exact account.

Two tables. The parts by themselves, each called as a session calls it. Then the whole path in layers: the frame's
bytes are given to uvicorn's WebSocket protocol as a socket would give them. It hands their text first to a function
that does nothing, then to a whole session on a silent conversation; last, for comparison, the same session gets it by
ASGI, through uvicorn's own protocol and Ray's receive proxy. The differences are the layers'.
The kernel and HAProxy are not in it, so neither is what uvicorn's own protocol does at every message, to stop and
start reading; `sessions` has them. The best of several rounds of CPU time, so that a busy
machine changes little; nothing sleeps but who waits for Silero to gather the frames of other sessions.
"""

import argparse
import asyncio
import base64
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import uvloop
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from uvicorn import Config as UvicornConfig
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from deployments.engines import silero_vad
from deployments.engines.scripted import ScriptedChatModel, ScriptedSynthesizer, ScriptedTranscriber
from deployments.interfaces import SpeechDetector
from deployments.options import LlmOptions, SttOptions, TtsOptions
from serve_app.audio.pcm import Audio, encode_pcm
from serve_app.client.microphone import FRAME, FRAME_S
from serve_app.config import Config
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import FrameScored, Settings
from serve_app.direct_socket import DirectWebSocket
from serve_app.realtime import codec
from serve_app.realtime.session_config import AudioFormat
from serve_app.server import VoiceServer
from serve_app.session.input import AudioInput
from serve_app.session.stages import Engines
from serve_app.socket_transport import SocketTransport
from serve_app.web import routes

from .command import Commands, add_command, noises

ROUNDS = 7
FRAMES = 1500
SESSIONS = 20
SETTLED_S = 0.2
TURNS = 6
"""Of the loop, in which a frame passes all queues of ASGI; an empty one costs 1 us for all sessions."""
POLL_S = 0.001
"""A shorter sleep is none: uvloop counts in milliseconds."""
HANDSHAKE = (
    b"GET /v1/realtime?model=voice-serve HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def add_parser(commands: Commands) -> None:
    what = "where each microsecond of 20 ms of input goes (without Ray and proxy)"
    add_command(commands, "frame-cost", run, what)


def run(args: argparse.Namespace) -> None:
    sound = noises(args)["office-ambience"]  # no speech, so that no turn begins
    parts = [encode_pcm(sound[start : start + FRAME]) for start in range(0, len(sound) - FRAME, FRAME)]
    print(f"microseconds of CPU time for 20 ms of appended audio, {FRAMES} of them, best of {ROUNDS} rounds")
    for name, cost in _by_themselves(parts).items():
        _show(name, cost)
    print()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        below = 0.0
        for name, cost in runner.run(_layers(parts)).items():
            _show(name, cost, f"(+{cost - below:.1f})")
            below = cost


def _show(name: str, cost: float, note: str = "") -> None:
    print(f"{cost:8.1f} us = {cost / FRAME_S:6.0f} us a session-second  {name} {note}")


def _text(pcm: bytes) -> str:
    return codec.encode({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})


# --- the parts by themselves ----------------------------------------------------------------------------------------


def _by_themselves(parts: list[bytes]) -> dict[str, float]:
    texts = [_text(pcm) for pcm in parts]
    config = Config()
    conversation = Conversation(config.parameters(), Settings(turn_detection=config.server_vad()))
    score = FrameScored(512, 0.01)
    silence = np.zeros(512, dtype=np.float32)
    detector = silero_vad.load()()
    frames_each = 16_000 * FRAME_S / 512

    def decode(n: int) -> None:
        codec.decode(texts[n % len(texts)])

    def hear_frame(n: int) -> None:
        conversation.handle(score, n * 0.032)

    def detect(_n: int) -> None:
        detector.probability(silence)

    audio = AudioInput(max_turn_s=60, backlog_s=120)

    def take_in(n: int) -> None:
        if audio.append(parts[n % len(parts)], AudioFormat.PCM):
            audio.forget(audio.end - 16_000)

    return {
        "JSON and base64": _best(decode),
        "samples, resampler, ring, frames": _best(take_in),
        "Silero, one frame at a time (0.625 frames)": _best(detect) * frames_each,
        "Conversation (0.625 frames)": _best(hear_frame) * frames_each,
    }


class _Deaf:
    def probability(self, frame: Audio) -> float:
        return 0.0

    def hear(self, frame: Audio) -> asyncio.Future[float]:
        scored: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        scored.set_result(0.0)
        return scored


def _best(call: Callable[[int], None]) -> float:
    """Microseconds a call."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for n in range(FRAMES):
            call(n)
        rounds.append(time.process_time() - began)
    return min(rounds) / FRAMES * 1e6


# --- the path in layers ---------------------------------------------------------------------------------------------


class _Wire(asyncio.Transport):
    """A socket that takes everything at once."""

    def write(self, data: Any) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class _Scores:
    """Detectors of which is known how many frames wait for their score."""

    def __init__(self, make_detector: Callable[[], SpeechDetector]) -> None:
        self.make_detector = make_detector
        self.waiting = 0

    def __call__(self) -> SpeechDetector:
        return _Counted(self)

    def note(self, _scored: asyncio.Future[float]) -> None:
        self.waiting -= 1


class _Counted:
    def __init__(self, scores: _Scores) -> None:
        self._scores = scores
        self._detector = scores.make_detector()

    def probability(self, frame: Audio) -> float:
        return self._detector.probability(frame)

    def hear(self, frame: Audio) -> asyncio.Future[float]:
        scored = self._detector.hear(frame)
        self._scores.waiting += 1
        scored.add_done_callback(self._scores.note)
        return scored


async def _layers(parts: list[bytes]) -> dict[str, float]:
    frames = [Frame(Opcode.TEXT, _text(pcm).encode()).serialize(mask=True) for pcm in parts]
    deaf, silero = _Scores(_Deaf), _Scores(silero_vad.load())
    return {
        "uvicorn's WebSocket, to a function": await _fed(_hands_over, frames, deaf),
        "and a session that is deaf": await _fed(_app(deaf), frames, deaf),
        "and Silero: the whole": await _fed(_app(silero), frames, silero),
        "the whole by ASGI": await _fed(_app(silero), frames, silero, protocol=WebSocketsSansIOProtocol),
    }


async def _hands_over(scope: Scope, receive: Receive, send: Send) -> None:
    transport = SocketTransport(WebSocket(scope, receive, send))
    transport.deliver_to(lambda text: None)
    await receive()
    await send({"type": "websocket.accept"})
    await receive()


def _app(make_detector: Callable[[], SpeechDetector]) -> ASGIApp:
    engines = Engines(
        make_detector,
        ScriptedTranscriber(SttOptions()),
        ScriptedChatModel(LlmOptions()),
        ScriptedSynthesizer(TtsOptions()),
    )

    async def nothing() -> Any:
        return ()

    config = Config.parse({"limits": {"max_sessions_per_replica": SESSIONS, "input_backlog_s": 1e6}})
    return routes(VoiceServer(config, engines, health=nothing, voices=nothing))


async def _fed(
    app: ASGIApp,
    frames: list[bytes],
    scores: _Scores,
    *,
    protocol: type[WebSocketsSansIOProtocol] = DirectWebSocket,
) -> float:
    """Microseconds a frame, `SESSIONS` of them at a time as a loaded loop sees them."""
    config = UvicornConfig(_behind_ray(app), lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    sockets = [protocol(config, state, {}) for _ in range(SESSIONS)]
    for socket in sockets:
        socket.connection_made(_Wire())
        socket.data_received(HANDSHAKE)
    await asyncio.sleep(SETTLED_S)
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for n in range(FRAMES // SESSIONS):
            for socket in sockets:
                socket.data_received(frames[n % len(frames)])
            for _ in range(TURNS):
                await asyncio.sleep(0)
            while scores.waiting:  # noqa: ASYNC110 - an event would be part of what is measured
                await asyncio.sleep(POLL_S)
        rounds.append(time.process_time() - began)
    for socket in sockets:
        socket.connection_lost(None)
    await asyncio.gather(*state.tasks, return_exceptions=True)
    return min(rounds) / (FRAMES // SESSIONS * SESSIONS) * 1e6


def _behind_ray(app: ASGIApp) -> ASGIApp:
    """As a replica calls its application in HAProxy mode (ray.serve._private.replica, _direct_ingress_asgi)."""

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        proxy = ASGIDIReceiveProxy(scope, receive, asyncio.get_running_loop())
        fetching = proxy.fetch_until_disconnect_task()
        try:
            await app(scope, proxy, send)
        finally:
            fetching.cancel()

    return behind
