import logging
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.engines import kokoro_backends, kokoro_export
from deployments.engines.kokoro_backends import OnnxBackend, Stop, Stopped, TorchBackend, exported, load
from deployments.interfaces import EngineFailed
from deployments.options import TtsOptions

from . import kokoro_weights

CPU = TtsOptions(engine="kokoro", device="cpu")
IDS = np.array([[0, *range(20, 50), 0]], np.int64)
STYLE = np.linspace(-0.3, 0.3, 256, dtype=np.float32).reshape(1, 256)


@pytest.fixture(scope="module")
def folder(shared_models: Path) -> Path:
    return kokoro_weights.shared(shared_models / "kokoro-voices")


@pytest.fixture
def own_folder(shared_models: Path, tmp_path: Path) -> Path:
    kokoro_weights.write(tmp_path / "kokoro", shared_models / "kokoro-voices")
    return tmp_path / "kokoro"


def weights(folder: Path) -> Path:
    return folder / "kokoro-test.pth"


def quiet_torch(folder: Path) -> TorchBackend:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TorchBackend(folder, weights(folder), CPU)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for the process that exports: writes a small file. Gives the commands it was run with."""
    commands = []

    def run(command: list[str], **_: object) -> Any:
        commands.append(command)
        Path(command[-1]).write_bytes(b"graph")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(kokoro_backends.subprocess, "run", run)
    return commands


# --- the same sound -------------------------------------------------------------------------------------------------


def tone(like: Any) -> Any:
    """In place of noise: the same in both, and with something in every bin (where there is nothing, there is no phase)."""
    import torch

    count = torch.cumsum(torch.ones_like(like), 1)
    return torch.sin(13 * (count % 97)) + torch.sin(2.9 * (count % 89)) + torch.sin(0.7 * (count % 83))


def test_torch_and_onnx_say_the_same(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tone in place of the noise in their sources, which each draws anew."""
    import torch

    monkeypatch.setattr(torch, "randn_like", tone)
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.zeros(*size, device=device))
    path = tmp_path / "tone.onnx"
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kokoro_export.export(own_folder, weights(own_folder), path)
    torch.manual_seed(7)
    by_torch, by_onnx = quiet_torch(own_folder), OnnxBackend(path, 1)
    for speed in (1.0, 1.7):
        audio, durations = by_torch.forward(IDS, STYLE, speed, Stop())
        audio_2, durations_2 = by_onnx.forward(IDS, STYLE, speed, Stop())
        np.testing.assert_array_equal(durations, durations_2)
        assert len(durations) == IDS.shape[1]
        assert len(audio) == len(audio_2) == 600 * durations.sum()
        inner = slice(10, -10)  # the division by the overlap of the windows, which is less at the two ends
        assert np.abs(audio - audio_2)[inner].max() < 0.002 * np.abs(audio).max()


def test_the_transforms_of_the_export_are_those_of_torch() -> None:
    import torch
    from kokoro.custom_stft import CustomSTFT
    from kokoro.istftnet import TorchSTFT

    ours, theirs = CustomSTFT(20, 5, 20), TorchSTFT(20, 5, 20)
    kokoro_export.correct(ours)
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(3))
    magnitude, phase = theirs.transform(audio)
    magnitude_2, phase_2 = ours.transform(audio)
    torch.testing.assert_close(magnitude_2, magnitude, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(phase_2[magnitude > 0.1], phase[magnitude > 0.1], atol=1e-3, rtol=1e-3)
    expected, got = (stft.inverse(magnitude, phase).reshape(-1) for stft in (theirs, ours))
    torch.testing.assert_close(got[10:-10], expected[10:-10], atol=1e-4, rtol=1e-3)


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_a_forward_stops_half_way(folder: Path, name: str) -> None:
    backend = quiet_torch(folder) if name == "torch" else OnnxBackend(exported(folder, weights(folder)), 1)
    ids = np.array([[0, *[30] * 150, 0]], np.int64)
    started = time.perf_counter()
    backend.forward(ids, STYLE, 1.0, Stop())
    whole_s = time.perf_counter() - started
    stop = Stop()
    timer = threading.Timer(0.1 * whole_s, stop.set)
    timer.start()
    started = time.perf_counter()
    with pytest.raises(Stopped):
        backend.forward(ids, STYLE, 1.0, stop)
    assert time.perf_counter() - started < 0.7 * whole_s
    assert backend.forward(IDS, STYLE, 1.0, Stop())[1].shape == (IDS.shape[1],)


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_no_forward_starts_once_it_is_stopped(folder: Path, name: str) -> None:
    backend = quiet_torch(folder) if name == "torch" else OnnxBackend(exported(folder, weights(folder)), 1)
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        backend.forward(IDS, STYLE, 1.0, stop)


# --- the export -----------------------------------------------------------------------------------------------------


def test_an_export_is_made_once_and_whole(own_folder: Path, exporter: list[list[str]]) -> None:
    first = exported(own_folder, weights(own_folder))
    assert first.read_bytes() == b"graph"
    assert first.parent == own_folder
    assert exported(own_folder, weights(own_folder)) == first
    assert len(exporter) == 1
    assert exporter[0][-1] != str(first), "it is written beside and then renamed"
    assert [path.name for path in own_folder.glob("*.part")] == []


@pytest.mark.parametrize("changed", ["kokoro-test.pth", "config.json"])
def test_other_weights_have_another_export(own_folder: Path, exporter: list[list[str]], changed: str) -> None:
    first = exported(own_folder, weights(own_folder))
    with (own_folder / changed).open("ab") as file:
        file.write(b" ")
    assert exported(own_folder, weights(own_folder)) != first
    assert len(exporter) == 2


def test_replicas_that_start_at_once_make_one_export(
    own_folder: Path, exporter: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kokoro_backends.subprocess.run

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return run(*args, **kwargs)

    monkeypatch.setattr(kokoro_backends.subprocess, "run", slow)
    threads = [threading.Thread(target=exported, args=(own_folder, weights(own_folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(exporter) == 1


def test_an_export_lies_in_the_users_cache_where_the_weights_cannot_be_written(
    own_folder: Path, exporter: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    refuse_to_write(monkeypatch, own_folder)
    path = exported(own_folder, weights(own_folder))
    assert path.parent == tmp_path / "home" / ".cache" / "voice-serve" / "kokoro"
    assert exported(own_folder, weights(own_folder)) == path
    assert len(exporter) == 1


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, *places: Path) -> None:
    may: Callable[[Path], bool] = kokoro_backends._is_writable
    monkeypatch.setattr(kokoro_backends, "_is_writable", lambda place: place not in places and may(place))


def test_where_nothing_can_be_written_torch_speaks_and_the_log_says_why(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    refuse_to_write(monkeypatch, own_folder, tmp_path / ".cache" / "voice-serve" / "kokoro")
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = load(own_folder, weights(own_folder), CPU)
    assert backend.name == "torch"
    assert "can be written" in caplog.records[-1].__dict__["reason"]
    with pytest.raises(EngineFailed, match="can be written"):
        load(own_folder, weights(own_folder), TtsOptions(engine="kokoro", backend="onnx"))


def test_an_export_that_fails_leaves_nothing(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> Any:
        Path(command[-1]).write_bytes(b"half a gra")
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: no memory\n")

    monkeypatch.setattr(kokoro_backends.subprocess, "run", run)
    with pytest.raises(EngineFailed, match="no memory"):
        exported(own_folder, weights(own_folder))
    assert not [path for path in own_folder.iterdir() if "onnx" in path.name]


def test_a_damaged_export_says_what_to_delete(own_folder: Path, exporter: list[list[str]]) -> None:
    path = exported(own_folder, weights(own_folder))
    with pytest.raises(EngineFailed, match=f"{path.name} cannot be loaded: delete it"):
        OnnxBackend(path, 1)


def test_onnx_is_refused_on_a_gpu(own_folder: Path) -> None:
    options = TtsOptions(engine="kokoro", backend="onnx", device="cuda")
    with pytest.raises(EngineFailed, match="on the CPU"):
        load(own_folder, weights(own_folder), options)


def test_a_gpu_that_is_not_there_is_said(own_folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineFailed, match="finds no GPU"):
        load(own_folder, weights(own_folder), TtsOptions(engine="kokoro", device="cuda"))
