import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import jiwer
import numpy as np
import pytest

from deployments.engines.pocketsphinx import PocketsphinxTranscriber
from deployments.interfaces import EngineBusy, EngineFailed
from deployments.options import SttOptions

from .support import RELEASE_S, cancelled_after


@pytest.fixture
def ears() -> PocketsphinxTranscriber:
    return PocketsphinxTranscriber(SttOptions(engine="pocketsphinx", threads=1))


async def test_a_short_command_is_understood(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    heard = await ears.transcribe(recording("speech/cards-001.flac"), language="en-US", prompt=None)
    assert jiwer.wer("ten of clubs", heard.text) <= 0.34
    assert heard.language == "en"


async def test_the_event_loop_goes_on_while_it_decodes(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    pcm = recording("speech/jfk.flac")
    ticks = 0
    async with asyncio.TaskGroup() as calls:
        task = calls.create_task(ears.transcribe(pcm, language="en", prompt=None))
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
    # Over a second of decoding. With the decoder in a thread of this process it was three ticks.
    assert ticks > 30


async def test_a_process_that_dies_fails_its_call_and_is_replaced(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    pcm = recording("speech/cards-001.flac")
    worker = ears._finals.workers.get()
    worker.kill()
    ears._finals.workers.put(worker)
    with pytest.raises(EngineFailed):
        await ears.transcribe(pcm, language="en", prompt=None)
    assert (await ears.transcribe(pcm, language="en", prompt=None)).text


async def test_quiet_noise_is_not_decoded(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    assert (await ears.transcribe(recording("noise/friction0.flac"), language="en", prompt=None)).text == ""


@pytest.mark.parametrize("name", ["office-ambience", "sb-noise1", "sb-noise3", "sb-noise5", "sheep", "dog"])
async def test_noise_without_people_has_no_words(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes], name: str
) -> None:
    pcm = recording(f"noise/{name}.flac")[: 2 * 16_000 * 12]
    assert (await ears.transcribe(pcm, language="en", prompt=None)).text == ""


async def test_music_has_no_words(ears: PocketsphinxTranscriber) -> None:
    seconds = np.arange(6 * 16_000) / 16_000
    chords = np.stack([[220.0, 277.2, 329.6], [196.0, 246.9, 293.7]])[(seconds // 1.5).astype(int) % 2]
    notes = np.sin(2 * np.pi * chords * seconds[:, None]).mean(axis=1) * np.exp(-(seconds % 0.75))
    pcm = (notes * 12_000).astype("<i2").tobytes()
    assert (await ears.transcribe(pcm, language="en", prompt=None)).text == ""


async def test_a_pause_in_an_utterance_does_not_make_it_noise(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    pcm = bytes(4 * 32_000) + recording("speech/cards-004.flac") + bytes(4 * 32_000)
    assert (await ears.transcribe(pcm, language="en", prompt=None)).text


async def test_a_final_does_not_wait_for_an_interim(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    short, minute = recording("speech/cards-001.flac"), recording("speech/jfk.flac") * 6
    loop = asyncio.get_running_loop()
    await ears.transcribe(short, language="en", prompt=None, is_interim=True)  # the slot is made
    started = loop.time()
    await ears.transcribe(short, language="en", prompt=None)
    alone_s = loop.time() - started
    async with asyncio.TaskGroup() as calls:
        interim = calls.create_task(
            refused(ears.transcribe(minute, language="en", prompt=None, is_interim=True))
        )
        await asyncio.sleep(0.1)
        started = loop.time()
        await ears.transcribe(short, language="en", prompt=None)
        # The minute takes 60 times as long.
        assert loop.time() - started < 15 * alone_s + 1.0
    assert interim.result()


async def refused(call: Coroutine[Any, Any, object]) -> bool:
    with suppress(EngineBusy):
        await call
        return False
    return True


async def test_a_cancel_frees_the_slot_before_the_work_could_have_ended(
    ears: PocketsphinxTranscriber, recording: Callable[[str], bytes]
) -> None:
    short, minute = recording("speech/cards-001.flac"), recording("speech/jfk.flac") * 6
    loop = asyncio.get_running_loop()
    started = loop.time()
    await ears.transcribe(short, language="en", prompt=None)
    a_second_s = loop.time() - started
    assert await cancelled_after(0.1, ears.transcribe(minute, language="en", prompt=None)) < RELEASE_S
    started = loop.time()
    await ears.transcribe(short, language="en", prompt=None)
    # The minute would hold the slot 60 times as long; a new process takes a third of a second.
    assert loop.time() - started < 15 * a_second_s + 2.0
