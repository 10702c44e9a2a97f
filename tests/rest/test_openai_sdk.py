"""Twelve calls of the `openai` SDK, good and bad, as an application would make them."""

import io
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from ingress.asgi import server_of
from openai import AsyncOpenAI
from rest.wire import file_of, sdk_of, silence, speech
from session.calls import scripted

from deployments.interfaces import EngineBusy
from deployments.options import ScriptedLlm, ScriptedStt, ScriptedTts

FAST = {
    "stt": ScriptedStt(latency_s=0, transcripts=("tell me", "something")),
    "llm": ScriptedLlm(first_token_s=0, tokens_per_s=1e6, answers=("One two three.",)),
    "tts": ScriptedTts(first_audio_s=0, word_s=0.2, realtime_factor=0),
}
QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}]


@pytest.fixture
async def sdk():
    async with sdk_of(server_of(engines=scripted(**FAST))) as client:
        yield client


async def test_1_a_flac_file_is_transcribed(sdk: AsyncOpenAI):
    file = ("question.flac", file_of(speech(1, 44_100), rate=44_100, kind="FLAC"))
    transcription = await sdk.audio.transcriptions.create(model="whisper-1", file=file)
    assert transcription.text == "tell me"
    assert transcription.usage is not None
    assert transcription.usage.to_dict() == {"type": "duration", "seconds": 1}


async def test_2_a_long_file_is_cut_and_its_segments_are_told(sdk: AsyncOpenAI):
    audio = np.concatenate([silence(1), speech(20), silence(2), speech(15)])
    verbose = await sdk.audio.transcriptions.create(
        model="whisper-1", file=("long.ogg", file_of(audio, kind="OGG")), response_format="verbose_json"
    )
    assert (verbose.text, round(verbose.duration, 1)) == ("tell me something", 38.0)
    assert verbose.segments is not None
    assert [(s.text, round(s.end)) for s in verbose.segments] == [("tell me", 22), ("something", 38)]
    assert verbose.segments[0].end == verbose.segments[1].start


async def test_3_a_transcription_is_streamed(sdk: AsyncOpenAI):
    audio = np.concatenate([speech(20), silence(2), speech(15)])
    stream = await sdk.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("long.wav", file_of(audio)), stream=True
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    assert "".join(e.delta for e in events if e.type == "transcript.text.delta") == "tell me something"
    assert events[-1].text == "tell me something"


async def test_4_speech_as_the_sdk_asks_for_it_by_default_is_mp3(sdk: AsyncOpenAI):
    response = await sdk.audio.speech.create(model="tts-1", voice="alloy", input="One two three four five.")
    audio, rate = soundfile.read(io.BytesIO(response.content))
    assert response.response.headers["content-type"] == "audio/mpeg"
    assert rate == 24_000
    assert len(audio) / rate == pytest.approx(1.0, abs=0.1)


async def test_5_speech_is_streamed_as_pcm(sdk: AsyncOpenAI):
    streaming = sdk.audio.speech.with_streaming_response
    async with streaming.create(
        model="x", voice={"id": "af_heart"}, input="One, two.", response_format="pcm", speed=2
    ) as response:
        pcm = b"".join([part async for part in response.iter_bytes()])
    assert len(pcm) == 2 * 0.1 * 24_000 * 2


async def test_6_a_chat_completion(sdk: AsyncOpenAI):
    completion = await sdk.chat.completions.create(model="any-name", messages=QUESTION)
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "One two three.")
    assert choice.finish_reason == "stop"
    assert completion.model == "any-name"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 3)


async def test_7_a_chat_completion_is_streamed_with_its_usage(sdk: AsyncOpenAI):
    stream = await sdk.chat.completions.create(
        model="m", messages=QUESTION, max_tokens=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "One two"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5


async def test_8_models_and_one_model(sdk: AsyncOpenAI):
    [model] = (await sdk.models.list()).data
    assert (await sdk.models.retrieve(model.id)).id == model.id == "voice-serve"
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.models.retrieve("gpt-4o")
    assert missing.value.code == "model_not_found"


async def test_9_a_wrong_key_gets_401():
    async with sdk_of(server_of(api_keys=["right"]), "wrong") as sdk:
        with pytest.raises(openai.AuthenticationError) as refused:
            await sdk.chat.completions.create(model="m", messages=QUESTION)
    assert refused.value.code == "invalid_api_key"
    async with sdk_of(server_of(api_keys=["right"]), "right") as sdk:
        assert (await sdk.models.list()).data


async def test_10_what_is_no_sound_gets_400(sdk: AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.audio.transcriptions.create(model="whisper-1", file=("song.mp3", b"not a song" * 99))
    assert (refused.value.code, refused.value.param) == ("invalid_audio", "file")


async def test_11_too_long_a_text_and_an_unknown_voice_get_400(sdk: AsyncOpenAI):
    with pytest.raises(openai.BadRequestError) as too_long:
        await sdk.audio.speech.create(model="tts-1", voice="alloy", input="x" * 4097)
    assert (too_long.value.code, too_long.value.param) == ("invalid_value", "input")
    with pytest.raises(openai.BadRequestError, match="the voices are af_heart, any") as unknown:
        await sdk.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    assert unknown.value.param == "voice"


class Full:
    async def generate(self, *_: Any, **__: Any) -> Any:
        raise EngineBusy("all replicas are busy", stage="llm", engine="serve")
        yield


async def test_12_a_full_server_gets_503_and_when_to_come_back():
    async with sdk_of(server_of(engines=scripted(chat=Full()))) as sdk:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError) as busy:
                await sdk.chat.completions.create(model="m", messages=QUESTION, stream=stream)
            assert (busy.value.status_code, busy.value.code) == (503, "engine_busy")
            assert busy.value.response.headers["retry-after"] == "1"
