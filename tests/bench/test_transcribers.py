import pytest

from deployments.options import ScriptedStt, SttOptions
from serve_app.bench.clips import Clip
from serve_app.bench.transcribers import (
    Heard,
    Measurement,
    measure,
    measure_here,
    normalised,
    options_of,
    peak_bytes,
)

from .test_clips import tone


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Six spoons, of fresh snow-peas!", "six spoons of fresh snow peas"),
        ("It’s 10 o'clock", "its ten oclock"),
        ("1,200 men", "one thousand two hundred men"),
        ("", ""),
        ("...", ""),
    ],
)
def test_only_the_words_count(text: str, words: str) -> None:
    assert normalised(text) == " ".join(word for word in words.split() if word != "and")


def test_errors_are_counted_where_something_is_said_and_inventions_where_nothing_is() -> None:
    calls = (
        Heard(1.0, 0.1, "One two three four.", "one two tree four"),
        Heard(3.0, 0.3, "", "thank you"),
        Heard(1.0, 0.1, None, "whatever it was"),
    )
    measured = Measurement("m", calls, 0.0, 0)
    assert measured.word_error_rate == pytest.approx(0.25)
    assert measured.invented_words == 2
    assert measured.realtime_factor == pytest.approx(0.1)
    assert Measurement("m", calls[1:], 0.0, 0).word_error_rate is None


def test_latencies_are_told_apart_by_length_and_last_over_all() -> None:
    calls = tuple(Heard(seconds, seconds / 10, "x", "x") for seconds in (1.0, 1.5, 4.0, 25.0))
    rows = Measurement("m", calls, 0.0, 0).latencies()
    assert [(row.utterances, row.calls) for row in rows] == [
        ("< 2 s", 2),
        ("< 5 s", 1),
        (">= 20 s", 1),
        ("all", 4),
    ]
    assert rows[0].p50_s == pytest.approx(0.125)
    assert rows[-1].p95_s == pytest.approx(2.185)


def test_a_model_is_an_engine_by_name_a_size_or_a_folder(tmp_path) -> None:
    def made(model: str) -> SttOptions:
        return options_of(model, threads=2, short_windows=False, language="en")

    assert made("pocketsphinx").engine == "pocketsphinx"
    assert made("base.en").model == "base.en"
    folder = made(str(tmp_path / "." / "x" / ".."))
    assert (folder.engine, folder.model) == ("faster_whisper", str(tmp_path / "." / "x" / ".."))
    (tmp_path / "x").mkdir()
    folder = made(str(tmp_path / "x"))
    assert (folder.model, folder.threads, folder.short_windows) == (str((tmp_path / "x").resolve()), 2, False)


def test_each_recording_is_heard_as_often_as_set() -> None:
    options = SttOptions(engine="scripted", scripted=ScriptedStt(latency_s=0.0, transcripts=("one", "two")))
    clips = [Clip("a", tone(0.5), "one"), Clip("b", tone(0.1), "one")]
    measured = measure_here("m", options, clips, 2)
    assert [(call.seconds, call.text) for call in measured.calls] == [
        (0.5, "one"),
        (0.5, "two"),
        (0.1, "one"),
        (0.1, "two"),
    ]
    assert measured.word_error_rate == 0.5


def test_a_model_is_measured_in_a_process_of_its_own() -> None:
    options = SttOptions(engine="scripted", scripted=ScriptedStt(latency_s=0.0))
    ballast = bytearray(b"x") * 300_000_000
    measured = measure("m", options, [Clip("a", tone(0.5), "tell me something")])
    del ballast
    assert measured.word_error_rate == 0.0
    assert 10e6 < measured.peak_bytes < 300e6 < peak_bytes()


def test_a_model_that_does_not_load_has_the_reason() -> None:
    measured = measure_here("m", SttOptions(engine="faster_whisper", model="no such model"), [], 1)
    assert "neither a model on this machine" in measured.error
