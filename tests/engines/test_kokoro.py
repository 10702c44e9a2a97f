"""Kokoro on random weights of its architecture; what every synthesizer does is in test_synthesizers.py."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.engines import create
from deployments.engines.kokoro import SAMPLE_RATE, KokoroSynthesizer, _heard, _sounding
from deployments.interfaces import BadRequest, EngineFailed, SpeechChunk, WordTime
from deployments.options import TtsOptions

from . import kokoro_weights
from .support import RELEASE_S, cancelled_after, collected

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(shared_models: Path) -> Path:
    return kokoro_weights.shared(shared_models / "kokoro-voices")


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


# --- words and their times ------------------------------------------------------------------------------------------


async def test_every_word_has_its_time(engine: KokoroSynthesizer) -> None:
    text = "  I don't pay $3.50\nfor that well-known thing, “ok”? "
    chunks = await speak(engine, text)
    words = times(chunks)
    assert [text[word.start_char : word.end_char] for word in words] == text.split()
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert edges[-1] <= len(chunks[0].pcm) / 2 / SAMPLE_RATE


@pytest.mark.parametrize(
    ("voice", "text"),
    [
        ("af_heart", "Say [Kokoro](/kˈOkəɹO/) a [new word](+2), O Kokoro."),
        ("ef_dora", "Tengo un amigo, [Kokoro](/kˈokoɾo/) se llama: ¿qué tal?"),
        ("ff_siwis", "Les amis sont là, qu'est-ce que c'est: vingt-cinq. Voilà - oui!"),
        ("hf_alpha", "नमस्ते दुनिया, आप कैसे हैं?"),
        ("if_sara", "Ciao, come stai? Tutto bene (spero)."),
        ("pf_dora", "Olá, tudo bem? Eu falo português."),
    ],
)
async def test_every_language_has_its_words(engine: KokoroSynthesizer, voice: str, text: str) -> None:
    chunks = await speak(engine, text, voice=voice)
    spoken = [text[word.start_char : word.end_char] for word in times(chunks)]
    assert spoken == [word for word in text.split() if any(c.isalnum() for c in word)]
    edges = [edge for word in times(chunks) for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)


async def test_the_words_of_a_long_text_count_over_all_chunks(engine: KokoroSynthesizer) -> None:
    text = " ".join(f"Sentence {number} goes on for a while, and then it ends." for number in range(20))
    chunks = await speak(engine, text)
    assert len(chunks) > 4
    words = times(chunks)
    assert [text[word.start_char : word.end_char] for word in words] == text.split()
    sent_s = 0.0
    for chunk in chunks:
        end_s = sent_s + len(chunk.pcm) / 2 / SAMPLE_RATE
        assert all(sent_s - 1e-6 <= word.start_s < word.end_s <= end_s + 1e-6 for word in chunk.words)
        sent_s = end_s


async def test_faster_speech_is_shorter(engine: KokoroSynthesizer) -> None:
    slow, fast = [await speak(engine, "One two three four five.", speed=speed) for speed in (0.5, 1.0)]
    assert len(slow[0].pcm) > 1.3 * len(fast[0].pcm)


async def test_a_speed_near_nothing_is_brought_to_the_slowest(engine: KokoroSynthesizer) -> None:
    nothing, slowest = [await speak(engine, "One.", speed=speed) for speed in (1e-9, 0.25)]
    assert len(nothing[0].pcm) == pytest.approx(len(slowest[0].pcm), rel=0.1)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
async def test_a_speed_that_is_not_positive_is_a_bad_request(engine: KokoroSynthesizer, speed: float) -> None:
    with pytest.raises(BadRequest, match="speed"):
        await speak(engine, "Hello.", speed=speed)


@pytest.mark.parametrize("text", ["...", "😀", "?! —", ""])
async def test_a_text_without_words_is_silent(engine: KokoroSynthesizer, text: str) -> None:
    assert await speak(engine, text) == []


# --- voices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", ["nobody", "", "../af_heart", "af_heart.pt"])
async def test_an_unknown_voice_is_told_which_there_are(engine: KokoroSynthesizer, voice: str) -> None:
    with pytest.raises(BadRequest, match="there are af_heart, bf_emma"):
        await speak(engine, "Hello.", voice=voice)


async def test_the_voices_are_those_that_can_speak(engine: KokoroSynthesizer) -> None:
    assert engine.voices == tuple(sorted(set(kokoro_weights.VOICES) - {"zf_xiaobei"}))


async def test_a_language_without_its_phonemiser_says_what_to_install(engine: KokoroSynthesizer) -> None:
    with pytest.raises(BadRequest, match=r"pip install 'misaki\[zh\]'"):
        await speak(engine, "Hello.", voice="zf_xiaobei")


async def test_a_mixture_is_spoken_in_the_language_of_its_first_voice(engine: KokoroSynthesizer) -> None:
    text = "The bath water."
    american = await speak(engine, text, voice="af_heart:0.7,bf_emma:0.3")
    british = await speak(engine, text, voice="bf_emma,af_heart")
    assert american[0].words[-1].end_char == british[0].words[-1].end_char == len(text)
    assert engine._check("af_heart:0.7,bf_emma:0.3", 1.0) == "a"
    assert engine._check("bf_emma,af_heart", 1.0) == "b"


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
        ("well-known", "wˌɛlnˈOn"),
        ("well - known", "wˈɛl — nˈOn"),
    ],
)
async def test_phonemes_need_no_spacy_model(engine: KokoroSynthesizer, text: str, phonemes: str) -> None:
    assert engine._pieces(text, "a")[0].phonemes == phonemes


async def test_a_word_in_no_dictionary_is_spelled(engine: KokoroSynthesizer) -> None:
    assert len(engine._pieces("frobnicator", "a")[0].phonemes) > 6


# --- silence --------------------------------------------------------------------------------------------------------


async def test_lead_silence_is_cut_but_no_word() -> None:
    audio = np.concatenate([np.full(6000, 1e-4), np.full(6000, 0.5)]).astype(np.float32)
    assert _heard(audio, [None, (0.25, 0.4)], is_cut=False) == (6000 - 480, 12000)
    assert _heard(audio, [(0.1, 0.4)], is_cut=False) == (2400, 12000)
    assert _heard(np.zeros(100, np.float32), [(0.1, 0.2)], is_cut=True) == (0, 100)


async def test_the_pause_behind_a_piece_is_kept_unless_it_is_cut_amid_a_clause() -> None:
    audio = np.concatenate([np.full(12000, 0.5), np.full(12000, 1e-4)]).astype(np.float32)
    assert _heard(audio, [(0.0, 0.5)], is_cut=False) == (0, 24000)
    assert _heard(audio, [(0.0, 0.5)], is_cut=True) == (0, 11999 + 1200)
    assert _heard(audio, [(0.0, 0.8)], is_cut=True) == (0, 19200)


async def test_a_word_ends_with_its_sound() -> None:
    audio = np.concatenate([np.full(12000, 0.5), np.full(12000, 1e-4), np.full(2400, 0.5)]).astype(np.float32)
    assert _sounding(audio, [(0.1, 0.9), None, (1.0, 1.1), (0.6, 0.9)]) == [
        (0.1, 0.5),
        None,
        (1.0, 1.1),
        (0.6, 0.9),
    ]


# --- forwards, one at a time ----------------------------------------------------------------------------------------


def held_forward(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], threading.Event, Callable[[], None]]:
    """Lets forwards begin and wait: the phonemes of those begun, an event at each begin, and what lets them go on."""
    running, go_on, begun = threading.Event(), threading.Event(), []
    forward = engine._forward

    def held(*args: Any) -> Any:
        begun.append(args[0].phonemes)
        running.set()
        assert go_on.wait(30)
        return forward(*args)

    monkeypatch.setattr(engine, "_forward", held)
    return begun, running, go_on.set


async def test_one_forward_at_a_time_and_none_after_a_cancel(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, running, go_on = held_forward(engine, monkeypatch)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(speak(engine, "One."))
        await asyncio.to_thread(running.wait, 30)
        assert await cancelled_after(0.05, speak(engine, "Two.")) < RELEASE_S
        last = calls.create_task(speak(engine, "Three."))
        await asyncio.sleep(0.05)
        assert len(begun) == 1
        go_on()
    assert first.result()
    assert last.result()
    assert len(begun) == 2


async def test_a_cancelled_caller_does_not_wait_and_no_second_forward_starts(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, _, go_on = held_forward(engine, monkeypatch)
    text = "This is a sentence of some words, and it goes on. " * 20
    try:
        assert len(engine._pieces(text, "a")) > 1
        assert await cancelled_after(1.0, speak(engine, text)) < RELEASE_S
    finally:
        go_on()
    await asyncio.wrap_future(engine.batches._executor.submit(lambda: None))
    assert len(begun) == 1


async def test_calls_take_turns_piece_by_piece(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, running, go_on = held_forward(engine, monkeypatch)
    async with asyncio.TaskGroup() as calls:
        calls.create_task(speak(engine, "This is a long sentence, which goes on and on and on and on. " * 8))
        await asyncio.to_thread(running.wait, 30)
        calls.create_task(speak(engine, "Short."))
        await asyncio.sleep(0.05)
        go_on()
    assert len(begun) > 3
    assert "ʃˈɔɹt." in begun[:3]


async def test_a_forward_that_breaks_is_an_engine_that_failed(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def run(self, *_: object) -> object:
            raise RuntimeError("no memory")

    monkeypatch.setattr(engine._backend, "_session", Broken())
    with pytest.raises(EngineFailed, match="no memory"):
        await speak(engine, "Hello.")


# --- what a replica needs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", ["config.json", "kokoro-test.pth"])
async def test_a_damaged_model_is_refused(shared_models: Path, tmp_path: Path, damaged: str) -> None:
    kokoro_weights.write(tmp_path, shared_models / "kokoro-voices")
    (tmp_path / damaged).write_bytes(b"damaged")
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        create(TtsOptions(engine="kokoro", model=str(tmp_path), backend="torch"))


async def test_a_folder_without_the_configured_voice_says_so(folder: Path) -> None:
    with pytest.raises(EngineFailed, match=r"lacks voices/af_bella\.pt"):
        create(TtsOptions(engine="kokoro", model=str(folder), voice="af_bella"))


async def test_a_mixture_can_be_configured(folder: Path) -> None:
    with pytest.raises(EngineFailed, match=r"lacks voices/af_bella\.pt"):
        create(TtsOptions(engine="kokoro", model=str(folder), voice="af_heart:0.7,af_bella:0.3"))
    assert create(TtsOptions(engine="kokoro", model=str(folder), voice="af_heart:0.7,bf_emma:0.3"))


async def test_a_configured_voice_that_cannot_speak_here_is_refused(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="misaki"):
        create(TtsOptions(engine="kokoro", model=str(folder), voice="zf_xiaobei"))


async def test_weights_that_are_not_here_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineFailed, match="voice-serve models pull"):
        create(TtsOptions(engine="kokoro"))


async def test_a_replica_with_the_export_needs_no_torch(engine: KokoroSynthesizer, folder: Path) -> None:
    assert engine.backend == "onnx"
    code = f"""
import asyncio, sys
from deployments.engines import create
from deployments.options import TtsOptions
engine = create(TtsOptions(engine="kokoro", model={str(folder)!r}))
async def speak():
    return [chunk async for chunk in engine.synthesize("Hello world.", voice="af_heart", speed=1.0)]
assert asyncio.run(speak())
print([name for name in ("torch", "kokoro", "transformers") if name in sys.modules])
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
