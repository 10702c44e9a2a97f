"""Who came back after a move, who did not, and which turns fall into one."""

from loadtest.bench_ramp import (
    DEPLOYMENTS,
    EXPLAINED_MS,
    Ramp,
    Sample,
    replica_lines,
    stage_lines,
    turn_lines,
)
from loadtest.moves import Move, moves, returns
from loadtest.people import CUT, LOST, OPENED, RESUMED, STAGE, TURN, Outcome


def outcome(at: float, person: str, name: str, failure: str = "", ms: float = 0.0) -> Outcome:
    return Outcome(at, person, name, ms, failure)


def told_to_move(at: float, person: str) -> Outcome:
    return outcome(at, person, LOST, "closed with 1012")


def test_who_comes_back_to_the_session_has_not_lost_it():
    story = [
        outcome(0, "anna", OPENED),
        outcome(0, "ben", OPENED),
        told_to_move(10, "anna"),
        outcome(10.25, "anna", OPENED, "no session: HTTP 503"),
        outcome(10.5, "anna", RESUMED),
        told_to_move(11, "ben"),
        outcome(12, "ben", RESUMED),
    ]
    found = returns(story)
    assert (found.begun, found.lost, found.codes, found.away_s) == (2, 0, {"1012": 2}, [0.5, 1.0])


def test_who_begins_anew_or_stays_away_has_lost_the_session():
    anew = [outcome(0, "anna", OPENED), told_to_move(10, "anna"), outcome(11, "anna", OPENED)]
    away = [outcome(0, "ben", OPENED), outcome(10, "ben", LOST, "closed with 1006")]
    found = returns([*anew, *away])
    assert (found.begun, found.lost, found.away_s) == (3, 2, [])
    assert found.codes == {"1012": 1, "1006": 1}


def test_moves_that_lie_apart_are_told_apart_and_a_redeploy_keeps_its_own():
    story = [told_to_move(at, "anna") for at in (65.0, 70.0, 110.0)]
    story += [outcome(at + 0.5, "anna", RESUMED) for at in (65.0, 70.0, 110.0)]
    made = moves(story, redeploy_at_s=45.0)
    assert made == [Move("redeploy, 2 moved", 45.0, 70.5), Move("1 moved", 110.0, 110.5)]
    assert [move.name for move in moves(story)] == ["2 moved", "1 moved"]
    assert [made[0].covers(at) for at in (44.4, 44.5, 75.5, 75.6)] == [False, True, True, False]


def test_turns_are_counted_before_during_and_after_the_moves():
    turns = [outcome(at, "anna", TURN, ms=EXPLAINED_MS + at) for at in (10.0, 50.0, 90.0, 100.0)]
    turns += [outcome(51.0, "ben", TURN, CUT), outcome(91.0, "ben", TURN, "missed: no sound within 10 s")]
    lines = list(turn_lines(turns, Ramp(16), [Move("1 moved", 49.0, 50.0)]))
    cells = {line[:14].strip(): line[14:].split() for line in lines[1:-1]}
    assert cells["all"][:3] == ["6", "1", "1"]
    assert cells["before moves"] == ["1", "0", "0", "10", "10", "10", "10"]
    assert cells["during moves"] == ["2", "0", "1", "50", "50", "50", "50"]
    assert cells["after moves"][:4] == ["3", "1", "0", "95"]


def test_the_stages_too_are_told_apart_by_the_moves():
    stages = [outcome(at, "anna", STAGE + "stt", ms=at) for at in (10.0, 20.0, 50.0, 90.0)]
    cells = [line.split(maxsplit=1) for line in stage_lines(stages, [Move("1 moved", 49.0, 50.0)])][1:]
    assert [when for when, _ in cells] == ["before", "during", "after"]
    assert ["15 / 20" in cells[0][1], "50 / 50" in cells[1][1], "90 / 90" in cells[2][1]] == [True] * 3
    [_, everything] = stage_lines(stages, [])
    assert everything.split()[0] == "all"


def test_a_stage_is_at_one_replica_again_after_it_last_had_more():
    counts = {0.0: 1, 10.0: 3, 20.0: 1, 30.0: 2, 40.0: 1, 50.0: 1}
    samples = [Sample(at, 2, dict.fromkeys(DEPLOYMENTS, n), {}, 0.5) for at, n in counts.items()]
    _, *lines = replica_lines(samples)
    assert [line.split()[1:] for line in lines] == [["1", "3", "1", "10", "s", "40", "s"]] * len(DEPLOYMENTS)
    _, *lines = replica_lines(samples[:4])
    assert lines[0].split()[-1] == "never"
