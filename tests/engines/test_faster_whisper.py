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
from deployments.engines.faster_whisper_windows import Utterance
from deployments.interfaces import BadRequest, EngineFailed
from deployments.microbatch import Job
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


def digits(shared_audio: Path) -> list[dict[str, Any]]:
    manifest = json.loads((shared_audio / "manifest.json").read_text())
    return [entry for entry in manifest if entry["path"].startswith("digits/")]


@pytest.mark.parametrize("short_windows", [True, False])
async def test_spoken_digits_are_heard(
    folder: Path, shared_audio: Path, recording: Callable[[str], bytes], short_windows: bool
) -> None:
    options = SttOptions(engine="faster_whisper", model=str(folder), short_windows=short_windows)
    engine = create(options)
    some = digits(shared_audio)[::3]
    heard = [await hear(engine, recording(entry["path"])) for entry in some]
    # 0.11 in windows of 10 s, 0.13 in 30 s, over all of them.
    assert jiwer.wer([entry["text"] for entry in some], heard) <= 0.15


@pytest.mark.parametrize("amplitude", [0, 1, 30])
async def test_what_is_quieter_than_speech_is_not_transcribed(
    engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch, amplitude: int
) -> None:
    monkeypatch.setattr(engine, "batches", None)
    noise = np.random.default_rng(1).normal(0, amplitude, 32_000).astype(np.int16)
    assert await hear(engine, noise.tobytes()) == ""


class Doubting:
    """CTranslate2's model, of another opinion; it notes the windows that it encodes."""

    def __init__(self, model: Any, **opinion: Any) -> None:
        self._model, self._opinion = model, opinion
        self.windows_s: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, features: Any, **options: Any) -> Any:
        self.windows_s.append(features.shape[2] // 100)
        return self._model.encode(features, **options)

    def generate(self, features: Any, *args: Any, **options: Any) -> list[Any]:
        is_short = features.shape[1] < 1500
        return [
            SimpleNamespace(
                sequences_ids=heard.sequences_ids,
                scores=[self._opinion.get("score", heard.scores[0]) if is_short else heard.scores[0]],
                no_speech_prob=self._opinion.get("no_speech", heard.no_speech_prob),
            )
            for heard in self._model.generate(features, *args, **options)
        ]


@pytest.fixture
def doubting(engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Doubting]:
    def make(**opinion: Any) -> Doubting:
        model = Doubting(engine._model.model, **opinion)
        monkeypatch.setattr(engine._model, "model", model)
        return model

    return make


@pytest.mark.parametrize(("score", "is_kept"), [(-0.1, True), (-3.0, False)])
async def test_what_whisper_doubts_itself_is_dropped(
    engine: FasterWhisperTranscriber,
    recording: Callable[[str], bytes],
    doubting: Callable[..., Doubting],
    score: float,
    is_kept: bool,
) -> None:
    doubting(score=score, no_speech=0.9)
    assert bool(await hear(engine, recording("digits/george-00.flac"))) == is_kept


async def test_what_looks_wrong_in_a_short_window_is_decoded_again_in_30_s(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], doubting: Callable[..., Doubting]
) -> None:
    pcm = recording("digits/george-01.flac")
    expected = await hear(engine, pcm)
    model = doubting(score=-3.0)
    assert await hear(engine, pcm) == expected != ""
    assert model.windows_s == [10, 30]


async def test_an_interim_that_looks_wrong_is_nothing_yet(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], doubting: Callable[..., Doubting]
) -> None:
    model = doubting(score=-3.0)
    pcm = recording("digits/george-01.flac")
    assert (await engine.transcribe(pcm, language=None, prompt=None, is_interim=True)).text == ""
    assert model.windows_s == [10]


@pytest.mark.parametrize(
    ("seconds", "window_s"), [(2, 10), (8, 10), (8.1, 15), (13, 15), (17, 20), (18.5, 30), (29, 30)]
)
async def test_the_window_fits_the_utterance_with_a_margin(
    engine: FasterWhisperTranscriber,
    recording: Callable[[str], bytes],
    doubting: Callable[..., Doubting],
    seconds: float,
    window_s: int,
) -> None:
    model = doubting()
    speech = recording("digits/george-01.flac")
    await hear(engine, speech + bytes(int(seconds * 16_000) * 2 - len(speech)))
    assert model.windows_s[0] == window_s


async def test_more_than_30_s_is_heard_to_its_end(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], doubting: Callable[..., Doubting]
) -> None:
    model = doubting()
    await hear(engine, recording("digits/george-01.flac") + bytes(61 * 16_000 * 2))
    assert model.windows_s == [30, 30, 30]


async def test_with_the_switch_off_every_window_is_of_30_s(
    folder: Path, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SttOptions(engine="faster_whisper", model=str(folder), short_windows=False)
    engine: FasterWhisperTranscriber = create(options)
    model = Doubting(engine._model.model)
    monkeypatch.setattr(engine._model, "model", model)
    assert await hear(engine, recording("digits/george-01.flac"))
    assert model.windows_s == [30]


async def test_utterances_heard_together_give_the_words_that_each_gives_alone(
    engine: FasterWhisperTranscriber, shared_audio: Path, recording: Callable[[str], bytes]
) -> None:
    clips = [recording(entry["path"]) for entry in digits(shared_audio)[::4]]
    alone = [await hear(engine, pcm) for pcm in clips]
    begun = engine.batches.batches
    assert await asyncio.gather(*(hear(engine, pcm) for pcm in clips)) == alone
    assert engine.batches.batches - begun == 2, "15 utterances in batches of 8"


async def test_prompts_of_different_lengths_are_not_decoded_together(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    together, decode = [], engine._windows.decode

    def noted(utterances: Any, *args: Any, **options: Any) -> Any:
        together.append({len(utterance.context) for utterance in utterances})
        return decode(utterances, *args, **options)

    monkeypatch.setattr(engine._windows, "decode", noted)
    pcm = recording("digits/george-01.flac")
    prompts = [None, "One.", "", "One two three four.", "One."]
    heard = await asyncio.gather(
        *(engine.transcribe(pcm, language="en", prompt=prompt) for prompt in prompts)
    )
    assert (heard[0], heard[1]) == (heard[2], heard[4])
    assert [len(lengths) for lengths in together] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "batch"),
    [({}, 4), ({"max_batch": 3}, 3), ({"max_batch": 1}, 1), ({"short_windows": False}, 1)],
)
async def test_batching_can_be_turned_off(
    folder: Path, recording: Callable[[str], bytes], options: dict[str, Any], batch: int
) -> None:
    engine = create(SttOptions(engine="faster_whisper", model=str(folder), **options))
    pcm = recording("digits/george-01.flac")
    await asyncio.gather(*(hear(engine, pcm) for _ in range(4)))
    assert engine.batches.batches == -(-4 // batch)


async def test_a_batch_has_room_for_one_utterance_at_least(folder: Path) -> None:
    with pytest.raises(EngineFailed, match="max_batch is 1 or more"):
        create(SttOptions(engine="faster_whisper", model=str(folder), max_batch=0))


async def test_noise_is_not_speech_to_a_model_of_digits(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes]
) -> None:
    """It knows ten words and was never taught that there are sounds without any: only its bounds can be told."""
    heard = await hear(engine, recording("noise/sb-noise5.flac"))
    assert len(heard.split()) <= 8


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


async def test_a_cancelled_call_in_the_queue_never_begins_and_what_waits_is_heard_together(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pcm = recording("digits/george-00.flac")
    running, go_on, begun = threading.Event(), threading.Event(), []
    decode = engine._windows.decode

    def slow(utterances: Any, *args: Any, **options: Any) -> Any:
        begun.append(len(utterances))
        running.set()
        assert go_on.wait(30)
        return decode(utterances, *args, **options)

    monkeypatch.setattr(engine._windows, "decode", slow)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(hear(engine, pcm))
        await asyncio.to_thread(running.wait, 30)
        assert await cancelled_after(0.05, hear(engine, pcm)) < RELEASE_S
        assert await cancelled_after(0.0, hear(engine, pcm)) < RELEASE_S
        last = [calls.create_task(hear(engine, pcm)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert begun == [1]
        go_on.set()
    assert first.result() == last[0].result() == last[1].result() != ""
    assert begun == [1, 2]


async def test_a_cancelled_caller_does_not_wait_for_the_forward_under_way(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(engine._windows, "decode", lambda *_, **__: (go_on.wait(30), pytest.fail("late")))
    try:
        assert await cancelled_after(0.2, hear(engine, recording("digits/george-00.flac"))) < RELEASE_S
    finally:
        go_on.set()


async def test_utterances_cancelled_while_others_are_encoded_cost_nothing_more(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], doubting: Callable[..., Doubting]
) -> None:
    model = doubting()
    audio = np.frombuffer(recording("digits/george-01.flac"), np.int16).astype(np.float32) / 32768
    utterances = [Utterance(audio, "en")] * 3
    heard = engine._windows.decode(utterances, 10, is_wanted=lambda index: index != 1)
    assert [bool(each) for each in heard] == [True, False, True]
    assert model.windows_s == [10, 10]


async def test_when_all_are_cancelled_while_they_are_encoded_nothing_is_decoded(
    engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([True, True, False, False])
    monkeypatch.setattr(engine._windows, "_generate", lambda *_: pytest.fail("decoded"))
    utterances = [Utterance(np.zeros(16_000, np.float32), "en")] * 2
    assert engine._windows.decode(utterances, 10, is_wanted=lambda _: next(asked)) == [None, None]


async def test_a_window_that_is_left_when_the_call_is_cancelled_is_not_decoded(
    engine: FasterWhisperTranscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterance = Utterance(np.zeros(16_000, np.float32), "en")
    future = asyncio.get_running_loop().create_future()
    job, windows = Job(utterance, (None, 0), False, 0.0, future), []

    def segments() -> Any:
        for number in range(3):
            windows.append(number)
            job.is_wanted = False
            yield SimpleNamespace(text=" one", avg_logprob=-0.1, no_speech_prob=0.0)

    info = SimpleNamespace(language="en")
    monkeypatch.setattr(engine._model, "transcribe", lambda *_, **__: (segments(), info))
    engine._decode([job])
    assert windows == [0]


async def test_a_decoder_that_breaks_is_an_engine_that_failed(
    engine: FasterWhisperTranscriber, recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("CUDA failed with error out of memory")

    monkeypatch.setattr(engine._windows, "decode", broken)
    with pytest.raises(EngineFailed, match=r"out of memory: choose a smaller model"):
        await hear(engine, recording("digits/george-00.flac"))


@pytest.mark.parametrize(
    ("device", "supported", "chosen"),
    [
        ("cpu", {"float32", "int8", "int8_float32"}, "int8"),
        ("cpu", {"float32"}, "float32"),
        ("cuda", {"float32", "float16", "int8_float16", "bfloat16"}, "float16"),
        ("cuda", {"float32", "int8", "int8_float32"}, "int8_float32"),
    ],
)
async def test_the_compute_type_follows_the_hardware(
    engine: FasterWhisperTranscriber, device: str, supported: set[str], chosen: str
) -> None:
    assert engine._compute_type(device, supported) == chosen


async def test_features_of_another_model_are_told_at_construction(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "preprocessor_config.json").write_text('{"feature_size": 128}')
    with pytest.raises(EngineFailed, match="takes 80 mel bands and its features have 128"):
        create(SttOptions(engine="faster_whisper", model=str(copy)))


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
