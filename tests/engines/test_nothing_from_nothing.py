"""Nothing from nothing: silence, noise and music give no words and no answer, whichever engine transcribes.

A whole session over the real detector and the real transcriber: an engine by itself is not asked to know noise from
speech as long as nobody gives it any. What each can tell by itself stands in its own tests.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ingress.asgi import connected, server_of
from session.calls import append, scripted

from deployments.engines import silero_vad
from deployments.interfaces import SpeechDetector, Transcriber
from serve_app.audio.resampling import StreamingResampler

from .factories import TRANSCRIBERS, TranscriberFactory
from .sounds import MADE, RATE, RECORDED, Audio, sound

pytestmark = pytest.mark.asyncio(loop_scope="module")
COMPLETED = "conversation.item.input_audio_transcription.completed"


@pytest.fixture(scope="module")
def make_detector() -> Callable[[], SpeechDetector]:
    return silero_vad.load()


LISTENING = [factory for factory in TRANSCRIBERS if factory.name != "scripted"]
"""The scripted one says its lines to whatever it is given."""


@pytest.fixture(scope="module", params=LISTENING, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> TranscriberFactory:
    factory: TranscriberFactory = request.param
    return factory


@pytest.fixture(scope="module")
def engine(factory: TranscriberFactory) -> Transcriber:
    return factory.build()


async def said_to(
    engine: Transcriber, make_detector: Callable[[], SpeechDetector], audio: Audio
) -> list[str]:
    """The transcripts of all turns that a session makes of `audio`; asserts that only words are answered."""
    engines = replace(scripted(), transcriber=engine, make_detector=make_detector)
    silence = np.zeros(RATE, dtype=np.float32)
    heard = StreamingResampler(RATE, 24_000).push(np.concatenate([audio, silence]))
    async with connected(server_of(engines=engines)) as socket:
        await socket.until("session.created")
        for start in range(0, len(heard), 24_000):
            socket.send(append(heard[start : start + 24_000]))
        socket.send({"type": "conversation.item.retrieve", "item_id": "none"})
        await socket.until("error")  # all of it has been taken in
        turns = socket.all("input_audio_buffer.committed")
        if turns:
            await socket.until(COMPLETED, count=len(turns))
        words = [event["transcript"] for event in socket.all(COMPLETED)]
        await socket.answer_to()
        assert bool(socket.all("response.created")) == any(words)
    return words


@pytest.mark.parametrize("name", [*MADE, *RECORDED])
async def test_a_sound_without_words_gives_none_and_no_answer(
    engine: Transcriber, make_detector: Callable[[], SpeechDetector], shared_audio: Path, name: str
) -> None:
    assert not any(await said_to(engine, make_detector, sound(name, shared_audio)))


async def test_speech_gives_words_and_an_answer(
    factory: TranscriberFactory,
    engine: Transcriber,
    make_detector: Callable[[], SpeechDetector],
    recording: Callable[[str], bytes],
) -> None:
    audio = np.frombuffer(recording(factory.recording), dtype="<i2").astype(np.float32) / 32768
    assert all(await said_to(engine, make_detector, audio))
