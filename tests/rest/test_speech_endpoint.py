"""`/v1/audio/speech`: what is said, in which voice and format, and how early."""

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from ingress.asgi import server_of
from rest.wire import asked, events_in, http_of
from session.calls import scripted

from deployments.engines.scripted_code import decode_words
from deployments.interfaces import SpeechChunk
from deployments.options import ScriptedTts
from serve_app.audio.pcm import decode_pcm
from serve_app.server import VoiceServer

FAST = ScriptedTts(first_audio_s=0, word_s=0.2, realtime_factor=0)


class Recording:
    """Says nothing, in a tenth of a second, and remembers what it was asked to say."""

    voices = ()

    def __init__(self, rate: int = 24_000) -> None:
        self.rate = rate
        self.asked: list[tuple[str, str, float]] = []

    async def synthesize(self, text: str, *, voice: str, speed: float) -> Any:
        self.asked.append((text, voice, speed))
        yield SpeechChunk(bytes(self.rate // 10 * 2), self.rate)


def server(synthesizer: Any = None, **config: Any) -> VoiceServer:
    engines = scripted(tts=FAST, **({"synthesizer": synthesizer} if synthesizer else {}))
    return server_of(engines=engines, **config)


async def say(where: VoiceServer, **fields: Any) -> Any:
    async with http_of(where) as http:
        return await http.post("/v1/audio/speech", json={"response_format": "pcm", **fields})


async def test_every_word_is_said_in_its_order():
    text = ", ".join(f"word{number}" for number in range(40)) + "."
    response = await say(server(), input=text)
    words = decode_words(decode_pcm(response.content), 24_000, word_s=0.2)
    assert [number for number, _, _ in words] == list(range(40))


async def test_a_text_is_said_in_segments_a_short_one_first():
    voice = Recording()
    await say(server(voice), input="Well, that is one sentence. And here is the second one. ")
    assert [text for text, _, _ in voice.asked] == [
        "Well, that is one sentence.",
        "And here is the second one.",
    ]


async def test_the_first_sound_does_not_wait_for_the_second_segment():
    hold = asyncio.Event()

    class Slow(Recording):
        async def synthesize(self, text: str, *, voice: str, speed: float) -> Any:
            if self.asked:
                await hold.wait()
            async for chunk in super().synthesize(text, voice=voice, speed=speed):
                yield chunk

    body = json.dumps({"input": "Here is the first. Here is the second.", "response_format": "mp3"}).encode()
    async with asked(server(Slow()), "/v1/audio/speech", body) as (exchange, _):
        await exchange.until(lambda: len(exchange.body) > 0)
        assert not exchange.is_whole
        hold.set()
    assert exchange.is_whole


@pytest.mark.parametrize(
    ("fields", "voice", "speed"),
    [
        ({}, "af_heart", 1.1),
        ({"voice": "alloy"}, "af_heart", 1.1),
        ({"voice": "any"}, "any", 1.1),
        ({"voice": {"id": "any"}}, "any", 1.1),
        ({"speed": 0.25}, "af_heart", 0.25),
        ({"speed": 4, "instructions": "whisper", "model": "tts-1"}, "af_heart", 4.0),
    ],
)
async def test_the_voice_and_the_speed(fields: dict[str, Any], voice: str, speed: float):
    engine = Recording()
    response = await say(
        server(engine, tts={"engine": "scripted", "speed": 1.1}), input="Hello there.", **fields
    )
    assert response.status_code == 200
    assert engine.asked == [("Hello there.", voice, speed)]


async def test_a_mixture_of_voices_where_the_engine_mixes_them():
    engine, mixture = Recording(), "af_heart:0.7,any:0.3"
    mixing = server(engine, tts={"engine": "kokoro"})
    assert (await say(mixing, input="Hello.", voice=mixture)).status_code == 200
    assert [voice for _, voice, _ in engine.asked] == [mixture]
    assert (await say(mixing, input="Hello.", voice="af_heart:0.7,nobody:0.3")).status_code == 400
    assert (await say(server(), input="Hello.", voice=mixture)).status_code == 400


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["x"]}, "invalid_type", "input"),
        ({"input": "x", "voice": "someone"}, "invalid_value", "voice"),
        ({"input": "x", "voice": {"name": "any"}}, "invalid_type", "voice"),
        ({"input": "x", "speed": 0.2}, "invalid_value", "speed"),
        ({"input": "x", "speed": 4.1}, "invalid_value", "speed"),
        ({"input": "x", "response_format": "midi"}, "invalid_value", "response_format"),
        ({"input": "x", "stream_format": "ws"}, "invalid_value", "stream_format"),
    ],
)
async def test_what_cannot_be_said_is_refused(fields: dict[str, Any], code: str, param: str):
    response = await say(server(), **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)


async def test_a_voice_that_only_the_engine_knows_not_to_have_is_refused_too():
    response = await say(server(voices=()), input="Hello.", voice="nobody")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "engine_bad_request"


async def test_where_there_is_nothing_to_say_a_moment_of_silence_is_given():
    voice = Recording()
    response = await say(server(voice), input="😀 ...")
    assert (response.status_code, voice.asked) == (200, [])
    assert response.content == bytes(4800)


async def test_events_carry_the_same_file():
    response = await say(server(), input="One, two, three.", stream_format="sse")
    *deltas, done = events_in(response.text)
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 1
    assert done["type"] == "speech.audio.done"
    assert audio == (await say(server(), input="One, two, three.")).content


async def test_a_voice_of_another_rate_is_given_at_24_khz():
    response = await say(server(Recording(22_050)), input="Here is the first. Here is the second.")
    assert len(response.content) == pytest.approx(0.2 * 24_000 * 2, abs=4)


async def test_ssml_is_followed():
    voice = Recording()
    ssml = "\n<speak>Hello <break time='500ms'/><prosody rate='slow'>there <sub alias='you'>u</sub></prosody></speak>"
    response = await say(server(voice), input=ssml, speed=2)
    assert response.status_code == 200
    assert [(text.strip(), speed) for text, _, speed in voice.asked] == [("Hello", 2.0), ("there you", 1.5)]
    assert len(response.content) == (0.1 + 0.5 + 0.1) * 24_000 * 2


@pytest.mark.parametrize(
    ("ssml", "why"),
    [
        ("<speak>Hello <break time='1s'/> there</speak", "line 1"),
        ("<speak>\n<audio src='x'/></speak>", "line 2: <audio> is not supported"),
        ("<!DOCTYPE speak [<!ENTITY a 'b'>]><speak>&a;</speak>", "document type"),
        ("<?xml version='1.0'?><speak><mark name='x'/></speak>", "<mark> is not supported"),
    ],
)
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_ssml_that_cannot_be_followed_is_refused(ssml: str, why: str, stream_format: str):
    voice = Recording()
    response = await say(server(voice), input=ssml, stream_format=stream_format)
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]
    assert voice.asked == []


async def test_the_voices():
    async with http_of(server(voices=["b", "a"])) as http:
        listed = (await http.get("/v1/audio/voices")).json()
    assert listed == {"voices": [{"id": name, "name": name} for name in ("a", "af_heart", "b")]}


async def test_the_voices_while_nobody_can_name_them():
    async with http_of(server(voices=TimeoutError())) as http:
        listed = (await http.get("/v1/audio/voices")).json()
    assert listed == {"voices": [{"id": "af_heart", "name": "af_heart"}]}
    assert np.all([voice.keys() == {"id", "name"} for voice in listed["voices"]])


@pytest.mark.parametrize("text", ["<speaker> said hello.", "One < two.", "Say <speak> to me."])
async def test_what_only_looks_like_ssml_is_text(text: str):
    voice = Recording()
    assert (await say(server(voice), input=text)).status_code == 200
    assert " ".join(said for said, _, _ in voice.asked) == text
