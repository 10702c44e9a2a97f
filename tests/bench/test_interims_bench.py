"""What the benchmark of interim transcripts makes of the events that came."""

from pathlib import Path
from typing import Any

from loadtest import bench, bench_interims
from loadtest.bench_interims import COMPLETED, DELTA, FAILED, STARTED, STOPPED, lines, open_items
from serve_app.client.connection import Arrival


def came(at: float, type_: str, item_id: str, **fields: Any) -> Arrival:
    return Arrival(at, {"type": type_, "item_id": item_id, **fields})


TWO_TURNS = [
    Arrival(9.5, {"type": "session.updated"}),
    came(10.25, STARTED, "a"),
    came(11.0, DELTA, "a", delta="five "),
    came(12.0, STOPPED, "a"),
    came(12.5, STARTED, "b"),
    came(13.0, COMPLETED, "a", transcript="five four"),
    came(14.0, STOPPED, "b"),
    came(14.5, FAILED, "b"),
]


def test_each_event_has_its_time_since_the_speech_and_since_the_start_of_its_own_turn() -> None:
    _, *rows = [line.split() for line in lines(TWO_TURNS, 10.0)]
    assert rows == [
        ["0.25", "0.00", "speech_started"],
        ["1.00", "0.75", "delta", "five"],
        ["2.00", "1.75", "speech_stopped"],
        ["2.50", "0.00", "speech_started"],
        ["3.00", "2.75", "completed", "five", "four"],
        ["4.00", "1.50", "speech_stopped"],
        ["4.50", "2.00", "failed"],
    ]


def test_a_turn_is_open_until_it_is_transcribed_or_has_failed() -> None:
    assert [open_items(TWO_TURNS[:count]) for count in (1, 2, 5, 6, 8)] == [
        set(),
        {"a"},
        {"a", "b"},
        {"b"},
        set(),
    ]


def test_an_engine_is_named_by_a_folder_or_a_name(tmp_path: Path) -> None:
    assert bench_interims.stt_of("pocketsphinx") == {"engine": "pocketsphinx"}
    assert bench_interims.stt_of("base.en")["model"] == "base.en"
    assert bench_interims.stt_of(str(tmp_path / "."))["model"] == str(tmp_path.resolve())


def test_every_benchmark_that_declares_a_command_is_listed() -> None:
    folder = Path(bench.__file__).parent
    declaring = {p.stem for p in folder.glob("bench_*.py") if "\ndef add_parser(" in p.read_text()}
    assert {module.__name__.rpartition(".")[2] for module in bench.BENCHMARKS} == declaring


def test_each_command_is_carried_out_by_the_module_that_declares_it() -> None:
    parser = bench.parser()
    modules = {
        "turns": "bench_turns",
        "heard": "bench_words",
        "heard-espeak": "bench_espeak_words",
        "interims": "bench_interims",
    }
    for name, module in modules.items():
        assert parser.parse_args([name]).run.__module__ == f"loadtest.{module}"
