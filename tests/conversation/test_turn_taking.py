import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.conversation.turn_taking import (
    TurnDetector,
    TurnEdge,
    UserState,
    ms_of,
    samples_of,
)

FRAME = 512
DELAY = samples_of(500)


def detector() -> TurnDetector:
    return TurnDetector(threshold=0.5, speech_min_ms=64, pause_min_ms=96)


def push(detector: TurnDetector, *probabilities: float, delay: int = DELAY) -> list[TurnEdge]:
    edges = [detector.push(FRAME, probability, delay=delay) for probability in probabilities]
    return [edge for edge in edges if edge is not None]


def test_speech_starts_after_two_frames_and_began_with_the_first() -> None:
    ears = detector()
    assert push(ears, 0.0, 0.9) == []
    assert ears.state is UserState.SILENT
    assert push(ears, 0.9) == [TurnEdge.STARTED]
    assert (ears.state, ears.speech_start, ears.speech_end) == (UserState.SPEAKING, FRAME, 3 * FRAME)


def test_a_click_of_one_frame_is_no_speech_and_does_not_add_to_the_next() -> None:
    ears = detector()
    assert push(ears, 0.9, 0.0, 0.9, 0.0, 0.9, 0.0) == []
    assert ears.state is UserState.SILENT


def test_a_pause_comes_after_three_silent_frames_and_the_end_with_the_delay() -> None:
    ears = detector()
    push(ears, *[0.9] * 10)
    assert push(ears, 0.0, 0.0) == []
    assert push(ears, 0.0) == [TurnEdge.PAUSED]
    assert ears.state is UserState.PAUSING
    assert push(ears, *[0.0] * 12) == []
    assert push(ears, 0.0) == [TurnEdge.ENDED]
    assert (ears.state, ears.speech_end) == (UserState.SILENT, 10 * FRAME)


def test_speech_that_goes_on_after_a_pause_is_the_same_speech() -> None:
    ears = detector()
    push(ears, *[0.9] * 10, *[0.0] * 5)
    assert push(ears, 0.9) == [TurnEdge.RESUMED]
    assert (ears.state, ears.speech_start, ears.speech_end) == (UserState.SPEAKING, 0, 16 * FRAME)
    assert push(ears, *[0.0] * 15) == [TurnEdge.PAUSED], "the silence is counted from the new end"


def test_a_delay_shorter_than_a_pause_ends_at_once() -> None:
    ears = detector()
    push(ears, *[0.9] * 4)
    assert push(ears, 0.0, delay=samples_of(32)) == [TurnEdge.ENDED]


def test_a_dip_just_under_the_threshold_does_not_end_speech() -> None:
    ears = detector()
    assert push(ears, 0.5, 0.36) == [TurnEdge.STARTED], "the second frame is let in by the first"
    assert push(ears, *[0.36] * 40) == []
    assert ears.state is UserState.SPEAKING
    assert push(ears, *[0.34] * 3) == [TurnEdge.PAUSED]


def test_a_dip_does_not_begin_speech_nor_resume_it() -> None:
    ears = detector()
    assert push(ears, *[0.4] * 10) == []
    push(ears, 0.9, 0.9, 0.0, 0.0, 0.0)
    assert push(ears, *[0.4] * 5) == []
    assert ears.state is UserState.PAUSING


def test_is_speech_tells_of_the_last_frame() -> None:
    ears = detector()
    push(ears, 0.9)
    assert ears.is_speech
    push(ears, 0.1)
    assert not ears.is_speech


def test_skipped_audio_moves_the_position_and_nothing_else() -> None:
    ears = detector()
    ears.skip(1000)
    assert (ears.position, ears.state) == (1000, UserState.SILENT)
    push(ears, 0.9, 0.9)
    assert ears.speech_start == 1000


def test_reset_forgets_the_speech_under_way_and_keeps_the_position() -> None:
    ears = detector()
    push(ears, 0.9, 0.9, 0.9)
    ears.reset()
    assert (ears.state, ears.position) == (UserState.SILENT, 3 * FRAME)
    push(ears, 0.9)
    ears.reset()
    assert push(ears, 0.9) == [], "the frame before the reset does not count"


@pytest.mark.parametrize("ms", [0, 1, 32, 96, 500, 60_000])
def test_samples_and_milliseconds_agree(ms: int) -> None:
    assert ms_of(samples_of(ms)) == ms


PROBABILITIES = st.sampled_from([0.0, 0.3, 0.36, 0.49, 0.5, 0.9])


@given(
    frames=st.lists(st.tuples(PROBABILITIES, st.integers(1, 20)), max_size=12),
    cuts=st.lists(st.sampled_from([1, 2, 4]), min_size=1),
    delay_frames=st.integers(0, 8),
)
def test_the_detector_finds_the_same_speech_however_the_audio_is_cut(
    frames: list[tuple[float, int]], cuts: list[int], delay_frames: int
) -> None:
    """Seen where the cuts fall together; a coarse cut may pass over an edge, but not end elsewhere."""
    whole, fine = detector(), detector()
    delay = delay_frames * FRAME
    pieces = [probability for probability, length in frames for _ in range(length)]
    for i, probability in enumerate(pieces):
        whole.push(FRAME, probability, delay=delay)
        cut = cuts[i % len(cuts)]
        for _ in range(cut):
            fine.push(FRAME // cut, probability, delay=delay)
        assert _seen(whole) == _seen(fine)


def _seen(ears: TurnDetector) -> tuple[object, ...]:
    return ears.state, ears.position, ears.speech_start, ears.speech_end, ears.is_speech
