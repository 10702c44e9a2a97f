"""The microphone of a session by itself: what clients append becomes frames, however it was cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.pcm import encode_mu_law, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.realtime.session_config import AudioFormat
from serve_app.session.input import AudioInput

SOUND = np.random.default_rng(3).uniform(-0.5, 0.5, 24_000).astype(np.float32)


def an_input() -> AudioInput:
    return AudioInput(max_turn_s=60, backlog_s=120)


@given(cuts=st.lists(st.integers(0, 12_000), max_size=20))
def test_frames_do_not_depend_on_how_the_audio_was_cut(cuts: list[int]) -> None:
    pcm = encode_pcm(SOUND[:12_000])
    audio = an_input()
    edges = [0, *sorted(2 * cut for cut in cuts), len(pcm)]
    frames = [
        frame for start, stop in pairwise(edges) for frame in audio.append(pcm[start:stop], AudioFormat.PCM)
    ]
    whole = an_input().append(pcm, AudioFormat.PCM)
    assert np.array_equal(frames, whole)


@pytest.mark.parametrize("audio_format", [AudioFormat.PCM, AudioFormat.PCMU])
def test_a_frame_comes_as_soon_as_its_last_sample_has(audio_format: AudioFormat) -> None:
    """Not a packet later: what waits for the next append is never a whole frame."""
    encode, rate = (encode_pcm, 24_000) if audio_format is AudioFormat.PCM else (encode_mu_law, 8_000)
    audio, resampler = an_input(), StreamingResampler(rate, 16_000)
    frames = given = 0
    for start in range(0, 12_000, 37):
        part = SOUND[start : start + 37]
        frames += len(audio.append(encode(part), audio_format))
        given += len(resampler.push(part))
        assert frames == given // 512


def test_silence_completes_the_frame_that_was_begun() -> None:
    audio = an_input()
    for start in (0, 240):
        assert audio.append(encode_pcm(SOUND[start : start + 240]), AudioFormat.PCM) == []
    assert audio.append_silence(0) == 1
    assert audio.end == 512
    heard = np.frombuffer(audio.read(0, 512), dtype="<i2")
    assert np.any(heard[250:290]), "what was appended is in it"
    assert not np.any(heard[320:]), "and silence behind it"
    assert audio.append_silence(0) == 0


def test_another_format_goes_on_where_the_one_before_ended() -> None:
    audio = an_input()
    audio.append(encode_pcm(SOUND[:2_400]), AudioFormat.PCM)
    frames = audio.append(encode_mu_law(SOUND[:8_000]), AudioFormat.PCMU)
    assert len(frames) == (1_600 + 16_000) // 512 - 1_600 // 512
    audio.append_silence(0)
    assert 17_600 - 2 * 24 <= audio.end <= 17_600 + 512
