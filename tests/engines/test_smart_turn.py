"""smart-turn: its spectrogram is Whisper's, and where its model lies on this machine, what it says of recordings."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.feature_extractor import FeatureExtractor

from deployments.engines import smart_turn
from deployments.engines.smart_turn import SmartTurn, features, load, model_path
from deployments.interfaces import BadRequest, EngineFailed


@pytest.fixture(scope="module")
def judge() -> SmartTurn:
    if model_path() is None:
        pytest.skip(f"smart-turn's model is not here: {smart_turn.REMEDY}")
    return load()


def test_the_spectrogram_is_whispers_of_eight_seconds_of_even_loudness(
    recording: Callable[[str], bytes],
) -> None:
    audio = np.frombuffer(recording("speech/jfk.flac"), dtype="<i2").astype(np.float32) / 32768
    last = audio[-8 * 16_000 :]
    even = (last - last.mean()) / last.std()
    expected = FeatureExtractor()(even, padding=0)[:, :800]
    found = features(last)
    assert found.shape == (80, 800)
    # The last frames differ: faster-whisper pads with zeros, transformers, for which the model was made, mirrors.
    np.testing.assert_allclose(found[:, :797], expected[:, :797], atol=2e-3)


def test_what_is_shorter_has_its_silence_before_it() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    found = features(audio)
    assert found[:, :690].max() < found[:, 710:].min()


def test_only_the_newest_model_of_the_wheel_is_taken_and_the_package_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "pipecat" / "audio" / "turn" / "smart_turn" / "data"
    data.mkdir(parents=True)
    (tmp_path / "pipecat" / "__init__.py").write_text("raise ImportError('imported')")
    for name in ("smart-turn-v3.1-cpu.onnx", "smart-turn-v3.2-cpu.onnx", "other.onnx"):
        (data / name).touch()
    code = "from deployments.engines.smart_turn import model_path; print(model_path())"
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{root}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == data / "smart-turn-v3.2-cpu.onnx"


def test_without_the_model_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: None)
    with pytest.raises(EngineFailed, match="make turn"):
        load()


async def test_a_whole_utterance_is_over_and_half_a_sentence_is_not(
    judge: SmartTurn, recording: Callable[[str], bytes]
) -> None:
    whole = recording("speech/jfk.flac")
    assert await judge.completeness(whole + bytes(3200)) > 0.5
    assert await judge.completeness(whole[: len(whole) // 10 * 7]) < 0.5


@pytest.mark.parametrize("samples", [0, 1, 1600, 20 * 16_000])
async def test_any_length_is_judged(judge: SmartTurn, samples: int) -> None:
    noise = np.random.default_rng(0).normal(0, 300, samples).astype("<i2").tobytes()
    assert 0 <= await judge.completeness(noise) <= 1


async def test_half_a_sample_is_a_bad_request(judge: SmartTurn) -> None:
    with pytest.raises(BadRequest):
        await judge.completeness(bytes(321))


async def test_cancelled_calls_that_wait_are_never_begun(
    judge: SmartTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def judged(pcm: bytes) -> float:
        begun.append(len(pcm))
        return SmartTurn._judge(judge, pcm)

    monkeypatch.setattr(judge, "_judge", judged)
    async with asyncio.TaskGroup() as calls:
        waiting = [calls.create_task(judge.completeness(bytes(2 * n))) for n in range(1, 20)]
        await asyncio.sleep(0)
        for task in waiting[1:]:
            task.cancel()
    assert len(begun) <= 2
    assert 0 <= await judge.completeness(bytes(3200)) <= 1
