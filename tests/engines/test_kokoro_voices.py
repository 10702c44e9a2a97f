import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deployments.engines.kokoro_voices import Voices, read_tensor
from deployments.interfaces import BadRequest, EngineFailed


@pytest.fixture
def voices(tmp_path: Path) -> Voices:
    import torch

    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("af_one", "am_two", "bf_three")):
        tensor = torch.arange(510 * 256, dtype=torch.float32).reshape(510, 1, 256) + 1000.0 * number
        torch.save(tensor, tmp_path / "voices" / f"{name}.pt")
    torch.save(torch.zeros(5, 1, 256), tmp_path / "voices" / "af_short.pt")
    return Voices(tmp_path)


def test_a_voice_is_read_as_torch_reads_it(shared_models: Path):
    import torch

    path = shared_models / "kokoro-voices" / "af_heart.pt"
    expected = torch.load(path, weights_only=True).numpy()
    np.testing.assert_array_equal(read_tensor(path), expected)
    raw = np.fromfile(path.with_suffix(".bin"), "<f4").reshape(510, 1, 256)
    np.testing.assert_array_equal(read_tensor(path), raw)


def test_a_row_for_each_length(voices: Voices):
    assert voices.style("af_one", 1)[0, 0] == 0
    assert voices.style("af_one", 510)[0, 0] == 509 * 256
    assert voices.style("af_one", 600)[0, 0] == 509 * 256


def test_a_mixture_is_the_weighted_average(voices: Voices):
    one, two = voices.style("af_one", 7), voices.style("am_two", 7)
    np.testing.assert_allclose(voices.style("af_one:0.7,am_two:0.3", 7), 0.7 * one + 0.3 * two, rtol=1e-6)
    np.testing.assert_allclose(voices.style("af_one:7, am_two:3", 7), 0.7 * one + 0.3 * two, rtol=1e-6)
    np.testing.assert_allclose(voices.style("af_one,am_two", 7), (one + two) / 2, rtol=1e-6)
    np.testing.assert_array_equal(voices.style("af_one:1,am_two:0", 7), one)
    np.testing.assert_array_equal(voices.style("af_one:2", 7), one)


@pytest.mark.parametrize(
    ("voice", "reason"),
    [
        ("af_one:x", "not a weight"),
        ("af_one:", "not a weight"),
        ("af_one:-1,am_two:2", "not negative"),
        ("af_one:nan", "not negative"),
        ("af_one:inf", "not negative"),
        ("af_one:0,am_two:0", "add up to nothing"),
        ("af_one:1e308,am_two:1e308", "add up to nothing"),
        ("af_one,", "no voice"),
        ("af_one,nobody:0.5", "no voice 'nobody'; there are af_one"),
        ("af_one,af_short", "do not fit"),
    ],
)
def test_a_mixture_that_is_none_says_why(voices: Voices, voice: str, reason: str):
    with pytest.raises(BadRequest, match=reason):
        voices.style(voice, 7)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (print, ("run",))


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps(Evil())])
def test_a_file_that_is_no_voice_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "af_bad.pt"
    path.write_bytes(content)
    with pytest.raises(EngineFailed, match=r"af_bad\.pt is not a voice"):
        read_tensor(path)


@pytest.mark.parametrize("content", [Evil(), {"a": 1}, [1.0]])
def test_nothing_in_a_voice_is_run(tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "af_bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("af_bad/data.pkl", pickle.dumps(content))
    with pytest.raises(EngineFailed):
        read_tensor(path)
    assert capsys.readouterr().out == ""


def test_a_voice_of_numbers_that_are_none_is_refused(tmp_path: Path):
    import torch

    path = tmp_path / "af_nan.pt"
    torch.save(torch.full((5, 1, 256), float("nan")), path)
    with pytest.raises(EngineFailed):
        read_tensor(path)
