"""The ramp's arithmetic: who is wanted when, and what the table makes of what happened."""

import time

import pytest

from loadtest.application import BUSY_MACHINE, HAPROXY_APPLICATION, HAPROXY_CONTROLLER, RAMP, document
from loadtest.bench_ramp import (
    DEPLOYMENTS,
    EXPLAINED_MS,
    FEW,
    Crowd,
    Ramp,
    Sample,
    overhead_ms,
    replica_lines,
    session_lines,
    turn_lines,
)
from loadtest.people import LOST, OPENED, REFUSED, TURN, Outcome
from loadtest.ramp_page import write_page


def sample(at_s: float, ingress: int, stopping: int = 0) -> Sample:
    return Sample(
        at_s,
        9,
        dict.fromkeys(DEPLOYMENTS, 1) | {"Ingress": ingress},
        dict.fromkeys(DEPLOYMENTS, 0) | {"Ingress": stopping},
        busy=0.5,
    )


def test_the_ramp_rises_holds_and_falls() -> None:
    ramp = Ramp(22, before_s=10, rise_s=20, many_s=10, fall_s=20, after_s=10)
    assert [ramp.wanted(at) for at in (0, 10, 20, 30, 40, 50, 60, 500)] == [
        FEW,
        FEW,
        12,
        22,
        22,
        12,
        FEW,
        FEW,
    ]
    phases = [ramp.phase(at) for at in (0, 11, 31, 41, 61, 500)]
    assert phases == ["few", "rising", "many", "falling", "few again", "few again"]


def test_small_means_one_replica_a_stage_and_none_that_drains() -> None:
    assert sample(0, 1).is_small
    assert not sample(0, 2).is_small
    assert not sample(0, 1, stopping=1).is_small


def turn(at: float, ms: float | None) -> Outcome:
    return Outcome(
        at, "anna", TURN, EXPLAINED_MS + (ms or 0.0), "" if ms is not None else "missed: no sound within 10 s"
    )


@pytest.fixture
def crowd() -> Crowd:
    happened = Crowd("ws://nowhere", [], time.monotonic())
    happened.outcomes = [Outcome(1, name, OPENED) for name in ("anna", "ben", "carl")]
    happened.outcomes += [turn(5, 20.0), Outcome(30, "dora", REFUSED), turn(50, 30.0), turn(50, None)]
    happened.outcomes += [Outcome(80, "ben", LOST, failure="closed with 1006"), turn(95, 10.0)]
    return happened


def test_a_refusal_is_not_a_loss(crowd: Crowd) -> None:
    said = "\n".join(session_lines(crowd))
    assert "sessions begun 3, lost (never came back) 1" in said
    assert "sockets ended by the server 1 (1 x 1006)" in said
    assert "refused 1," in said


def test_missed_turns_are_counted_in_their_phase(crowd: Crowd) -> None:
    words = [line.split() for line in turn_lines(crowd.outcomes, Ramp(9), [])]
    counts = {" ".join(row[:-7]): row[-7:-4] for row in words[1:-1]}
    assert counts["many"] == ["2", "1", "0"]
    assert counts["few"] == ["1", "0", "0"]
    assert counts["all"] == ["4", "1", "0"]


def test_the_table_says_when_a_stage_grew_and_when_it_was_small_again() -> None:
    ramp = Ramp(9)
    end = ramp.corners[3]
    samples = [
        sample(0, 1),
        sample(20, 1),
        sample(31, 2),
        sample(40, 3),
        sample(end + 5, 2),
        sample(end + 9, 1),
    ]
    lines = {line.split()[0]: line.split()[1:] for line in replica_lines(samples)}
    assert lines["Ingress"] == ["1", "3", "1", "31", "s", f"{end + 9:.0f}", "s"]
    assert lines["SpeechToText"][:4] == ["1", "1", "1", "never"]


def test_the_page_needs_nothing_else(crowd: Crowd, tmp_path) -> None:  # type: ignore[no-untyped-def]
    page = tmp_path / "ramp.html"
    turns = [(one.at, overhead_ms(one)) for one in crowd.outcomes if one.name == TURN]
    write_page(page, "a <ramp>", [sample(0, 1), sample(99, 2)], turns, [(70, "lost")], ["one & two"])
    text = page.read_text()
    assert "a &lt;ramp&gt;" in text
    assert "one &amp; two" in text
    assert text.count("<polyline") == 2 + len(DEPLOYMENTS)
    assert text.count(">no answer<") == 1
    assert "http" not in text


def test_in_haproxy_mode_what_the_file_says_stays() -> None:
    config = document(RAMP, {}, "haproxy", 1234)
    controller = config["controller_options"]["runtime_env"]["env_vars"]
    assert controller.items() >= HAPROXY_CONTROLLER.items()
    assert controller["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] == "30"
    assert config["applications"][0]["runtime_env"]["env_vars"].items() >= HAPROXY_APPLICATION.items()
    bare = document(RAMP, {}, "default", 1234)
    assert bare["controller_options"]["runtime_env"]["env_vars"] == BUSY_MACHINE
    assert "runtime_env" not in bare["applications"][0]
