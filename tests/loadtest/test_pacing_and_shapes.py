"""How late callers are, and how many of them there are when."""

import pytest

from loadtest.pacing import Lateness
from loadtest.shapes import Flat, Ramp, Soak, Steps


def test_percentiles_of_lateness_are_those_of_what_was_noted():
    late = Lateness()
    for tenths in range(1000):
        late.note(tenths / 10_000)
    assert late.percentile_ms(0.5) == pytest.approx(50.0, abs=0.2)
    assert late.percentile_ms(0.99) == pytest.approx(99.0, abs=0.2)
    assert late.total == 1000


def test_one_late_frame_in_a_hundred_is_seen_by_the_99th_percentile_and_not_by_the_median():
    late = Lateness()
    for number in range(200):
        late.note(0.5 if number % 50 == 0 else 0.0001)
    assert late.percentile_ms(0.5) < 1
    assert late.percentile_ms(0.99) == pytest.approx(500, abs=1)


def test_what_is_early_counts_as_on_time_and_what_is_very_late_is_kept():
    late = Lateness()
    late.note(-0.003)
    assert late.percentile_ms(0.5) <= 0.1
    late.clear()
    assert late.percentile_ms(0.5) == 0.0
    late.note(60.0)
    assert late.percentile_ms(0.5) >= 999


def test_a_ramp_rises_holds_and_falls():
    ramp = Ramp(users=40, up_s=100, hold_s=50)
    assert [ramp(second)[0] for second in (0, 50, 100, 149)] == [1, 20, 40, 40]
    assert [ramp(second)[0] for second in (200, 240)] == [20, 4]
    assert ramp(250) is None


def test_a_ramp_lets_callers_come_as_fast_as_it_rises():
    assert Ramp(users=400, up_s=100, hold_s=0)(10)[1] == 4
    assert Ramp(users=4, up_s=100, hold_s=0)(10)[1] == 1


def test_a_soak_exchanges_a_tenth_of_its_callers_every_minute():
    soak = Soak(users=50, hold_s=900)
    counts = [soak(second)[0] for second in range(900)]
    assert counts[0] == counts[59] == 50
    assert counts[61] == counts[121] == 45
    assert counts[70] == counts[899] == 50
    assert soak(900) is None


def test_steps_hold_each_number_for_its_time():
    steps = Steps((5, 10), step_s=30)
    assert [steps(second) for second in (0, 29, 30, 59, 60)] == [
        (5, 10),
        (5, 10),
        (10, 10),
        (10, 10),
        None,
    ]


def test_a_flat_test_goes_on_until_it_is_stopped_or_its_time_is_over():
    assert Flat(7, 2, None)(1e6) == (7, 2)
    assert Flat(7, 2, 60)(60) is None
