"""What callers say, and what of it can be timed."""

import json
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from memory_line import payload

from loadtest import voices
from loadtest.caller import recordings
from loadtest.voices import clip, longest_quiet_s, room_noise, speech_onset_s, synthesized, usable
from serve_app.audio.pcm import decode_pcm

RATE = 24_000


def sound(seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * 220 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), np.float32)


def test_a_clip_is_its_audio_in_messages_of_20_ms():
    audio = np.concatenate([sound(0.1), quiet(0.05)])
    frames = clip("a", audio).frames
    assert len(frames) == 8, "the last one filled up"
    events = [json.loads(payload(frame)) for frame in frames]
    assert {event["type"] for event in events} == {"input_audio_buffer.append"}
    sent = np.concatenate([decode_pcm(b64decode(event["audio"])) for event in events])
    np.testing.assert_allclose(sent[: len(audio)], audio, atol=1 / 32_000)


def test_the_onset_of_speech_is_where_it_stays_loud():
    breath = np.concatenate([quiet(0.1), sound(0.03), quiet(0.2), sound(1.0)])
    assert speech_onset_s(breath) == pytest.approx(0.33, abs=0.011)
    assert speech_onset_s(sound(1.0)) == 0.0


def test_a_recording_with_a_pause_that_ends_a_turn_is_not_used():
    broken = np.concatenate([sound(1.0), quiet(0.5), sound(1.0)])
    whole = np.concatenate([quiet(1.0), sound(1.0), quiet(0.2), sound(1.0), quiet(1.0)])
    assert longest_quiet_s(broken) == pytest.approx(0.5, abs=0.02)
    assert list(usable({"broken": broken, "whole": whole, "short": sound(0.3), "long": sound(9.0)})) == [
        "whole"
    ]


def test_the_room_is_quiet_but_not_silent():
    frames = [decode_pcm(b64decode(json.loads(payload(frame))["audio"])) for frame in room_noise()]
    assert len(frames) == 200
    assert all(0 < np.abs(frame).max() <= voices.NOISE_PEAK + 1e-4 for frame in frames)


def test_recordings_that_lie_beside_the_project_are_spoken(shared_audio: Path):
    spoken, words = voices.clips(shared_audio / "digits")
    names = {clip.name for clip in spoken}
    assert 20 <= len(names) == len(spoken)
    assert names < usable(recordings(shared_audio / "digits")).keys()
    assert "jackson-02" not in names, "Silero does not hear it where its frames begin at one place of eight"
    assert "of 60 recordings" in words
    assert sum(clip.onset_s >= 0.05 for clip in spoken) >= 5, "some can be used to time a barge-in"


def test_a_folder_where_nothing_fits_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no recording"):
        voices.clips(tmp_path)


def test_where_no_recordings_are_espeak_speaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(voices, "SENTENCES", ("Hello there, how are you?",))
    spoken, words = voices.clips(tmp_path / "none")
    assert "espeak" in words
    assert 0.8 <= spoken[0].duration_s <= 4
    ((_, audio),) = synthesized(["Hello there, how are you?"])
    assert np.abs(audio).max() > 0.05
