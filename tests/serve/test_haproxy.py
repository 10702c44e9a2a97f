"""HAProxy mode with one event loop a replica, as on a cluster: interruptions and departures reach the engines there too."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loadtest.application import Application, application
from loadtest.caller import caller
from serve_app.talk import load_recording

from .conftest import SLOW_VOICE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode of Ray Serve is for Linux only"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def behind_haproxy() -> Iterator[Application]:
    with application(args=SLOW_VOICE, proxy="haproxy") as running:
        yield running


async def test_a_barge_in_and_a_hang_up_stop_the_engines(
    behind_haproxy: Application, shared_audio: Path
) -> None:
    app = behind_haproxy
    question = load_recording(shared_audio / "speech" / "p287_001.flac")
    async with caller(app.realtime) as one:
        one.say(question)
        await one.until_type("response.output_audio.delta")
        await asyncio.sleep(1)
        after = len(one.arrivals)
        one.say(question)
        await one.until_type("input_audio_buffer.speech_started", after=after)
        done = await one.until_type("response.done", after=after)
        assert done.event["response"]["status_details"]["reason"] == "turn_detected"
        assert [(await app.until_idle(name))["cancelled"] for name in ("LanguageModel", "TextToSpeech")] == [
            1,
            1,
        ]
        assert not any(chunk.is_stale for chunk in one.player.arrivals)
        await one.until_type("response.output_audio.delta", after=len(one.arrivals))
    counts = [await app.until_idle(name, within_s=10) for name in ("LanguageModel", "TextToSpeech")]
    assert [count["cancelled"] for count in counts] == [2, 2]
    async with httpx.AsyncClient(base_url=app.http) as http, asyncio.timeout(10):
        while (await http.get("/healthz")).json()["sessions"]:
            await asyncio.sleep(0.05)
