from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import pcm

EVERY_SAMPLE = np.arange(-32768, 32768).astype(np.int16)
EVERY_BYTE = bytes(range(256))


def test_every_16_bit_sample_survives_the_way_to_float_and_back() -> None:
    audio = pcm.to_audio(EVERY_SAMPLE)
    assert audio.dtype == np.float32
    assert audio.min() == -1.0
    assert np.array_equal(pcm.to_samples(audio), EVERY_SAMPLE)


def test_pcm_bytes_are_little_endian() -> None:
    assert pcm.encode_pcm(np.array([1 / 32768, -2 / 32768], dtype=np.float32)) == b"\x01\x00\xfe\xff"
    assert pcm.decode_pcm(b"\x00\x80\x00\x40").tolist() == [-1.0, 0.5]


def test_audio_beyond_full_scale_is_clipped() -> None:
    assert pcm.to_samples(np.array([2.0, 1.0, -2.0], dtype=np.float32)).tolist() == [32767, 32767, -32768]


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of bytes, not 3"):
        pcm.decode_pcm(b"\x00\x01\x02")


@pytest.mark.parametrize(
    ("sample", "code"),
    # Both signs of zero, clipping, the middle, and the two sides of a segment's edge.
    [
        (0, 0xFF),
        (-1, 0x7F),
        (32635, 0x80),
        (32767, 0x80),
        (-32768, 0x00),
        (1000, 0xCE),
        (-1000, 0x4E),
        (8059, 0xA0),
        (8060, 0x9F),
    ],
)
def test_mu_law_codes(sample: int, code: int) -> None:
    assert pcm.encode_mu_law(pcm.to_audio(np.array([sample], dtype=np.int16))) == bytes([code])


@pytest.mark.parametrize(
    ("sample", "code"),
    [
        (0, 0xD5),
        (-1, 0x55),
        (32767, 0xAA),
        (-32768, 0x2A),
        (1000, 0xFA),
        (-1000, 0x7A),
        (255, 0xDA),
        (256, 0xC5),
    ],
)
def test_a_law_codes(sample: int, code: int) -> None:
    assert pcm.encode_a_law(pcm.to_audio(np.array([sample], dtype=np.int16))) == bytes([code])


def test_g711_decodes_to_its_published_levels() -> None:
    mu_law = pcm.to_samples(pcm.decode_mu_law(b"\x00\x80\x7f\xff\x01\xf0"))
    assert mu_law.tolist() == [-32124, 32124, 0, 0, -31100, 120]
    a_law = pcm.to_samples(pcm.decode_a_law(b"\x2a\xaa\x55\xd5\x80\xc5"))
    assert a_law.tolist() == [-32256, 32256, -8, 8, 5504, 264]


@pytest.mark.parametrize(
    ("encode", "decode"),
    [(pcm.encode_mu_law, pcm.decode_mu_law), (pcm.encode_a_law, pcm.decode_a_law)],
    ids=["mu-law", "a-law"],
)
def test_g711_keeps_the_order_of_levels_and_one_part_in_32(
    encode: Callable[[pcm.Audio], bytes], decode: Callable[[bytes], pcm.Audio]
) -> None:
    heard = pcm.to_samples(decode(encode(pcm.to_audio(EVERY_SAMPLE)))).astype(np.int32)
    sample = EVERY_SAMPLE.astype(np.int32)
    assert np.all(np.diff(heard) >= 0)
    assert np.all(np.abs(heard - sample) <= 8 + np.abs(sample) / 32)


@given(st.binary(max_size=64))
def test_g711_recoding_changes_no_level(data: bytes) -> None:
    for encode, decode in (
        (pcm.encode_mu_law, pcm.decode_mu_law),
        (pcm.encode_a_law, pcm.decode_a_law),
    ):
        assert np.array_equal(decode(encode(decode(data))), decode(data))


def test_peak_is_in_db_below_full_scale() -> None:
    assert pcm.peak_dbfs(np.array([0.1, -1.0], dtype=np.float32)) == 0.0
    assert pcm.peak_dbfs(np.array([0.5], dtype=np.float32)) == pytest.approx(-6.02, abs=0.01)
    assert pcm.peak_dbfs(np.zeros(3, dtype=np.float32)) == float("-inf")
    assert pcm.peak_dbfs(np.zeros(0, dtype=np.float32)) == float("-inf")
