import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.scripted import (
    SAMPLE_RATE,
    ScriptedChatModel,
    ScriptedSynthesizer,
    ScriptedTranscriber,
    numbered_answer,
    word_number,
)
from deployments.engines.scripted_code import decode_words, encode_word
from deployments.interfaces import NO_TOOLS, ChatMessage, Sampling, Tools
from deployments.options import (
    LlmOptions,
    ScriptedLlm,
    ScriptedStt,
    ScriptedTts,
    SttOptions,
    TtsOptions,
)
from serve_app.audio import pcm
from serve_app.audio.resampling import StreamingResampler

from .calling import MUST_CALL, TOOLS, calls_in, weather_of
from .support import cancelled_after, collected

Audio = npt.NDArray[np.float32]
QUICK = ScriptedTts(first_audio_s=0.0, realtime_factor=0.0)
LOUD = np.full(160, 1000, dtype="<i2").tobytes()
CHANNELS = ["pcm", "mu-law", "a-law"]


def through(channel: str, audio: Audio, rate: int) -> Audio:
    resampler = StreamingResampler(SAMPLE_RATE, rate)
    audio = pcm.decode_pcm(pcm.encode_pcm(np.concatenate([resampler.push(audio), resampler.flush()])))
    match channel:
        case "mu-law":
            return pcm.decode_mu_law(pcm.encode_mu_law(audio))
        case "a-law":
            return pcm.decode_a_law(pcm.encode_a_law(audio))
        case _:
            return audio


@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=12),
    word_s=st.sampled_from([0.06, 0.1, 0.3]),
    rate=st.sampled_from([8_000, 16_000, 24_000]),
    channel=st.sampled_from(CHANNELS),
    gain=st.floats(0.3, 1.0),
    silence_s=st.floats(0.0, 0.5),
    cut=st.floats(0.0, 1.0),
)
def test_a_listener_tells_which_words_it_heard_and_until_when(
    numbers: list[int], word_s: float, rate: int, channel: str, gain: float, silence_s: float, cut: float
) -> None:
    samples = round(word_s * SAMPLE_RATE)
    speech = np.concatenate([encode_word(number, samples, SAMPLE_RATE) for number in numbers])
    speech = speech[: round(cut * len(speech))] * np.float32(gain)
    before = np.zeros(round(silence_s * SAMPLE_RATE), dtype=np.float32)
    after = np.zeros(SAMPLE_RATE // 10, dtype=np.float32)
    heard = decode_words(through(channel, np.concatenate([before, speech, after]), rate), rate, word_s)
    start_s, end_s = len(before) / SAMPLE_RATE, (len(before) + len(speech)) / SAMPLE_RATE
    expected = [
        (number, start_s + index * word_s, min(start_s + (index + 1) * word_s, end_s))
        for index, number in enumerate(numbers)
        if start_s + index * word_s < end_s
    ]
    if expected and expected[-1][2] - expected[-1][1] < 0.016 and len(heard) < len(expected):
        expected.pop()  # a rest that short need not be reported, and may be taken for the end of the word before
    assert [number for number, _, _ in heard] == [number for number, _, _ in expected]
    # With no whole word in it, the loudness that an edge is measured against is a guess.
    precision_s = 0.004 if len(speech) > samples else 0.01
    for (_, *times), (_, *true_times) in zip(heard[:-1], expected[:-1], strict=True):
        assert times == pytest.approx(true_times, abs=precision_s)
    if heard:
        assert heard[-1][1] == pytest.approx(expected[-1][1], abs=precision_s)
        assert heard[-1][2] == pytest.approx(min(expected[-1][1] + word_s, end_s), abs=0.016)


def test_no_words_in_silence_and_in_nothing() -> None:
    assert decode_words(np.zeros(8000, dtype=np.float32), 8000, 0.3) == []
    assert decode_words(np.zeros(0, dtype=np.float32), 8000, 0.3) == []


def test_a_word_said_three_times_is_three_words() -> None:
    audio = np.tile(encode_word(9, 7200, SAMPLE_RATE), 3)
    assert [number for number, _, _ in decode_words(audio, SAMPLE_RATE, 0.3)] == [9, 9, 9]


async def test_the_words_of_an_answer_in_two_segments_are_heard_with_their_numbers() -> None:
    voice = ScriptedSynthesizer(TtsOptions(scripted=QUICK))
    text = numbered_answer(20)
    split = text.index("word8")
    heard = []
    for segment in (text[:split], text[split:]):
        chunks = await collected(voice.synthesize(segment, voice="any", speed=1.5))
        audio = pcm.decode_pcm(b"".join(chunk.pcm for chunk in chunks))
        words = [word for chunk in chunks for word in chunk.words]
        decoded = decode_words(audio, SAMPLE_RATE, 0.2)
        heard += [number for number, _, _ in decoded]
        assert [start for _, start, _ in decoded] == pytest.approx([w.start_s for w in words], abs=0.004)
        assert [end for _, _, end in decoded] == pytest.approx([w.end_s for w in words], abs=0.004)
    assert heard == list(range(20))


def test_the_built_in_answer_is_a_clause_and_sentences() -> None:
    answer = numbered_answer(10)
    assert answer == "word0 word1 word2, word3 word4 word5 word6 word7. word8 word9."
    assert [word_number(word, -1) for word in answer.split()] == list(range(10))


def test_a_word_without_a_number_is_coded_by_its_index() -> None:
    assert word_number("hello,", 3) == 3


async def test_word_times_can_be_left_out() -> None:
    voice = ScriptedSynthesizer(TtsOptions(scripted=replace(QUICK, has_word_times=False)))
    chunks = await collected(voice.synthesize("one two", voice="any", speed=1.0))
    assert [chunk.words for chunk in chunks] == [(), ()]


async def test_transcripts_are_given_in_turn_and_silence_takes_no_turn() -> None:
    ears = ScriptedTranscriber(SttOptions(scripted=ScriptedStt(latency_s=0.0, transcripts=("one", "two"))))
    heard = [await ears.transcribe(audio, language=None, prompt=None) for audio in (LOUD, b"", LOUD, LOUD)]
    assert [transcript.text for transcript in heard] == ["one", "", "two", "one"]


async def test_an_interim_is_the_beginning_of_the_transcript_that_comes() -> None:
    ears = ScriptedTranscriber(
        SttOptions(scripted=ScriptedStt(latency_s=0.0, transcripts=("one two three", "four")))
    )
    growing = [LOUD * 10 * tenths for tenths in (1, 3, 7, 30)]
    heard = [await ears.transcribe(audio, language=None, prompt=None, is_interim=True) for audio in growing]
    assert [interim.text for interim in heard] == ["", "one", "one two", "one two three"]
    assert (await ears.transcribe(LOUD, language=None, prompt=None)).text == "one two three"


async def test_answers_are_given_in_turn_and_tokens_join_to_the_text() -> None:
    options = ScriptedLlm(first_token_s=0.0, tokens_per_s=1e6, answers=("Well, yes.", ""))
    mind = ScriptedChatModel(LlmOptions(scripted=options))
    texts = []
    for _ in range(3):
        deltas = await collected(mind.generate([ChatMessage("user", "a b")], sampling=Sampling()))
        texts.append("".join(delta.text for delta in deltas))
        assert deltas[-1].finish_reason == "stop"
    assert texts == ["Well, yes.", "", "Well, yes."]


async def test_calls_are_counted_exactly() -> None:
    mind = ScriptedChatModel(LlmOptions(scripted=ScriptedLlm(first_token_s=0.0, tokens_per_s=1000)))
    messages = [ChatMessage("user", "hi")]

    await collected(mind.generate(messages, sampling=Sampling()))
    assert (mind.started, mind.active, mind.cancelled) == (1, 0, 0)

    stream = cast("Any", mind.generate(messages, sampling=Sampling()))
    async with aclosing(stream):
        async for _ in stream:
            assert mind.active == 1
            break
    assert (mind.started, mind.active, mind.cancelled) == (2, 0, 1)

    stream = cast("Any", mind.generate(messages, sampling=Sampling()))
    async with aclosing(stream):
        async for delta in stream:
            if delta.finish_reason:
                break
    assert (mind.started, mind.active, mind.cancelled) == (3, 0, 1)

    ears = ScriptedTranscriber(SttOptions(scripted=ScriptedStt(latency_s=60.0)))
    await cancelled_after(0.01, ears.transcribe(LOUD, language=None, prompt=None))
    assert (ears.started, ears.active, ears.cancelled) == (1, 0, 1)


async def test_latencies_are_the_set_ones() -> None:
    loop = asyncio.get_running_loop()
    options = ScriptedLlm(first_token_s=0.05, tokens_per_s=100, answer_words=6)
    mind = ScriptedChatModel(LlmOptions(scripted=options))
    started = loop.time()
    stream = mind.generate([ChatMessage("user", "hi")], sampling=Sampling())
    times = [loop.time() - started async for _ in stream]
    # Never early; how late depends on the machine.
    assert all(at >= 0.05 + index / 100 - 0.002 for index, at in enumerate(times))


CALLING = ScriptedLlm(
    first_token_s=0, tokens_per_s=1e6, answers=("It is {output}.",), calls=('{"city":"Rome"}', "{}")
)


@pytest.mark.parametrize(
    ("tools", "output", "calls"),
    [(TOOLS, False, 2), (MUST_CALL, True, 2), (TOOLS, True, 0), (NO_TOOLS, False, 0)],
)
async def test_calls_are_made_where_they_are_offered_and_not_of_an_output(
    tools: Tools, output: bool, calls: int
) -> None:
    mind = ScriptedChatModel(LlmOptions(scripted=CALLING))
    messages = weather_of("Rome") if output else [ChatMessage("user", "hi")]
    deltas = await collected(mind.generate(messages, sampling=Sampling(), tools=tools))
    made = calls_in(deltas)
    assert [call.arguments for call in made] == ['{"city":"Rome"}', "{}"][:calls]
    assert len({call.call_id for call in made}) == calls
    assert "".join(delta.text for delta in deltas) == ("It is Sunny.." if output else "It is .")
    assert deltas[-1].finish_reason == "stop"
