"""The independent loudspeaker: what it says was played is the measure of what our server says was heard."""

import base64

import numpy as np
import pytest

from serve_app.client.connection import RATE, Arrival
from serve_app.client.player import Player

SECOND = np.arange(RATE, dtype=np.int16)


def chunk(item_id: str, start_s: float, stop_s: float, at: float) -> Arrival:
    pcm = SECOND[round(start_s * RATE) : round(stop_s * RATE)].astype("<i2").tobytes()
    delta = base64.b64encode(pcm).decode()
    return Arrival(at, {"type": "response.output_audio.delta", "item_id": item_id, "delta": delta})


def event(type_: str, at: float, **fields: str) -> Arrival:
    return Arrival(at, {"type": type_, **fields})


def test_chunks_that_come_ahead_are_played_one_after_another() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.1, at=10.0))
    player.handle(chunk("a", 0.1, 0.2, at=10.01))
    assert player.began_at("a") == 10.0
    assert player.ends_at == pytest.approx(10.2)
    assert player.played_s("a", 10.15) == pytest.approx(0.15)
    assert np.array_equal(player.played("a", 10.15), SECOND[: round(0.15 * RATE)])
    assert player.arrivals[1].ahead_s == pytest.approx(0.19)


def test_a_chunk_that_comes_late_leaves_a_gap_that_is_not_counted_as_played() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.1, at=10.0))
    player.handle(chunk("a", 0.1, 0.2, at=10.5))
    assert player.played_s("a", 10.4) == pytest.approx(0.1)
    assert player.played_s("a", 10.55) == pytest.approx(0.15)
    assert len(player.heard(11.0)) == round(0.6 * RATE)
    assert not player.heard(11.0)[round(0.1 * RATE) : round(0.5 * RATE)].any()


def test_speech_stops_playback_and_says_what_was_played() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.5, at=10.0))
    player.handle(chunk("a", 0.5, 1.0, at=10.0))
    stopped = player.handle(event("input_audio_buffer.speech_started", 10.2))
    assert stopped is not None
    assert (stopped.item_id, stopped.played_s) == ("a", pytest.approx(0.2))
    assert player.played_s("a", 99.0) == pytest.approx(0.2)
    assert not player.is_playing(10.2)


def test_the_next_item_does_not_wait_for_audio_that_was_forgotten() -> None:
    player = Player()
    for part in range(5):
        player.handle(chunk("a", part / 5, (part + 1) / 5, at=10.0))
    player.handle(event("input_audio_buffer.speech_started", 10.1))
    player.handle(chunk("b", 0.0, 0.1, at=10.3))
    assert player.began_at("b") == 10.3
    assert len(player.heard(12.0)) == round(0.4 * RATE)


def test_audio_of_a_stopped_item_is_recorded_but_not_played() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.5, at=10.0))
    player.handle(event("input_audio_buffer.speech_started", 10.2))
    player.handle(chunk("a", 0.5, 0.6, at=10.21))
    assert [arrival.is_stale for arrival in player.arrivals] == [False, True]
    assert player.played_s("a", 99.0) == pytest.approx(0.2)


def test_an_item_that_was_played_to_its_end_is_not_stopped() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.1, at=10.0))
    player.handle(event("response.output_audio.done", 10.05, item_id="a"))
    assert player.handle(event("input_audio_buffer.speech_started", 10.2)) is None


def test_an_item_that_waits_for_its_audio_is_stopped() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.1, at=10.0))
    assert player.is_playing(10.3)
    stopped = player.handle(event("input_audio_buffer.speech_started", 10.3))
    assert stopped is not None
    assert stopped.played_s == pytest.approx(0.1)


def test_an_answer_that_failed_half_way_ends_with_its_response() -> None:
    player = Player()
    player.handle(chunk("a", 0.0, 0.1, at=10.0))
    player.handle(event("response.done", 10.05))
    assert not player.is_playing(10.2)


def test_silence_stops_nothing() -> None:
    player = Player()
    assert player.handle(event("input_audio_buffer.speech_started", 10.0)) is None
    assert len(player.heard(11.0)) == 0
