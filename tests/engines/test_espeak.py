import logging
from contextlib import aclosing
from time import perf_counter
from typing import Any, cast

import numpy as np
import pytest

from deployments.engines.espeak import EspeakSynthesizer
from deployments.interfaces import BadRequest, SpeechChunk
from deployments.options import TtsOptions

from .support import collected


@pytest.fixture
def voice() -> EspeakSynthesizer:
    return EspeakSynthesizer(TtsOptions(engine="espeak"))


async def spoken(voice: EspeakSynthesizer, text: str, name: str = "en-us") -> list[SpeechChunk]:
    return await collected(voice.synthesize(text, voice=name, speed=1.0))


def seconds(chunks: list[SpeechChunk]) -> float:
    """Two syntheses agree within a millisecond and not in samples: espeak has some randomness in it."""
    return sum(len(chunk.pcm) for chunk in chunks) / 2 / 22_050


def selected(text: str, chunks: list[SpeechChunk]) -> list[str]:
    return [text[word.start_char : word.end_char] for chunk in chunks for word in chunk.words]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world.",
        "I have 1234 apples and $3.50, Dr. Smith e.g. on 12/05/2024.",
        "café naïve 😀 smile “quoted” don't well-known",
        "😀😀 after two emoji, 10:30pm at a@b.com!",
        "日本語 hello",
    ],
)
async def test_every_word_has_its_time_at_its_place_in_the_text(voice: EspeakSynthesizer, text: str) -> None:
    assert selected(text, await spoken(voice, text)) == text.split()


async def test_a_word_ends_where_its_sound_ends_and_not_after_the_pause(voice: EspeakSynthesizer) -> None:
    chunks = await spoken(voice, "Hello. World.")
    hello, world = (word for chunk in chunks for word in chunk.words)
    samples = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), dtype="<i2")
    pause = samples[round(hello.end_s * 22_050) : round(world.start_s * 22_050)]
    assert len(pause) > 0.2 * 22_050
    assert np.abs(pause).max() <= 164
    assert np.abs(samples[round(hello.end_s * 22_050) - 22 :][:22]).max() > 164


async def test_chunks_are_short(voice: EspeakSynthesizer) -> None:
    assert (
        max(len(chunk.pcm) / 2 / 22_050 for chunk in await spoken(voice, "A sentence of some length.")) < 0.1
    )


async def test_a_kokoro_voice_is_spoken_in_its_language_and_the_log_says_it_once(
    voice: EspeakSynthesizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        american = [seconds(await spoken(voice, "schedule a tomato", "af_heart")) for _ in range(2)]
        british = seconds(await spoken(voice, "schedule a tomato", "bf_emma"))
    assert american == pytest.approx(
        [seconds(await spoken(voice, "schedule a tomato", "en-us"))] * 2, abs=0.01
    )
    assert british == pytest.approx(seconds(await spoken(voice, "schedule a tomato", "en-gb")), abs=0.01)
    assert abs(british - american[0]) > 0.03
    assert [(record.__dict__["voice"], record.__dict__["spoken_by"]) for record in caplog.records] == [
        ("af_heart", "en-us"),
        ("bf_emma", "en-gb"),
    ]


async def test_an_unknown_voice_names_some_that_exist(voice: EspeakSynthesizer) -> None:
    with pytest.raises(BadRequest, match="en-us"):
        await spoken(voice, "hello", "xx-nowhere")


@pytest.mark.parametrize("text", ["a\0b c", "\ud800 lone surrogate", "<b>not markup</b> [[fish]] &amp;", "—"])
async def test_odd_text_is_spoken_without_an_error(voice: EspeakSynthesizer, text: str) -> None:
    assert isinstance(await spoken(voice, text), list)


async def test_a_speed_beyond_espeaks_range_is_brought_into_it(voice: EspeakSynthesizer) -> None:
    slowest = await collected(voice.synthesize("hello", voice="en-us", speed=0.01))
    slow = await collected(voice.synthesize("hello", voice="en-us", speed=80 / 175))
    assert seconds(slowest) == pytest.approx(seconds(slow), abs=0.01)


async def test_a_stopped_synthesis_computes_no_more(voice: EspeakSynthesizer) -> None:
    long_text = "Something quite long, which goes on and on. " * 2000
    # The protocol promises an iterator; closing it is what a generator adds, and every engine is one.
    stream = cast("Any", voice.synthesize(long_text, voice="en-us", speed=1.0))
    async with aclosing(stream):
        async for _ in stream:
            break
        started = perf_counter()
    await spoken(voice, "Hello.")
    after_stop_s = perf_counter() - started
    started = perf_counter()
    await spoken(voice, long_text)
    assert after_stop_s < (perf_counter() - started) / 2
