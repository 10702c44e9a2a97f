"""What is made of a record, and the page of it."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from loadtest import capacity, report, run
from loadtest.crowd import Pace
from loadtest.figures import Record, knee, read, steps
from loadtest.people import BARGE_IN, LOST, REFUSED, STAGE, STAGES, STALE, TURN, Outcome
from loadtest.usage import Sample

STEP_S = 20
ABOUT = {
    "machine": {"cores": 2.0, "memory_bytes": 8 << 30, "free_memory_bytes": 4 << 30, "gpus": []},
    "cpu": "A <Processor>",
    "arguments": ["--sessions", "10,20"],
    "step_s": 20.0,
}


def record(*users: int, slow_from: int = 10**9, late_from: int = 10**9) -> Record:
    """Callers at each number for 20 s, with a turn a second; slow turns, and late frames, from some number on."""
    outcomes, paces, samples = [], [], []
    cpu_s = 1.0
    for index, count in enumerate(users):
        for second in range(STEP_S):
            at = 100.0 + index * STEP_S + second
            turn_ms = (500.0 if count < slow_from else 2000.0) + count
            outcomes.append(Outcome(at, "a", TURN, turn_ms))
            outcomes += [Outcome(at, "a", STAGE + stage, 10.0) for stage in STAGES]
            outcomes.append(Outcome(at, "a", BARGE_IN, 150.0))
            late = 50.0 if count >= late_from else 1.0
            paces.append(Pace(at, count, count, 50 * count, 0.1, late, 0.1))
            cpu_s += 0.05 + 0.01 * count
            samples.append(Sample(at, {"ingress": cpu_s, "haproxy": cpu_s / 2}, {"ingress": 100.0 + count}))
    return Record(outcomes, paces, samples, ABOUT)


def test_each_number_of_callers_is_a_step_without_its_beginning():
    found = steps(record(10, 20))
    assert [(step.sessions, step.seconds) for step in found] == [(10, 11.0), (20, 11.0)]
    assert [step.turn_ms for step in found] == [[510.0] * 11, [520.0] * 11]
    assert found[0].barge_in_ms == [150.0] * 11
    assert found[0].stage_ms["stt"] == [10.0] * 11


def test_what_a_session_costs_is_cpu_over_sessions_and_time():
    (step,) = steps(record(10))
    assert step.cpu["ingress"] == pytest.approx(0.15)
    assert step.cpu_us("ingress") == pytest.approx(15_000)
    assert step.rss_mb == {"ingress": 110.0}


def test_numbers_that_are_only_passed_through_are_no_steps():
    assert [step.sessions for step in steps(record(10, 20))] == [10, 20]
    passing = record(10, 20)
    passing.paces.insert(STEP_S, Pace(119.5, 15, 15, 0, 0.0, 0.0, 0.0))
    assert [step.sessions for step in steps(passing)] == [10, 20]


def test_failures_are_counted_apart_and_are_in_no_percentile():
    told = record(10)
    told.outcomes.extend(
        [
            Outcome(110.0, "b", TURN, 9000.0, "missed: no sound within 10 s"),
            Outcome(110.0, "b", REFUSED, 5.0),
            Outcome(110.0, "b", LOST, 0.0, "closed with 1006"),
            Outcome(110.0, "b", STALE, 0.0, "a chunk of the interrupted answer"),
        ]
    )
    (step,) = steps(told)
    assert (step.missed, step.refused, step.lost, step.stale) == (1, 1, 1, 1)
    assert max(step.turn_ms) < 9000


def test_the_knee_is_where_callers_are_no_longer_served_as_few_are():
    assert knee(steps(record(10, 20, 30))) == (30, None)
    assert knee(steps(record(10, 20, 30, slow_from=30))) == (20, 30)
    refusing = record(10, 20)
    refusing.outcomes.append(Outcome(135.0, "b", REFUSED, 5.0))
    assert knee(steps(refusing)) == (10, 20)


def test_the_page_warns_of_callers_who_were_late_themselves():
    warned = report.callers_table(steps(record(10, 20, late_from=20))).note
    assert "Do not trust the row of 20" in warned
    assert "row of 10" not in warned


def test_the_page_holds_tables_plots_and_the_machine_and_needs_nothing_else(tmp_path: Path):
    folder, told = tmp_path / "results", record(10, 20, 30, slow_from=30)
    folder.mkdir()
    lines = [json.dumps(asdict(one)) for one in (*told.outcomes, *told.paces)]
    (folder / run.OUTCOMES).write_text("\n".join(lines))
    (folder / run.SAMPLES).write_text("\n".join(json.dumps(asdict(sample)) for sample in told.samples))
    (folder / run.RUN).write_text(json.dumps(ABOUT))
    report.main([str(folder)])
    page = (folder / "report.html").read_text()
    assert "A &lt;Processor&gt;" in page
    assert "The knee lies between 20 and 30 callers" in page
    assert "past the knee" in page
    assert page.count("<svg") == len(re.findall("<h2>", page)) - 3 >= 7
    assert not re.search(r"(src|href)=|@import|<script", page)
    assert "nan" not in page


def test_a_record_without_a_step_of_any_length_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="--step-s"):
        report.page(Record([], [Pace(1.0, 1, 1, 0, 0.0, 0.0, 0.0)], [], ABOUT))


def test_the_model_is_held_against_a_number_that_it_was_not_fitted_to():
    table = capacity.check_table(steps(record(10, 20, 40)), [10, 20], [40])
    assert [row[1] for row in table.rows] == ["ingress", "haproxy", "together"]
    assert [row[4] for row in table.rows] == ["+0.0%"] * 3  # what was measured here lies on a line
    with pytest.raises(ValueError, match="50"):
        capacity.check_table(steps(record(10, 20)), [10, 20], [50])


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    told = record(10)
    lines = [json.dumps(asdict(one)) for one in (*told.outcomes, *told.paces)]
    (tmp_path / run.OUTCOMES).write_text("\n".join(lines))
    (tmp_path / run.SAMPLES).write_text("\n".join(json.dumps(asdict(sample)) for sample in told.samples))
    (tmp_path / run.RUN).write_text(json.dumps(ABOUT))
    assert read(tmp_path) == told
