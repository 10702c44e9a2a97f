import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.framing import FrameAssembler, RecentInput


@given(samples=st.integers(0, 3000), cuts=st.lists(st.integers(0, 3000), max_size=10))
def test_frames_do_not_depend_on_how_the_audio_was_cut(samples: int, cuts: list[int]) -> None:
    audio = np.arange(samples, dtype=np.float32)
    assembler = FrameAssembler(512)
    pieces = np.split(audio, sorted(min(cut, samples) for cut in cuts))
    frames = [frame for piece in pieces for frame in assembler.push(piece)]
    assert len(frames) == samples // 512
    for index, frame in enumerate(frames):
        assert np.array_equal(frame, audio[index * 512 : (index + 1) * 512])


def test_a_frame_belongs_to_the_caller() -> None:
    assembler = FrameAssembler(4)
    (first,) = assembler.push(np.zeros(4, dtype=np.float32))
    assembler.push(np.ones(4, dtype=np.float32))
    assert not first.any()


@given(
    capacity=st.integers(1, 50),
    pieces=st.lists(st.integers(0, 120), max_size=12),
    window=st.tuples(st.integers(0, 800), st.integers(0, 800)),
)
def test_the_ring_gives_back_what_was_appended_at_each_position(
    capacity: int, pieces: list[int], window: tuple[int, int]
) -> None:
    ring = RecentInput(capacity_s=capacity / 7, sample_rate=7)
    everything = np.arange(sum(pieces), dtype=np.int16)
    for piece in np.split(everything, np.cumsum(pieces)[:-1] if pieces else []):
        ring.append(piece)
    end = len(everything)
    assert (ring.start, ring.end) == (max(0, end - capacity), end)
    start, stop = sorted(min(edge, end) for edge in window)
    held = everything[max(start, ring.start) : max(stop, ring.start)]
    assert ring.read(start, stop) == held.astype("<i2").tobytes()


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_a_range_that_never_was_is_refused(start: int, stop: int) -> None:
    ring = RecentInput(capacity_s=1.0)
    ring.append(np.zeros(5, dtype=np.int16))
    with pytest.raises(ValueError, match=r"of 5 samples"):
        ring.read(start, stop)


@given(
    pieces=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    forgotten=st.integers(-5, 300),
    window=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_what_is_forgotten_is_not_read_and_not_held(
    pieces: list[int], forgotten: int, window: tuple[int, int]
) -> None:
    ring = RecentInput(capacity_s=100, sample_rate=7)
    end = sum(pieces)
    everything = np.arange(end, dtype=np.int16)
    for piece in np.split(everything, np.cumsum(pieces)[:-1]):
        ring.append(piece)
    ring.forget(forgotten)
    assert ring.start == min(max(0, forgotten), end)
    start, stop = sorted(min(edge, end) for edge in window)
    held = everything[max(start, ring.start) : max(stop, ring.start)]
    assert ring.read(start, stop) == held.astype("<i2").tobytes()
    assert sum(len(block) for block in ring._blocks) < end - ring.start + 2 * 7
    ring.append(np.array([9], dtype=np.int16))
    assert ring.read(end, end + 1) == b"\x09\x00"
