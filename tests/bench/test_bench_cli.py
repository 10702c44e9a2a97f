"""`voice-serve bench stt`, as a person calls it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import soundfile

from serve_app import bench_cli
from serve_app.bench import whisper_shapes
from serve_app.bench.whisper_shapes import Shape

from .test_clips import RATE, tone


def bench(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    bench_cli.add_parser(parser.add_subparsers())
    return bench_cli.run(parser.parse_args(["bench", "stt", *map(str, arguments)]))


@pytest.fixture
def digits(shared_audio: Path, tmp_path: Path) -> Path:
    """A few of them, with their manifest."""
    folder = tmp_path / "audio" / "digits"
    folder.mkdir(parents=True)
    manifest = json.loads((shared_audio / "manifest.json").read_text())
    some = [entry for entry in manifest if entry["path"].startswith("digits/george-0")]
    for entry in some:
        (tmp_path / "audio" / entry["path"]).write_bytes((shared_audio / entry["path"]).read_bytes())
    (tmp_path / "audio" / "manifest.json").write_text(json.dumps(some))
    return folder


@pytest.fixture
def model(shared_models: Path) -> Path:
    return shared_models / "whisper-digits-int8"


def test_models_are_compared_and_the_page_has_a_table_and_a_plot(
    digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert (
        bench("--audio", digits, "--models", f"{model},no such model", "--out", page) == bench_cli.EXIT_FAILED
    )
    printed = capsys.readouterr()
    assert "neither a model on this machine" in printed.err
    row = next(line.split() for line in printed.out.splitlines() if line.startswith("whisper-digits-int8"))
    assert 0.0 < float(row[1]) < 0.3
    assert "< 2 s" in printed.out
    text = page.read_text()
    assert text.count("<table>") == 2
    assert text.count("<svg") == 2
    assert "whisper-digits-int8" in text


def test_a_report_without_html_is_text(digits: Path, model: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "hum.wav", tone(1.0), RATE)
    table = tmp_path / "table.txt"
    assert bench("--audio", digits, "--models", model, "--noise", noise, "--snr", 5, "--out", table) == 0
    assert "Models: digits with noise at 5 dB" in table.read_text()


def test_load_is_measured_with_batching_off_and_on(
    digits: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--audio", digits, "--models", model, "--callers", "1,4", "--calls", 12) == 0
    rows = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("whisper-digits")
    ]
    assert [(row[1], row[2], row[3]) for row in rows] == [
        ("1", "off", "12"),
        ("1", "on", "12"),
        ("4", "off", "12"),
        ("4", "on", "12"),
    ]
    assert float(rows[2][-1]) == 1.0 < float(rows[3][-1])


def test_only_whisper_can_be_loaded_by_many(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--audio", digits, "--models", "pocketsphinx", "--callers", "2") == bench_cli.EXIT_NOTHING
    assert "decodes nothing together" in capsys.readouterr().err


def test_windows_of_a_shape_are_timed_without_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(whisper_shapes.SHAPES, "small thing", Shape(1, 1, 2, 64))
    page = tmp_path / "windows.html"
    assert bench("--shapes", "small thing", "--threads", "1,2", "--out", page) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("small thing")]
    assert len(rows) == 2 * (4 + 2), "four windows, the shortest also in batches of 4 and 8"
    assert "small thing, 2 threads" in page.read_text()


def test_a_shape_is_put_under_load_without_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(whisper_shapes.SHAPES, "small thing", Shape(1, 1, 2, 64))
    page = tmp_path / "load.html"
    assert bench("--shapes", "small thing", "--callers", "8", "--calls", 16, "--out", page) == 0
    off, on = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("small thing")
    ]
    assert (off[-1], on[-1]) == ("1.0", "8.0")
    assert "small thing, 8 callers" in page.read_text()


@pytest.mark.parametrize("arguments", [[], ["--models", "base.en"], ["--audio", "here"]])
def test_what_is_missing_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(*arguments) == bench_cli.EXIT_NOTHING
    assert "give --audio and --models" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--shapes", "huge"], ["--callers", "0"], ["--threads", "two"], ["--callers", ""]]
)
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench(*arguments)
