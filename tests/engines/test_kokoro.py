"""Kokoro on random weights of its architecture; what every synthesizer does is in test_synthesizers.py."""

import asyncio
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.engines import create
from deployments.engines.kokoro import SAMPLE_RATE, KokoroSynthesizer, _lead, _split, _Words
from deployments.interfaces import BadRequest, EngineFailed, SpeechChunk, WordTime
from deployments.options import TtsOptions

from . import kokoro_weights
from .support import RELEASE_S, cancelled_after, collected

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Token:
    """misaki's, as far as the engine looks at it."""

    text: str
    phonemes: str | None
    whitespace: str = " "
    start_ts: float | None = None
    end_ts: float | None = None


@pytest.fixture(scope="module")
def folder(shared_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "kokoro"
    kokoro_weights.write(folder, shared_models / "kokoro-voices")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> KokoroSynthesizer:
    engine: KokoroSynthesizer = create(TtsOptions(engine="kokoro", model=str(folder)))
    return engine


async def speak(
    engine: KokoroSynthesizer, text: str, *, voice: str = "af_heart", speed: float = 1.0
) -> list[SpeechChunk]:
    return await collected(engine.synthesize(text, voice=voice, speed=speed))


def times(chunks: list[SpeechChunk]) -> list[WordTime]:
    return [word for chunk in chunks for word in chunk.words]


async def test_every_word_has_its_time(engine: KokoroSynthesizer) -> None:
    text = "  I don't pay $3.50\nfor that, “ok”? "
    chunks = await speak(engine, text)
    words = times(chunks)
    assert [text[word.start_char : word.end_char] for word in words] == text.split()
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(chunks[0].pcm) / 2 / SAMPLE_RATE


async def test_faster_speech_is_shorter(engine: KokoroSynthesizer) -> None:
    slow, fast = [await speak(engine, "One two three four five.", speed=speed) for speed in (0.5, 1.0)]
    assert len(slow[0].pcm) > 1.3 * len(fast[0].pcm)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
async def test_a_speed_that_is_not_positive_is_a_bad_request(engine: KokoroSynthesizer, speed: float) -> None:
    with pytest.raises(BadRequest, match="speed"):
        await speak(engine, "Hello.", speed=speed)


@pytest.mark.parametrize("voice", ["nobody", "", "../af_heart", "af_heart.pt"])
async def test_an_unknown_voice_is_told_which_there_are(engine: KokoroSynthesizer, voice: str) -> None:
    with pytest.raises(BadRequest, match="there are af_heart, bf_emma"):
        await speak(engine, "Hello.", voice=voice)


async def test_the_voices_are_those_that_can_speak(engine: KokoroSynthesizer) -> None:
    assert engine.voices == ("af_heart", "bf_emma")


async def test_a_voice_of_another_language_is_a_bad_request(engine: KokoroSynthesizer) -> None:
    with pytest.raises(BadRequest, match="does not speak English"):
        await speak(engine, "Hello.", voice="zf_xiaobei")


async def test_american_and_british_voices_have_their_own_phonemes(engine: KokoroSynthesizer) -> None:
    american, british = (engine._pieces("The bath water.", accent)[0].phonemes for accent in "ab")
    assert "bˈæθ" in american
    assert "bˈɑːθ" in british


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("to record the record", "tə ɹəkˈɔɹd ðə ɹˈɛkəɹd"),
        ("you use the use", "ju jˈuz ðə jˈus"),
        ("it has read", "ɪt hæz ɹˈɛd"),
        ("$3.50", "θɹˈi dˈɑləɹz ænd fˈɪfti sˈɛnts"),
        ("5%", "fˈIv pəɹsˈɛnt"),
        ("I am", "ˌI æm"),
        ("[Kokoro](/kˈOkəɹO/)", "kˈOkəɹO"),
    ],
)
async def test_phonemes_need_no_spacy_model(engine: KokoroSynthesizer, text: str, phonemes: str) -> None:
    assert engine._pieces(text, "a")[0].phonemes == phonemes


async def test_a_word_in_no_dictionary_is_spelled(engine: KokoroSynthesizer) -> None:
    assert len(engine._pieces("frobnicator", "a")[0].phonemes) > 6


@pytest.mark.parametrize("text", ["...", "😀", "?! —", ""])
async def test_a_text_without_words_is_silent(engine: KokoroSynthesizer, text: str) -> None:
    assert await speak(engine, text) == []


async def test_digits_without_end_do_not_break_the_engine(engine: KokoroSynthesizer) -> None:
    with suppress(EngineFailed):
        engine._pieces("9" * 400, "a")


async def test_a_text_over_the_limit_becomes_pieces_cut_at_the_best_mark() -> None:
    sentence = [*[Token("word", "wɜɹd")] * 40, Token(".", ".")]
    clause = [*[Token("word", "wɜɹd")] * 70, Token(",", ","), *[Token("word", "wɜɹd")] * 60]
    pieces = list(_split([*sentence, *sentence, *sentence, *clause]))
    assert all(0 < len(piece.phonemes) <= 510 for piece in pieces)
    assert [token for piece in pieces for token in piece.tokens] == [*sentence, *sentence, *sentence, *clause]
    assert pieces[0].phonemes.endswith(".")
    assert len(pieces[0].tokens) == 2 * len(sentence)


async def test_no_phoneme_is_lost_between_pieces() -> None:
    pieces = list(_split([Token("word", "wɜɹd")] * 150))
    assert "".join(piece.phonemes for piece in pieces).replace(" ", "") == "wɜɹd" * 150


async def test_one_word_over_the_limit_is_cut() -> None:
    assert [len(piece.phonemes) for piece in _split([Token("a" * 600, "a" * 600), Token("b", "b")])] == [
        510,
        1,
    ]


async def test_times_count_over_all_chunks() -> None:
    words = _Words("one two three")
    first = words.place([Token("one", "w", start_ts=0.3, end_ts=0.6)], shift_s=-0.2, samples=SAMPLE_RATE)
    tokens = [Token("two", "t", start_ts=0.1, end_ts=0.4), Token("three", "θ", start_ts=0.5, end_ts=9.0)]
    second = words.place(tokens, shift_s=0.0, samples=SAMPLE_RATE)
    assert first == (WordTime(0, 3, pytest.approx(0.1), pytest.approx(0.4)),)
    assert second == (WordTime(4, 7, 1.1, 1.4), WordTime(8, 13, 1.5, 2.0))


async def test_lead_silence_is_cut_but_no_word() -> None:
    audio = np.concatenate([np.full(6000, 1e-4), np.full(6000, 0.5)]).astype(np.float32)
    assert _lead(audio, [Token("a", "a", start_ts=0.25)]) == 6000 - 480
    assert _lead(audio, [Token("a", "a", start_ts=0.1)]) == 2400
    assert _lead(np.zeros(100, np.float32), [Token("a", "a", start_ts=0.1)]) == 0


async def test_one_forward_at_a_time_and_none_after_a_cancel(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on, begun = threading.Event(), threading.Event(), []
    forward = engine._forward

    def slow(*args: Any) -> Any:
        begun.append(args[0].phonemes)
        running.set()
        assert go_on.wait(30)
        return forward(*args)

    monkeypatch.setattr(engine, "_forward", slow)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(speak(engine, "One."))
        await asyncio.to_thread(running.wait, 30)
        assert await cancelled_after(0.05, speak(engine, "Two.")) < RELEASE_S
        last = calls.create_task(speak(engine, "Three."))
        await asyncio.sleep(0.05)
        assert len(begun) == 1
        go_on.set()
    assert first.result()
    assert last.result()
    assert len(begun) == 2


async def test_a_cancelled_caller_does_not_wait_and_no_second_forward_starts(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, begun = threading.Event(), []

    def slow(*args: Any) -> Any:
        begun.append(args)
        assert go_on.wait(30)
        return np.zeros(2400, np.float32)

    monkeypatch.setattr(engine, "_forward", slow)
    text = "This is a sentence of some words, and it goes on. " * 20
    try:
        assert len(engine._pieces(text, "a")) > 1
        assert await cancelled_after(1.0, speak(engine, text)) < RELEASE_S
    finally:
        go_on.set()
    await asyncio.wrap_future(engine._executor.submit(lambda: None))
    assert len(begun) == 1


async def test_a_forward_that_breaks_is_an_engine_that_failed(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "_model", broken)
    with pytest.raises(EngineFailed, match="no memory"):
        await speak(engine, "Hello.")


@pytest.mark.parametrize("damaged", ["config.json", "kokoro-test.pth"])
async def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path, damaged: str) -> None:
    copy = tmp_path / "kokoro"
    shutil.copytree(folder, copy)
    (copy / damaged).write_bytes(b"damaged")
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        create(TtsOptions(engine="kokoro", model=str(copy)))


async def test_a_folder_without_the_configured_voice_says_so(folder: Path) -> None:
    with pytest.raises(EngineFailed, match=r"lacks voices/af_bella\.pt"):
        create(TtsOptions(engine="kokoro", model=str(folder), voice="af_bella"))


async def test_a_configured_voice_of_another_language_is_refused(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="does not speak English"):
        create(TtsOptions(engine="kokoro", model=str(folder), voice="zf_xiaobei"))


async def test_weights_that_are_not_here_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineFailed, match="voice-serve models pull"):
        create(TtsOptions(engine="kokoro"))
