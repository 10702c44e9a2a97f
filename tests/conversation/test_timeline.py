import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.conversation.timeline import TurnLatency, TurnTimeline


def timeline(**cuts: float) -> TurnTimeline:
    made = TurnTimeline()
    for cut, at in cuts.items():
        made.mark(cut, at)
    return made


def test_each_stage_is_the_time_between_its_cuts() -> None:
    latency = timeline(
        last_speech=10.0,
        endpoint=10.5,
        transcript=10.75,
        first_token=11.75,
        first_segment=12.0,
        first_audio=14.0,
        first_sent=14.125,
    ).latency()
    assert latency == TurnLatency(0.5, 0.25, 1.0, 0.25, 2.0, 0.125)
    assert latency.total == 4.125
    assert list(latency.stages()) == [
        "endpointing",
        "stt",
        "llm_ttft",
        "first_segment",
        "tts_ttfb",
        "overhead",
        "total",
    ]


def test_work_done_ahead_costs_nothing() -> None:
    latency = timeline(
        last_speech=1.0, transcript=1.25, endpoint=1.5, first_token=1.75, first_sent=2.0
    ).latency()
    assert latency == TurnLatency(0.5, 0.0, 0.25, 0.0, 0.0, 0.25)


def test_the_first_mark_of_a_cut_counts() -> None:
    made = timeline(last_speech=1.0, first_sent=2.0)
    made.mark("first_sent", 3.0)
    assert made.latency().total == 1.0


@pytest.mark.parametrize("cuts", [{}, {"last_speech": 1.0}, {"first_sent": 1.0}])
def test_there_is_no_latency_of_what_was_not_spoken_or_not_sent(cuts: dict[str, float]) -> None:
    assert timeline(**cuts).latency() is None


def test_input_faster_than_real_time_is_marked() -> None:
    made = timeline(last_speech=1.0, first_sent=2.0)
    made.faster_than_realtime = True
    assert made.latency().faster_than_realtime
    assert "faster_than_realtime" not in made.latency().stages()


@given(st.dictionaries(st.sampled_from(TurnTimeline.ORDER), st.integers(0, 1000).map(float)))
def test_stages_are_never_negative_and_sum_to_the_total(cuts: dict[str, float]) -> None:
    cuts = {"last_speech": 0.0, "first_sent": 1000.0} | cuts
    *stages, total = timeline(**cuts).latency().stages().values()
    assert min(stages) >= 0
    assert sum(stages) == total == max(cuts.values()) - cuts["last_speech"]
