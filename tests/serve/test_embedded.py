"""The laptop's application as `make run` starts it where no weights are: real ears, mind and mouth, a real recording."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from deployments.engines import create, silero_vad
from deployments.options import TtsOptions
from loadtest.application import ROOT, Application, application
from serve_app.audio.framing import FrameAssembler
from serve_app.audio.pcm import Audio, to_audio
from serve_app.audio.resampling import StreamingResampler
from serve_app.client.connection import RATE
from serve_app.talk import Conversation, hold_conversation, load_recording

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

EMBEDDED = {
    "stt": {"engine": "pocketsphinx"},
    "llm": {"model": "embedded:smollm2-135m", "max_tokens": 60},
    "tts": {"engine": "espeak"},
}


@pytest.fixture(scope="module")
def embedded() -> Iterator[Application]:
    with application(ROOT / "config.yaml", EMBEDDED) as running:
        yield running


def test_a_recording_is_understood_and_answered_in_speech(embedded: Application, shared_audio: Path) -> None:
    question = load_recording(shared_audio / "speech" / "p287_001.flac")
    conversation: Conversation = asyncio.run(
        hold_conversation(embedded.realtime, [question], [], api_key=None, timeout_s=90)
    )
    [turn] = conversation.dialogue.turns
    assert "call" in conversation.dialogue.question(turn)
    assert turn.status in ("completed", "incomplete")  # a model of this size may talk to its limit
    assert turn.latency_ms["total"] >= 500
    sound = to_audio(conversation.heard)
    assert np.abs(sound).max() > 0.1
    assert share_of_speech(sound) > 0.5
    assert len(sound) / RATE == pytest.approx(asyncio.run(spoken_s(turn.answer)), rel=0.3)


def test_no_process_loads_a_library_that_its_engine_does_not_need(embedded: Application) -> None:
    [model] = httpx.get(f"{embedded.http}/v1/models", timeout=10).json()["data"]
    loaded = {stage["stage"]: stage.get("details", {}).get("loaded", "") for stage in model["stages"]}
    assert loaded == {"vad": "", "stt": "", "llm": "xllamacpp", "tts": ""}


def share_of_speech(sound: Audio) -> float:
    """The share of frames in which the detector hears a voice: an independent judge of 'audible speech'."""
    detector = silero_vad.load()()
    frames = FrameAssembler().push(StreamingResampler(RATE, 16_000).push(sound))
    return float(np.mean([detector.probability(frame) > 0.5 for frame in frames]))


async def spoken_s(text: str) -> float:
    """How long espeak takes to say it, by itself."""
    engine = create(TtsOptions(engine="espeak"))
    chunks = [chunk async for chunk in engine.synthesize(text, voice="en-us", speed=1.0)]
    return sum(len(chunk.pcm) / 2 / chunk.sample_rate for chunk in chunks)
