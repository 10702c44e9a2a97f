"""faster-whisper on the digit model of shared/models; what every transcriber does is in test_transcribers.py."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import pytest

from deployments.engines import create
from deployments.engines.faster_whisper import FasterWhisperTranscriber
from deployments.interfaces import BadRequest, EngineFailed
from deployments.options import SttOptions

from .support import RELEASE_S, cancelled_after

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(shared_models: Path) -> Path:
    return shared_models / "whisper-digits-int8"


@pytest.fixture(scope="module")
def engine(folder: Path) -> FasterWhisperTranscriber:
    engine: FasterWhisperTranscriber = create(SttOptions(engine="faster_whisper", model=str(folder)))
    return engine


async def hear(engine: FasterWhisperTranscriber, pcm: bytes, *, language: str | None = None) -> str:
    return (await engine.transcribe(pcm, language=language, prompt=None)).text


async def test_spoken_digits_are_heard(
    engine: FasterWhisperTranscriber, shared_audio: Path, recording: Callable[[str], bytes]
) -> None:
    manifest = json.loads((shared_audio / "manifest.json").read_text())
    digits = [entry for entry in manifest if entry["path"].startswith("digits/")][::3]
    heard = [await hear(engine, recording(entry["path"])) for entry in digits]
    assert jiwer.wer([entry["text"] for entry in digits], heard) <= 0.22


@pytest.mark.parametrize("amplitude", [0, 1, 30])
async def test_what_is_quieter_than_speech_is_not_transcribed(
    engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch, amplitude: int
) -> None:
    monkeypatch.setattr(engine, "_decode", lambda *_: pytest.fail("decoded"))
    noise = np.random.default_rng(1).normal(0, amplitude, 32_000).astype(np.int16)
    assert await hear(engine, noise.tobytes()) == ""


class Doubting:
    """CTranslate2's model, which doubts that it heard speech."""

    def __init__(self, model: Any, *, score: float) -> None:
        self._model, self._score = model, score

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, *args: Any, **options: Any) -> list[Any]:
        heard = self._model.generate(*args, **options)[0]
        return [SimpleNamespace(sequences_ids=heard.sequences_ids, scores=[self._score], no_speech_prob=0.9)]


@pytest.mark.parametrize(("score", "is_kept"), [(-0.1, True), (-3.0, False)])
async def test_what_whisper_doubts_itself_is_dropped(
    engine: FasterWhisperTranscriber,
    recording: Callable[[str], bytes],
    monkeypatch: pytest.MonkeyPatch,
    score: float,
    is_kept: bool,
) -> None:
    monkeypatch.setattr(engine._model, "model", Doubting(engine._model.model, score=score))
    assert bool(await hear(engine, recording("digits/george-00.flac"))) == is_kept


@pytest.mark.parametrize("language", ["en", "en-US", "EN"])
async def test_an_english_model_takes_english(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], language: str
) -> None:
    assert await hear(engine, recording("digits/george-00.flac"), language=language)


@pytest.mark.parametrize("language", ["de", "zz", "english"])
async def test_an_english_model_refuses_other_languages(
    engine: FasterWhisperTranscriber, language: str
) -> None:
    with pytest.raises(BadRequest, match="knows English only"):
        await hear(engine, bytes(32_000), language=language)


async def test_the_language_of_the_options_must_be_known(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="does not know the language 'de'"):
        create(SttOptions(engine="faster_whisper", model=str(folder), language="de"))


async def test_half_a_sample_is_a_bad_request(engine: FasterWhisperTranscriber) -> None:
    with pytest.raises(BadRequest, match="odd number of bytes"):
        await hear(engine, bytes(3))


async def test_one_utterance_at_a_time_and_a_cancelled_one_in_the_queue_never_begins(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pcm = recording("digits/george-00.flac")
    running, go_on, begun = threading.Event(), threading.Event(), []
    transcribe = engine._model.transcribe

    def slow(*args: Any, **options: Any) -> Any:
        begun.append(threading.current_thread().name)
        running.set()
        assert go_on.wait(30)
        return transcribe(*args, **options)

    monkeypatch.setattr(engine._model, "transcribe", slow)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(hear(engine, pcm))
        await asyncio.to_thread(running.wait, 30)
        assert await cancelled_after(0.05, hear(engine, pcm)) < RELEASE_S
        assert await cancelled_after(0.0, hear(engine, pcm)) < RELEASE_S
        last = calls.create_task(hear(engine, pcm))
        await asyncio.sleep(0.05)
        assert len(begun) == 1
        go_on.set()
    assert first.result() == last.result() != ""
    assert len(begun) == 2


async def test_a_cancelled_caller_does_not_wait_for_the_forward_under_way(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(engine._model, "transcribe", lambda *_, **__: (go_on.wait(30), pytest.fail("late")))
    try:
        assert await cancelled_after(0.2, hear(engine, recording("digits/george-00.flac"))) < RELEASE_S
    finally:
        go_on.set()


async def test_a_window_that_is_left_when_the_call_is_cancelled_is_not_decoded(
    engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, windows = threading.Event(), []

    def segments() -> Any:
        for number in range(3):
            windows.append(number)
            cancelled.set()
            yield SimpleNamespace(text=" one")

    info = SimpleNamespace(language="en")
    monkeypatch.setattr(engine._model, "transcribe", lambda *_, **__: (segments(), info))
    engine._decode(np.zeros(16_000, np.float32), "en", None, cancelled)
    assert windows == [0]


async def test_a_decoder_that_breaks_is_an_engine_that_failed(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._model, "transcribe", broken)
    with pytest.raises(EngineFailed, match="no memory"):
        await hear(engine, recording("digits/george-00.flac"))


async def test_a_compute_type_that_the_cpu_refuses_is_told_at_construction(folder: Path) -> None:
    options = SttOptions(engine="faster_whisper", model=str(folder), device="cpu", compute_type="bfloat16")
    with pytest.raises(EngineFailed, match=r"bfloat16 does not run on this cpu, which has .*int8"):
        create(options)


async def test_a_folder_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(EngineFailed, match=r"lacks tokenizer\.json"):
        create(SttOptions(engine="faster_whisper", model=str(copy)))


async def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "model.bin").write_bytes(b"damaged")
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        create(SttOptions(engine="faster_whisper", model=str(copy)))


async def test_weights_that_are_not_here_name_the_remedy_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineFailed, match="voice-serve models pull"):
        create(SttOptions(engine="faster_whisper"))
    assert not list(tmp_path.iterdir())
