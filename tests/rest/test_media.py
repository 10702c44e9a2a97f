"""Files of sound: every format out can be read back, and every format in is heard."""

import io
import threading
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from rest.wire import file_of, silence, speech

from deployments.interfaces import SpeechChunk
from serve_app.audio.pcm import Samples, decode_pcm, encode_pcm
from serve_app.rest.media import MEDIA_TYPES, SPEECH_RATE, SpeechFile, SpeechFormat, Undecodable, decode

FORMATS = list(MEDIA_TYPES)
NEVER = threading.Event()


def encoded(file_format: SpeechFormat, seconds: float = 2.0, chunk: int = 2400) -> list[bytes]:
    """What each chunk of a tone gave, and the close."""
    pcm = encode_pcm(speech(seconds, SPEECH_RATE))
    file = SpeechFile(file_format)
    parts = [
        file.push(SpeechChunk(pcm[at : at + 2 * chunk], SPEECH_RATE)) for at in range(0, len(pcm), 2 * chunk)
    ]
    return [*parts, file.close()]


def level(audio: Samples) -> float:
    return float(np.sqrt(np.mean(np.square(audio.astype(np.float64) / 32768))))


@pytest.mark.parametrize("file_format", [f for f in FORMATS if f != "pcm"])
def test_a_file_that_grew_is_heard_again_whole(file_format: SpeechFormat):
    samples = np.frombuffer(decode(b"".join(encoded(file_format)), NEVER), np.int16)
    assert len(samples) / 16_000 == pytest.approx(2.0, abs=0.08)
    middle = samples[8_000:24_000]
    assert level(middle) == pytest.approx(0.4 / np.sqrt(2), rel=0.05)
    loudest = np.argmax(np.abs(np.fft.rfft(middle)))
    assert loudest * 16_000 / len(middle) == pytest.approx(300, abs=2)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_sound_of_a_chunk_leaves_with_it_or_soon_after(file_format: SpeechFormat):
    parts = encoded(file_format)
    first = next(index for index, part in enumerate(parts) if part)
    assert first <= 2, "bytes within 0.3 s of sound"
    half = len(parts) // 2
    assert sum(map(len, parts[:half])) >= 0.35 * sum(map(len, parts))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_can_be_made_of_very_short_and_of_empty_chunks(file_format: SpeechFormat):
    parts = encoded(file_format, seconds=0.05, chunk=7)
    assert b"".join(parts)
    file = SpeechFile(file_format)
    assert file.push(SpeechChunk(b"", SPEECH_RATE)) is not None
    file.push(SpeechChunk(bytes(480), SPEECH_RATE))
    assert isinstance(file.close(), bytes)


def test_pcm_is_the_samples_and_wav_the_same_behind_a_header():
    pcm, wav = b"".join(encoded("pcm")), b"".join(encoded("wav"))
    assert pcm == encode_pcm(speech(2, SPEECH_RATE))
    assert wav[44:] == pcm
    audio, rate = soundfile.read(io.BytesIO(wav))
    assert (rate, len(audio)) == (24_000, 48_000)
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.readframes(10**6) == pcm


def test_another_rate_is_resampled_over_the_edges_of_its_chunks():
    pcm = encode_pcm(speech(1, 16_000))
    file = SpeechFile("pcm")
    parts = [file.push(SpeechChunk(pcm[at : at + 998], 16_000)) for at in range(0, len(pcm), 998)]
    audio = decode_pcm(b"".join([*parts, file.close()]))
    assert len(audio) == 24_000
    assert np.abs(audio - speech(1, 24_000))[100:-100].max() < 0.01


# --- in -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "CAF"])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_any_format_is_heard_at_16_khz(kind: str, rate: int):
    samples = np.frombuffer(decode(file_of(speech(1, rate), rate=rate, kind=kind), NEVER), np.int16)
    assert len(samples) / 16_000 == pytest.approx(1.0, abs=0.1)
    assert level(samples[4000:12_000]) == pytest.approx(0.4 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize(("container", "codec"), [("webm", "libopus"), ("mp4", "aac"), ("mov", "aac")])
def test_what_browsers_and_phones_record_is_heard(container: str, codec: str):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=48_000, layout="stereo")
        tone = (speech(1, 48_000) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[np.newaxis], "s16", "stereo")
        frame.sample_rate = 48_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    samples = np.frombuffer(decode(file.getvalue(), NEVER), np.int16)
    assert len(samples) / 16_000 == pytest.approx(1.0, abs=0.1)
    assert level(samples[4000:12_000]) == pytest.approx(0.4 / np.sqrt(2), rel=0.1)


def test_two_channels_are_mixed():
    left_only = np.stack([speech(1), silence(1)], axis=1)
    samples = np.frombuffer(decode(file_of(left_only), NEVER), np.int16)
    assert level(samples) > 0.1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not known"),
        (b"hello " * 1000, "not known"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", "."),
        (file_of(silence(0)), "no audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "."),
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n",
            "not known",
        ),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "not known"),
    ],
)
def test_what_holds_no_sound_is_undecodable(data: bytes, why: str):
    with pytest.raises(Undecodable, match=why):
        decode(data, NEVER)


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """FFmpeg's concat, left to itself, reads the file that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.wav").write_bytes(file_of(speech(1)))
    playlist = b"ffconcat version 1.0\nfile other.wav\n"
    with av.open(io.BytesIO(playlist), container_options={"protocol_whitelist": "file"}) as container:
        assert container.streams.audio, "the danger is real"
    with pytest.raises(Undecodable):
        decode(playlist, NEVER)


def test_a_damaged_place_costs_only_itself():
    whole = bytearray(b"".join(encoded("mp3", seconds=4)))
    whole[len(whole) // 2 : len(whole) // 2 + 500] = bytes(500)
    samples = decode(bytes(whole), NEVER)
    assert len(samples) / 2 / 16_000 > 3


def test_a_file_that_was_cut_off_is_heard_up_to_there():
    whole = file_of(speech(2), kind="FLAC")
    assert 0.4 < len(decode(whole[: len(whole) // 2], NEVER)) / 32_000 < 1.6


def test_a_bomb_of_silence_is_refused_before_it_fills_the_memory():
    file = file_of(silence(120), kind="FLAC")
    assert len(file) < 50_000
    with pytest.raises(Undecodable, match="longer than 60 s"):
        decode(file, NEVER, max_s=60)


def test_decoding_stops_when_it_is_cancelled():
    cancelled = threading.Event()
    cancelled.set()
    assert len(decode(file_of(speech(20)), cancelled)) < 2 * 32_000
