"""Where each microsecond of an appended 20 ms goes, in one process and without a network: the exact account.

Two tables. The parts by themselves, each called as a session calls it. Then the whole path in layers: the frame's
bytes are given to uvicorn's WebSocket protocol as a socket would give them. It hands their text first to a function
that does nothing, then to a whole session on a silent conversation; last, for comparison, the same session gets it by
ASGI, through uvicorn's own protocol and Ray's receive proxy. The differences are the layers'.
The kernel and HAProxy are not in it, so neither is what uvicorn's own protocol does at every message, to stop and
start reading; `sessions` has them. The best of several rounds of CPU time, so that a busy
machine changes little.
"""

import argparse
import asyncio
import base64
import os
import sys
import time
from collections.abc import Callable, Sequence
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
from serve_app.audio.pcm import Audio, encode_pcm, to_samples
from serve_app.client.microphone import FRAME, FRAME_S
from serve_app.config import Config
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import FrameScored, Settings
from serve_app.direct_socket import DirectWebSocket
from serve_app.realtime import codec
from serve_app.realtime.session_config import AudioFormat
from serve_app.server import VoiceServer
from serve_app.session.ears import Ears, resampler
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
"""Of the loop, in which a frame passes all queues of ASGI and is heard; an empty one costs 1 us for all sessions."""
TOGETHER = 12
"""Frames in a round of the ears, with a hundred sessions."""
HANDSHAKE = (
    b"GET /v1/realtime?model=voice-serve HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def add_parser(commands: Commands) -> None:
    what = "where each microsecond of 20 ms of input goes (without Ray and proxy)"
    add_command(commands, "frame-cost", run, what)


def run(args: argparse.Namespace) -> None:
    if (
        os.environ.get("OMP_NUM_THREADS") != "1"
    ):  # as Ray has it for a replica of a core; numpy reads it when loaded
        again = [sys.executable, "-m", "loadtest.bench", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"OMP_NUM_THREADS": "1"})
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
    blocks = resampler(24_000)
    block = bytes(blocks.block * 2)
    make_detector = silero_vad.load()
    detectors = [make_detector() for _ in range(TOGETHER)]
    silence = np.zeros((TOGETHER, 512), dtype=np.float32)
    samples = np.zeros(512, dtype=np.int16)
    frames_each = 16_000 * FRAME_S / 512

    def decode(n: int) -> None:
        codec.decode(texts[n % len(texts)])

    def resample(_n: int) -> None:
        to_samples(blocks.resample([block] * TOGETHER))

    def detect(_n: int) -> None:
        detectors[0].probabilities(detectors, silence)

    def hear_frame(n: int) -> None:
        conversation.handle(score, n * 0.032)

    audio = AudioInput(max_turn_s=60, backlog_s=120)

    def take_in(n: int) -> None:
        for _ in audio.append(parts[n % len(parts)], AudioFormat.PCM):
            audio.keep(samples)
            audio.forget(audio.end - 16_000)

    together = frames_each / TOGETHER
    return {
        "JSON and base64": _best(decode),
        "kept until it is a block, and the frame of it": _best(take_in),
        f"resampled, {TOGETHER} together (0.625 frames)": _best(resample) * together,
        f"Silero, {TOGETHER} together (0.625 frames)": _best(detect) * together,
        "Conversation (0.625 frames)": _best(hear_frame) * frames_each,
    }


class _Deaf:
    def probability(self, frame: Audio) -> float:
        return 0.0

    @staticmethod
    def probabilities(detectors: Sequence["_Deaf"], frames: Audio) -> list[float]:
        return [0.0] * len(detectors)


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


async def _layers(parts: list[bytes]) -> dict[str, float]:
    frames = [Frame(Opcode.TEXT, _text(pcm).encode()).serialize(mask=True) for pcm in parts]
    silero = silero_vad.load()
    return {
        "uvicorn's WebSocket, to a function": await _fed(_hands_over, frames),
        "and a session that is deaf": await _fed(_app(_Deaf), frames),
        "and Silero: the whole": await _fed(_app(silero), frames),
        "the whole by ASGI": await _fed(_app(silero), frames, protocol=WebSocketsSansIOProtocol),
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
        ears=Ears(gather_s=0.0),
    )

    async def nothing() -> Any:
        return ()

    config = Config.parse({"limits": {"max_sessions_per_replica": SESSIONS, "input_backlog_s": 1e6}})
    return routes(VoiceServer(config, engines, health=nothing, voices=nothing))


async def _fed(
    app: ASGIApp,
    frames: list[bytes],
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
