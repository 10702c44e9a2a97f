"""Sessions that only transcribe, by the `openai` SDK over real Ray Serve; the model and the voice are never called."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeTranscriptionSessionCreateRequest
from realtime.order import OrderChecker

from loadtest.application import Application
from serve_app.audio.pcm import encode_pcm
from serve_app.talk import load_recording

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to its own shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_the_openai_sdk_has_speech_put_into_words_and_gets_no_answer(
    app: Application, shared_audio: Path
) -> None:
    question = load_recording(shared_audio / "speech" / "p287_001.flac")
    audio = np.concatenate((question, np.zeros(24_000, dtype=np.float32)))
    before = {name: (await app.stats(name))["started"] for name in ("LanguageModel", "TextToSpeech")}
    sdk = AsyncOpenAI(api_key="none", websocket_base_url=app.realtime.removesuffix("/realtime"))
    order, seen = OrderChecker(), []
    intent = {"intent": "transcription"}
    async with asyncio.timeout(60), sdk.realtime.connect(extra_query=intent) as connection:

        async def until(type_: str) -> Any:
            async for event in connection:
                order.push(event.to_dict())
                seen.append(event)
                if event.type == type_:
                    return event
            raise AssertionError(f"{type_} never came")

        created = await until("session.created")
        assert isinstance(created.session, RealtimeTranscriptionSessionCreateRequest)
        asked = {"model": "whisper-1", "language": "en", "prompt": "Stella"}
        turns = {"type": "server_vad", "silence_duration_ms": 400}
        await connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24000},
                        "transcription": asked,
                        "turn_detection": turns,
                    }
                },
            }
        )
        updated = await until("session.updated")
        assert updated.session.audio.input.transcription.prompt == "Stella"
        assert updated.session.audio.input.turn_detection.silence_duration_ms == 400
        for frame in np.split(audio, range(480, len(audio), 480)):
            await connection.input_audio_buffer.append(audio=base64.b64encode(encode_pcm(frame)).decode())
        heard = await until("conversation.item.input_audio_transcription.completed")
        assert heard.transcript
        await connection.response.create()
        error = await until("error")
        assert error.error.code == "not_supported"
        await connection.session.update(session={"type": "realtime"})
        error = await until("error")
        assert error.error.param == "session.type"
    kinds = [event.type for event in seen]
    assert not [kind for kind in kinds if kind.startswith("response.")]
    expected = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
    ]
    assert kinds[2 : 2 + len(expected)] == expected
    deltas = [event.delta for event in seen if event.type.endswith("transcription.delta")]
    assert "".join(deltas) == heard.transcript
    for name, started in before.items():
        assert (await app.stats(name))["started"] == started, name
