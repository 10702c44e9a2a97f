"""The page against the real application: its ingress, session and detector; the microphone says a real recording.

The stages behind are scripted and there is no Ray, unless VOICE_SERVE_URL names a server that runs (`make run`, then
VOICE_SERVE_URL=http://127.0.0.1:8000): then that one is used, engines and all.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from driver import RECORDING_RATE, OpenPageFactory, write_recording

pytestmark = pytest.mark.browser
ANSWER = (
    "Well, that is a long story, and it begins in a small town by the sea. Every morning the boats went out "
    "before the sun was up. Every evening they came home with the tide, and the whole town stood on the quay."
)


@pytest.fixture
async def application() -> AsyncIterator[str]:
    """The base URL of an application."""
    running = os.environ.get("VOICE_SERVE_URL")
    if running is not None:
        yield running
        return
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(scripted_application(), port=0, log_level="warning", ws="websockets-sansio")
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True


def scripted_application() -> object:
    from deployments.engines import scripted, silero_vad
    from deployments.interfaces import EngineInfo
    from serve_app.config import Config
    from serve_app.server import VoiceServer
    from serve_app.session.stages import Engines
    from serve_app.web import routes

    config = Config.parse(
        {
            "stt": {"engine": "scripted", "scripted": {"transcripts": ["Tell me a story.", "Stop."]}},
            "llm": {"engine": "scripted", "scripted": {"answers": [ANSWER]}},
            "tts": {"engine": "scripted"},
        }
    )
    engines = Engines(
        silero_vad.load(),
        scripted.ScriptedTranscriber(config.stt),
        scripted.ScriptedChatModel(config.llm),
        scripted.ScriptedSynthesizer(config.tts),
    )

    async def health() -> dict[str, EngineInfo]:
        return {stage: EngineInfo(stage, "scripted", "") for stage in ("vad", "stt", "llm", "tts")}

    async def voices() -> list[str]:
        return [config.tts.voice]

    return routes(VoiceServer(config, engines, health=health, voices=voices))


@pytest.fixture
def speech(shared_audio: Path, tmp_path: Path) -> Path:
    """A question, time for an answer, then an interruption."""
    audio, rate = soundfile.read(shared_audio / "speech" / "cards-001.flac", dtype="float32")
    words = soxr.resample(audio, rate, RECORDING_RATE)
    silence = np.zeros(RECORDING_RATE)
    parts = [silence, words, *[silence] * 4, words, *[silence] * 30]
    return write_recording(tmp_path / "speech.wav", np.concatenate(parts))


async def test_a_turn_and_a_barge_in(application: str, open_page: OpenPageFactory, speech: Path) -> None:
    async with open_page(application, speech) as opened:
        page = opened.page
        await page.wait_for_selector("#server-state[data-state=ready]")
        began = time.monotonic()
        await page.click("#talk")
        await opened.until("state.floor === 'user'", timeout_s=20)
        await opened.until("state.floor === 'agent'", timeout_s=30)
        await opened.until("state.truncations.length === 1", timeout_s=20)
        await page.wait_for_selector(".unheard", timeout=5000)
        await opened.until("state.floor === 'agent'", timeout_s=30)
        state = await opened.state()
        await page.screenshot(path=str(speech.parent / "page.png"))
        assert opened.complaints == []
    [stop], [cut] = state["stops"], state["truncations"]
    assert stop["atMs"] - state["speechStarts"][1]["atMs"] < 200
    assert 0 < cut["audioEndMs"] <= stop["playedMs"] < (time.monotonic() - began) * 1000
    assert state["errors"] == []
