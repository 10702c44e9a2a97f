import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.pcm import to_audio, to_samples
from serve_app.audio.resampling import Audio, BlockResampler, StreamingResampler

RATES = [8_000, 16_000, 22_050, 24_000]
PAIRS = [(i, o) for i in RATES for o in RATES if i != o]


def resampled(audio: Audio, input_rate: int, output_rate: int, cuts: list[int]) -> Audio:
    resampler = StreamingResampler(input_rate, output_rate)
    pieces = [resampler.push(piece) for piece in np.split(audio, sorted(cuts))]
    return np.concatenate([*pieces, resampler.flush()])


def noise(samples: int) -> Audio:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)


def tone(hz: float, sample_rate: int) -> Audio:
    return np.sin(2 * np.pi * hz * np.arange(sample_rate) / sample_rate).astype(np.float32)


@given(
    pair=st.sampled_from(PAIRS),
    samples=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=12),
)
def test_output_does_not_depend_on_how_the_input_was_cut(
    pair: tuple[int, int], samples: int, cuts: list[int]
) -> None:
    audio = noise(samples)
    whole = resampled(audio, *pair, cuts=[])
    assert np.array_equal(resampled(audio, *pair, cuts=[min(cut, samples) for cut in cuts]), whole)
    assert whole.dtype == np.float32
    assert len(whole) == -(-samples * pair[1] // pair[0])


@pytest.mark.parametrize("pair", PAIRS)
def test_agrees_with_soxr_on_a_tone_in_the_pass_band(pair: tuple[int, int]) -> None:
    # soxr's HQ is the reference: same tone, same time axis, the first and last 20 ms left out.
    audio = tone(0.8 * min(pair) / 2, pair[0])
    ours, reference = resampled(audio, *pair, cuts=[]), soxr.resample(audio, *pair, quality="HQ")
    edge = pair[1] // 50
    assert np.abs(ours - reference)[edge:-edge].max() < 10 ** (-60 / 20)


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[1] < pair[0]])
def test_what_the_lower_rate_cannot_hold_is_removed(pair: tuple[int, int]) -> None:
    audio = tone((1.04 * min(pair) / 2 + pair[0] / 2) / 2, pair[0])
    edge = pair[1] // 50
    assert np.abs(resampled(audio, *pair, cuts=[]))[edge:-edge].max() < 10 ** (-65 / 20)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_click_stays_at_its_time(pair: tuple[int, int]) -> None:
    click = np.zeros(pair[0], dtype=np.float32)
    click[pair[0] // 2] = 1.0
    assert np.argmax(resampled(click, *pair, cuts=[])) == pair[1] // 2


@pytest.mark.parametrize("pair", PAIRS)
def test_the_delay_is_24_samples_of_the_lower_rate_at_every_moment(pair: tuple[int, int]) -> None:
    resampler = StreamingResampler(*pair)
    produced, delays_s = 0, []
    for pushed in range(1, 2001):
        produced += len(resampler.push(noise(1)))
        delays_s.append(pushed / pair[0] - produced / pair[1])
    assert max(delays_s) <= 24 / min(pair) + 2 / min(pair)


@given(
    pair=st.sampled_from(PAIRS), pushed=st.integers(0, 2000), wanted=st.integers(1, 600), early=st.booleans()
)
def test_what_is_missing_is_exactly_what_completes_the_output(
    pair: tuple[int, int], pushed: int, wanted: int, early: bool
) -> None:
    resampler = StreamingResampler(*pair)
    resampler.push(noise(pushed))
    missing = resampler.missing(wanted)
    assert missing >= 0
    if missing:
        assert (len(resampler.push(noise(missing - early))) >= wanted) is not early


def test_equal_rates_pass_audio_through() -> None:
    resampler = StreamingResampler(16_000, 16_000)
    audio = noise(5)
    assert resampler.push(audio) is audio
    assert resampler.missing(5) == 5
    assert len(resampler.flush()) == 0


def test_a_flush_begins_a_new_stream() -> None:
    resampler = StreamingResampler(24_000, 16_000)
    audio = noise(480)
    first = np.concatenate([resampler.push(audio), resampler.flush()])
    assert np.array_equal(np.concatenate([resampler.push(audio), resampler.flush()]), first)


@pytest.mark.parametrize("rates", [(24_000, 16_000), (16_000, 16_000)])
def test_audio_of_two_dimensions_is_refused_and_changes_nothing(rates: tuple[int, int]) -> None:
    resampler = StreamingResampler(*rates)
    with pytest.raises(ValueError, match="one-dimensional"):
        resampler.push(np.zeros((4, 2), dtype=np.float32))
    assert len(resampler.flush()) == 0


def test_a_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        StreamingResampler(0, 16_000)


@pytest.mark.parametrize("rate", [8_000, 24_000])
def test_blocks_of_many_streams_become_what_each_stream_would_by_itself(rate: int) -> None:
    blocks = BlockResampler(rate, 16_000, 512)
    streams = [to_samples(noise(rate + n)) for n in range(3)]
    padded = [np.concatenate((np.zeros(blocks.lead, dtype=np.int16), stream)) for stream in streams]
    alone = [StreamingResampler(rate, 16_000).push(to_audio(stream)) for stream in streams]
    for number in range(20):
        start = number * blocks.step
        frames = blocks.resample([one[start : start + blocks.block].tobytes() for one in padded])
        assert frames.shape == (3, 512)
        for frame, whole in zip(frames, alone, strict=True):
            assert np.abs(frame - whole[number * 512 : (number + 1) * 512]).max() < 1e-5


def test_a_frame_that_is_no_whole_number_of_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 16"):
        BlockResampler(24_000, 16_000, 100)
