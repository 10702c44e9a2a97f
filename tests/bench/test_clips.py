import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serve_app.bench.clips import Clip, NothingToMeasure, read, with_noise

RATE = 16_000


def tone(seconds: float, *, amplitude: float = 0.1, rate: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_recordings_come_with_the_texts_of_the_manifest_beside_or_above_them(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    folder.mkdir()
    for name in ("b.wav", "a.wav", "c.wav"):
        soundfile.write(folder / name, tone(0.5), RATE)
    entries = [{"path": "speech/a.wav", "text": "one"}, {"path": "speech/b.wav", "text": None}]
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    assert [(clip.name, clip.text) for clip in read(folder)] == [
        ("a.wav", "one"),
        ("b.wav", ""),
        ("c.wav", None),
    ]
    (folder / "manifest.json").write_text(json.dumps([{"path": "c.wav", "text": "three"}]))
    assert [clip.text for clip in read(folder)] == [None, None, "three"]


def test_any_rate_and_stereo_become_16_khz_mono(tmp_path: Path) -> None:
    stereo = np.stack([tone(1.0, rate=44_100)] * 2, axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44_100)
    (clip,) = read(tmp_path)
    assert clip.seconds == pytest.approx(1.0, abs=0.01)
    assert len(clip.pcm) == 2 * len(clip.audio)


def test_a_folder_without_recordings_is_told(tmp_path: Path) -> None:
    with pytest.raises(NothingToMeasure, match="no recordings"):
        read(tmp_path)


def test_noise_is_laid_over_at_the_set_ratio_and_the_same_on_every_call() -> None:
    clips = [Clip(f"{n}", tone(2.0, amplitude=0.05 * n), "x") for n in (1, 2)]
    hiss = Clip("hiss", np.random.default_rng(1).normal(0, 0.3, 5_000).astype(np.float32), "")
    noisy = with_noise(clips, [hiss], 10.0)
    for clip, over in zip(clips, noisy, strict=True):
        added = over.audio - clip.audio
        assert 10 * np.log10(np.mean(clip.audio**2) / np.mean(added**2)) == pytest.approx(10.0, abs=0.1)
        assert over.text == clip.text
    assert all(
        np.array_equal(a.audio, b.audio) for a, b in zip(noisy, with_noise(clips, [hiss], 10.0), strict=True)
    )


def test_silence_stays_silent_under_noise_of_any_ratio() -> None:
    silence = Clip("silence", np.zeros(1_000, np.float32), "")
    (noisy,) = with_noise([silence], [Clip("tone", tone(0.1), "")], 10.0)
    assert not noisy.audio.any()


def test_samples_past_full_scale_are_clipped_not_wrapped() -> None:
    samples = np.frombuffer(Clip("loud", np.array([1.5, -1.5, 0.5], np.float32), None).pcm, np.int16)
    assert samples.tolist() == [32767, -32768, 16384]
