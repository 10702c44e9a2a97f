"""What every transcriber does, run over every one."""

import asyncio
from collections.abc import Callable

import pytest

from deployments.interfaces import BadRequest, EngineBusy, Transcriber

from .factories import TRANSCRIBERS, TranscriberFactory
from .support import RELEASE_S, cancelled_after

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECOND = 2 * 16_000
"""Bytes in a second of audio."""


@pytest.fixture(scope="module", params=TRANSCRIBERS, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> TranscriberFactory:
    factory: TranscriberFactory = request.param
    return factory


@pytest.fixture(scope="module")
def engine(factory: TranscriberFactory) -> Transcriber:
    return factory.build()


@pytest.fixture
def utterance(factory: TranscriberFactory, recording: Callable[[str], bytes]) -> bytes:
    return recording(factory.recording)


async def test_words_come_out_of_speech(engine: Transcriber, utterance: bytes) -> None:
    transcript = await engine.transcribe(utterance, language="en", prompt=None)
    assert transcript.text
    assert transcript.text == transcript.text.strip()


@pytest.mark.parametrize("pcm", [b"", bytes(2), bytes(2 * SECOND)], ids=["nothing", "one sample", "2 s"])
async def test_silence_in_empty_out(engine: Transcriber, pcm: bytes) -> None:
    assert (await engine.transcribe(pcm, language="en", prompt=None)).text == ""


async def test_a_prompt_is_taken(engine: Transcriber, utterance: bytes) -> None:
    assert (await engine.transcribe(utterance, language="en", prompt="We talk about cards.")).text


async def test_the_same_speech_gives_the_same_words_whatever_came_before(
    engine: Transcriber, utterance: bytes
) -> None:
    first = await engine.transcribe(utterance, language="en", prompt=None)
    await engine.transcribe(utterance[: len(utterance) // 4 * 2], language="en", prompt=None)
    assert await engine.transcribe(utterance, language="en", prompt=None) == first


async def test_calls_at_once_do_not_mix(engine: Transcriber, utterance: bytes) -> None:
    alone = await engine.transcribe(utterance, language="en", prompt=None)
    inputs = [utterance, bytes(SECOND), utterance, bytes(SECOND), utterance]
    async with asyncio.TaskGroup() as calls:
        tasks = [calls.create_task(engine.transcribe(pcm, language="en", prompt=None)) for pcm in inputs]
    assert [task.result().text for task in tasks] == [alone.text, "", alone.text, "", alone.text]


async def test_an_interim_is_heard(engine: Transcriber, utterance: bytes) -> None:
    interim = await engine.transcribe(utterance, language="en", prompt=None, is_interim=True)
    assert interim.text == interim.text.strip() != ""


async def test_an_interim_takes_nothing_from_the_final(engine: Transcriber, utterance: bytes) -> None:
    final = await engine.transcribe(utterance, language="en", prompt=None)
    for cut in (len(utterance) // 4 * 2, len(utterance)):
        await engine.transcribe(utterance[:cut], language="en", prompt=None, is_interim=True)
    assert await engine.transcribe(utterance, language="en", prompt=None) == final


async def test_an_interim_is_refused_while_finals_run_or_wait(engine: Transcriber, utterance: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as calls:
        finals = [
            calls.create_task(engine.transcribe(utterance * 4, language="en", prompt=None)) for _ in range(3)
        ]
        await asyncio.sleep(0.001)
        started = loop.time()
        with pytest.raises(EngineBusy):
            await engine.transcribe(utterance, language="en", prompt=None, is_interim=True)
        assert loop.time() - started < RELEASE_S
        assert not all(final.done() for final in finals)
    assert all(final.result() == finals[0].result() for final in finals)


async def test_a_final_that_meets_an_interim_is_heard_and_the_interim_ends(
    engine: Transcriber, utterance: bytes
) -> None:
    alone = await engine.transcribe(utterance, language="en", prompt=None)

    async def interim() -> str | EngineBusy:
        try:
            long = utterance * 8
            return (await engine.transcribe(long, language="en", prompt=None, is_interim=True)).text
        except EngineBusy as busy:
            return busy

    async with asyncio.TaskGroup() as calls:
        under_way = calls.create_task(interim())
        await asyncio.sleep(0.05)
        assert await engine.transcribe(utterance, language="en", prompt=None) == alone
    assert under_way.result()


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
async def test_a_cancelled_interim_is_released_and_the_next_call_works(
    engine: Transcriber, utterance: bytes, after_s: float
) -> None:
    long = engine.transcribe(utterance * 8, language="en", prompt=None, is_interim=True)
    assert await cancelled_after(after_s, long) < RELEASE_S
    assert (await engine.transcribe(utterance, language="en", prompt=None, is_interim=True)).text


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
async def test_a_cancelled_caller_is_released_and_the_next_call_works(
    engine: Transcriber, utterance: bytes, after_s: float
) -> None:
    long_utterance = utterance * 8
    released_s = await cancelled_after(after_s, engine.transcribe(long_utterance, language="en", prompt=None))
    assert released_s < RELEASE_S
    assert (await engine.transcribe(utterance, language="en", prompt=None)).text


async def test_cancelled_calls_that_wait_are_never_begun(engine: Transcriber, utterance: bytes) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    await engine.transcribe(utterance, language="en", prompt=None)
    alone_s = loop.time() - started
    async with asyncio.TaskGroup() as calls:
        waiting = [
            calls.create_task(engine.transcribe(utterance, language="en", prompt=None)) for _ in range(40)
        ]
        await asyncio.sleep(0.01)
        for task in waiting:
            task.cancel()
    started = loop.time()
    await engine.transcribe(utterance, language="en", prompt=None)
    # Forty forwards would take 40 times as long, or 20 times on two slots; a slot may have to come back first.
    assert loop.time() - started < 10 * alone_s + 3.0


async def test_half_a_sample_is_a_bad_request(engine: Transcriber) -> None:
    with pytest.raises(BadRequest) as raised:
        await engine.transcribe(bytes(321), language="en", prompt=None)
    assert raised.value.stage == "stt"


async def test_a_language_that_the_engine_does_not_know_is_a_bad_request(
    factory: TranscriberFactory, engine: Transcriber, utterance: bytes
) -> None:
    if factory.refused_language is None:
        pytest.skip(f"{factory.name} refuses no language")
    with pytest.raises(BadRequest, match=factory.refused_language):
        await engine.transcribe(utterance, language=factory.refused_language, prompt=None)
