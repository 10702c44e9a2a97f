"""What every synthesizer does, run over every one."""

import asyncio
from contextlib import aclosing
from typing import Any, cast

import numpy as np
import pytest

from deployments.interfaces import BadRequest, SpeechChunk, Synthesizer, WordTime

from .factories import SYNTHESIZERS, SynthesizerFactory
from .support import RELEASE_S, cancelled_after, collected

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = [
    "Hello.",
    "One, two; three - four: five!",
    "Café naïve 😀 smile, “quoted” don't.",
    "I paid $3.50 for 1234 apples on 12/05/2024.",
    "  spaces   and\nlines \t",
]


@pytest.fixture(scope="module", params=SYNTHESIZERS, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> SynthesizerFactory:
    factory: SynthesizerFactory = request.param
    return factory


@pytest.fixture(scope="module")
def engine(factory: SynthesizerFactory) -> Synthesizer:
    return factory.build()


def seconds(chunks: list[SpeechChunk]) -> float:
    return sum(len(chunk.pcm) / 2 / chunk.sample_rate for chunk in chunks)


def words(chunks: list[SpeechChunk]) -> list[WordTime]:
    return [word for chunk in chunks for word in chunk.words]


async def test_text_becomes_sound_of_one_sample_rate(
    engine: Synthesizer, factory: SynthesizerFactory
) -> None:
    chunks = await collected(engine.synthesize(factory.text, voice=factory.voice, speed=1.0))
    assert all(chunk.pcm and len(chunk.pcm) % 2 == 0 for chunk in chunks)
    assert len({chunk.sample_rate for chunk in chunks}) == 1
    samples = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), dtype="<i2")
    assert np.abs(samples.astype(np.int32)).max() > 1000
    spoken = len(factory.text.split())
    assert 0.1 * spoken < seconds(chunks) < 1.5 * spoken


@pytest.mark.parametrize("text", ["", " \n\t "])
async def test_no_text_no_sound(engine: Synthesizer, factory: SynthesizerFactory, text: str) -> None:
    assert await collected(engine.synthesize(text, voice=factory.voice, speed=1.0)) == []


@pytest.mark.parametrize("text", TEXTS)
async def test_word_times_are_in_order_and_within_the_sound(
    engine: Synthesizer, factory: SynthesizerFactory, text: str
) -> None:
    chunks = await collected(engine.synthesize(text, voice=factory.voice, speed=1.0))
    times = words(chunks)
    assert bool(times) == factory.has_word_times
    edges = [edge for word in times for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert all(word.end_s > word.start_s for word in times)
    if times:
        assert edges[0] >= 0.0
        assert edges[-1] <= seconds(chunks) + 1e-6


@pytest.mark.parametrize("text", TEXTS)
async def test_word_times_select_whole_words(
    engine: Synthesizer, factory: SynthesizerFactory, text: str
) -> None:
    times = words(await collected(engine.synthesize(text, voice=factory.voice, speed=1.0)))
    chars = [char for word in times for char in (word.start_char, word.end_char)]
    assert chars == sorted(chars)
    for word in times:
        selected = text[word.start_char : word.end_char]
        assert selected.strip() == selected != ""
        assert not (text[: word.start_char][-1:].isalnum() and selected[0].isalnum())
        assert not (text[word.end_char :][:1].isalnum() and selected[-1].isalnum())
    if times:
        # Hardly a word is left out; a last one that is, would never count as heard.
        assert len(times) >= 0.7 * len(text.split())
        assert not any(char.isalnum() for char in text[chars[-1] :])


async def test_words_are_known_by_the_time_they_have_sounded(
    engine: Synthesizer, factory: SynthesizerFactory
) -> None:
    chunks = await collected(engine.synthesize(factory.text, voice=factory.voice, speed=1.0))
    sent_s = 0.0
    for chunk in chunks:
        for word in chunk.words:
            # Known with the chunk that it ends in, or at the latest one word's pause later.
            assert word.end_s > sent_s - 1.0
        sent_s += len(chunk.pcm) / 2 / chunk.sample_rate


async def test_faster_speech_is_shorter(engine: Synthesizer, factory: SynthesizerFactory) -> None:
    normal = await collected(engine.synthesize(factory.text, voice=factory.voice, speed=1.0))
    fast = await collected(engine.synthesize(factory.text, voice=factory.voice, speed=1.5))
    assert seconds(fast) < 0.85 * seconds(normal)


async def test_calls_at_once_do_not_mix(engine: Synthesizer, factory: SynthesizerFactory) -> None:
    texts = ["One.", factory.text, "Three little words."]
    alone = [await collected(engine.synthesize(text, voice=factory.voice, speed=1.0)) for text in texts]
    async with asyncio.TaskGroup() as calls:
        tasks = [
            calls.create_task(collected(engine.synthesize(text, voice=factory.voice, speed=1.0)))
            for text in texts
        ]
    for task, expected in zip(tasks, alone, strict=True):
        assert [word.end_char for word in words(task.result())] == [word.end_char for word in words(expected)]
        assert seconds(task.result()) == pytest.approx(seconds(expected), rel=0.02)


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.05])
async def test_a_cancelled_caller_is_released_and_the_next_call_works(
    engine: Synthesizer, factory: SynthesizerFactory, after_s: float
) -> None:
    long_text = factory.text * 40
    stream = engine.synthesize(long_text, voice=factory.voice, speed=1.0)
    assert await cancelled_after(after_s, collected(stream)) < RELEASE_S
    assert await collected(engine.synthesize("Hello.", voice=factory.voice, speed=1.0))


async def test_a_stream_that_is_closed_early_is_released(
    engine: Synthesizer, factory: SynthesizerFactory
) -> None:
    loop = asyncio.get_running_loop()
    # The protocol promises an iterator; closing it is what a generator adds, and every engine is one.
    stream = cast("Any", engine.synthesize(factory.text * 40, voice=factory.voice, speed=1.0))
    async with aclosing(stream):
        async for _ in stream:
            break
        started = loop.time()
    assert loop.time() - started < RELEASE_S


async def test_an_unknown_voice_is_a_bad_request(engine: Synthesizer, factory: SynthesizerFactory) -> None:
    with pytest.raises(BadRequest, match=factory.unknown_voice) as raised:
        await collected(engine.synthesize("Hello.", voice=factory.unknown_voice, speed=1.0))
    assert raised.value.stage == "tts"


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
async def test_a_speed_that_is_not_positive_is_a_bad_request(
    engine: Synthesizer, factory: SynthesizerFactory, speed: float
) -> None:
    with pytest.raises(BadRequest):
        await collected(engine.synthesize("Hello.", voice=factory.voice, speed=speed))
