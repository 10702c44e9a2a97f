"""The microphone of a session by itself: what clients append becomes blocks, however it was cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.pcm import (
    Audio,
    decode_a_law,
    decode_mu_law,
    decode_pcm,
    encode_a_law,
    encode_mu_law,
    encode_pcm,
    to_samples,
)
from serve_app.audio.resampling import StreamingResampler
from serve_app.realtime.session_config import AudioFormat
from serve_app.session.ears import resampler
from serve_app.session.input import AudioInput

CODECS = {
    AudioFormat.PCM: (encode_pcm, decode_pcm),
    AudioFormat.PCMU: (encode_mu_law, decode_mu_law),
    AudioFormat.PCMA: (encode_a_law, decode_a_law),
}
SOUND = np.random.default_rng(3).uniform(-0.5, 0.5, 24_000).astype(np.float32)


def an_input() -> AudioInput:
    return AudioInput(max_turn_s=60, backlog_s=120)


def keep(audio: AudioInput, blocks: list[bytes]) -> int:
    """As a session does; returns how many there were."""
    for frame in resampler(audio.rate).resample(blocks) if blocks else []:
        audio.keep(to_samples(frame))
    return len(blocks)


@given(cuts=st.lists(st.integers(0, 12_000), max_size=20))
def test_blocks_do_not_depend_on_how_the_audio_was_cut(cuts: list[int]) -> None:
    pcm = encode_pcm(SOUND[:12_000])
    audio = an_input()
    edges = [0, *sorted(2 * cut for cut in cuts), len(pcm)]
    blocks = [b for start, stop in pairwise(edges) for b in audio.append(pcm[start:stop], AudioFormat.PCM)]
    assert blocks == an_input().append(pcm, AudioFormat.PCM)


@pytest.mark.parametrize("audio_format", [AudioFormat.PCM, AudioFormat.PCMU])
def test_a_frame_comes_as_soon_as_its_last_sample_has(audio_format: AudioFormat) -> None:
    """Not a packet later: what waits for the next append is never a whole frame."""
    encode, rate = (encode_pcm, 24_000) if audio_format is AudioFormat.PCM else (encode_mu_law, 8_000)
    audio, stream = an_input(), StreamingResampler(rate, 16_000)
    frames = given = 0
    for start in range(0, 12_000, 37):
        part = SOUND[start : start + 37]
        frames += len(audio.append(encode(part), audio_format))
        given += len(stream.push(part))
        assert frames == given // 512


@pytest.mark.parametrize("audio_format", [AudioFormat.PCM, AudioFormat.PCMU, AudioFormat.PCMA])
def test_what_is_kept_is_what_a_stream_resampled_alone_would_be(audio_format: AudioFormat) -> None:
    encode, decode = CODECS[audio_format]
    encoded = encode(SOUND)
    audio = an_input()
    keep(audio, audio.append(encoded, audio_format))
    alone = StreamingResampler(audio_format.rate, 16_000).push(decode(encoded))
    kept = np.frombuffer(audio.read(0, audio.end), dtype="<i2") / 32768
    assert len(kept) > 15_000
    assert np.abs(kept - alone[: len(kept)]).max() < 1 / 32768


def test_silence_completes_the_frame_that_was_begun() -> None:
    audio = an_input()
    for start in (0, 240):
        assert audio.append(encode_pcm(SOUND[start : start + 240]), AudioFormat.PCM) == []
    assert keep(audio, audio.append_silence(0)) == 1
    assert audio.end == 512
    heard = np.frombuffer(audio.read(0, 512), dtype="<i2")
    assert np.any(heard[250:290]), "what was appended is in it"
    assert not np.any(heard[350:]), "and silence behind it"
    assert audio.append_silence(0) == []


@given(appended=st.integers(0, 5_000), silences=st.lists(st.integers(1, 2_000), max_size=4))
def test_silence_is_as_long_as_was_asked_and_ends_with_a_frame(appended: int, silences: list[int]) -> None:
    audio = an_input()
    frames = len(audio.append(encode_pcm(SOUND[:appended]), AudioFormat.PCM))
    frames += len(audio.append_silence(0))
    assert frames == -(-appended // 768)
    for samples in silences:
        given = len(audio.append_silence(samples))
        assert samples - 1 <= 512 * given < samples + 512
    assert audio.append_silence(0) == []


def test_speech_after_silence_is_where_it_belongs() -> None:
    audio = an_input()
    keep(audio, audio.append(encode_pcm(SOUND[:1_000]), AudioFormat.PCM))
    keep(audio, audio.append_silence(0))
    begins = audio.end
    keep(audio, audio.append(encode_pcm(np.full(24_000, 0.25, dtype=np.float32)), AudioFormat.PCM))
    heard = np.frombuffer(audio.read(0, audio.end), dtype="<i2") / 32768
    [first, *_] = np.flatnonzero(heard[begins - 20 :] > 0.125) + begins - 20
    assert abs(first - begins) <= 35 * 2 / 3 + 1


@pytest.mark.parametrize(
    ("before", "after"), [(AudioFormat.PCM, AudioFormat.PCMU), (AudioFormat.PCMA, AudioFormat.PCM)]
)
def test_another_format_goes_on_where_the_one_before_ended(before: AudioFormat, after: AudioFormat) -> None:
    """A slow tone: a jump or a gap at the change would show."""

    def tone(start_s: float, stop_s: float, rate: int) -> Audio:
        t = np.arange(round(start_s * rate), round(stop_s * rate)) / rate
        return np.asarray(0.4 * np.sin(2 * np.pi * 150 * t), dtype=np.float32)

    audio = an_input()
    keep(audio, audio.append(CODECS[before][0](tone(0.0, 0.31, before.rate)), before))
    keep(audio, audio.append(CODECS[after][0](tone(0.31, 0.9, after.rate)), after))
    heard = np.frombuffer(audio.read(0, audio.end), dtype="<i2") / 32768
    assert 0.9 * 16_000 - 600 < len(heard) <= 0.9 * 16_000
    wanted = tone(0.0, len(heard) / 16_000, 16_000)
    assert np.abs(heard - wanted)[64:].max() < 0.05
