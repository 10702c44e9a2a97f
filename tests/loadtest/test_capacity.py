"""Formulas against their tables, the plan against the simulation."""

import pytest

from loadtest.capacity import (
    LOOP_SHARE,
    WAIT_SHARE,
    Line,
    Stage,
    Traffic,
    erlang_c,
    fitted,
    loops,
    main,
    need,
    simulate,
    waits_longer,
)


@pytest.mark.parametrize(
    ("servers", "load", "busy"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.4092), (100, 90.0, 0.2169), (3, 3.0, 1.0), (3, 5.0, 1.0)],
)
def test_erlang_c_gives_the_known_values(servers: int, load: float, busy: float):
    """1 server: its load; 2 at 1 erlang: 1/3 in closed form; the others from a sum of the formula's terms."""
    assert erlang_c(servers, load) == pytest.approx(busy, abs=0.0005)


def test_few_wait_long():
    assert waits_longer(2, 1.0, 0.0, 0.1) == pytest.approx(1 / 3)
    assert waits_longer(2, 1.0, 0.1, 0.1) == pytest.approx(0.3679 / 3, abs=0.001)
    assert waits_longer(2, 3.0, 5.0, 0.1) == 1.0


def test_a_line_is_fitted_through_what_was_measured():
    line = fitted([(10, 0.15), (20, 0.25)])
    assert line.cores(40) == pytest.approx(0.45)
    assert fitted([(10, 0.2)]) == Line(0.0, 0.02)
    with pytest.raises(ValueError, match="nothing"):
        fitted([])


def test_no_event_loop_is_planned_beyond_its_share_of_a_core():
    line = Line(0.05, 0.01)
    for sessions in (1, 65, 66, 500):
        count = loops(line, sessions)
        assert line.cores(sessions) / count <= LOOP_SHARE
        assert count == 1 or line.cores(sessions) / (count - 1) > LOOP_SHARE


def test_a_stage_gets_the_fewest_replicas_with_which_few_wait():
    traffic, stage = Traffic(), Stage("stt", 0.1, 4)
    planned = need(stage, 1000, traffic)
    assert planned.calls_a_second == pytest.approx(1000 / traffic.turn_s)
    assert planned.waiting <= WAIT_SHARE
    fewer = waits_longer((planned.replicas - 1) * stage.slots, planned.load, 0.05, stage.seconds)
    assert fewer > WAIT_SHARE
    assert need(stage, 1, traffic).replicas == 1


def test_a_thousand_callers_who_are_played_through_wait_no_more_than_was_planned():
    traffic = Traffic()
    stages = [Stage("stt", 0.1, 4), Stage("llm", 1.0, 16), Stage("tts", 0.5, 2)]
    needs = [need(stage, 1000, traffic) for stage in stages]
    played = simulate([(one.stage, one.replicas) for one in needs], 1000, traffic, seconds=300)
    assert len(played.waited_ms) == pytest.approx(300 * 1000 * traffic.turns_a_second, rel=0.1)
    late = sum(ms > 50 for ms in played.waited_ms) / len(played.waited_ms)
    assert late <= 3 * WAIT_SHARE, "three stages, each of which may make one in a hundred wait"
    for one in needs:
        assert played.busy[one.stage.name] == pytest.approx(one.busy, rel=0.1)


def test_with_too_few_replicas_the_simulated_callers_wait():
    traffic, stage = Traffic(), Stage("llm", 1.0, 16)
    planned = need(stage, 1000, traffic).replicas
    starved = simulate([(stage, planned - 2)], 1000, traffic, seconds=300)
    assert sum(ms > 50 for ms in starved.waited_ms) / len(starved.waited_ms) > 0.2
    assert starved.busy["llm"] > 0.99


def test_the_simulation_is_the_same_each_time():
    stages = [(Stage("stt", 0.1, 1), 3)]
    assert simulate(stages, 200, Traffic(), seconds=60) == simulate(stages, 200, Traffic(), seconds=60)


def test_stages_are_written_as_seconds_and_slots():
    assert Stage.parse("llm", "1.2x32") == Stage("llm", 1.2, 32)
    assert Stage.parse("tts", "0.5") == Stage("tts", 0.5, 1)
    with pytest.raises(ValueError, match="two"):
        Stage.parse("tts", "two")


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str]):
    main(["plan", "--callers", "1000", "--ingress-us", "7000", "--haproxy-us", "3500"])
    said = capsys.readouterr().out
    assert "1000 callers" in said
    assert "10" in next(line for line in said.splitlines() if line.startswith("ingress"))
