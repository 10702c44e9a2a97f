"""Which recordings a benchmark may ask with: those that the detector hears, whatever the server does."""

import numpy as np

from deployments.engines import silero_vad
from loadtest.bench_sessions import DRAFTS
from loadtest.voices import is_clear_to_silero, synthesized
from serve_app.audio.pcm import Audio
from serve_app.config import TurnTaking

NOISE: Audio = np.random.default_rng(1).normal(0, 0.001, 48_000).astype(np.float32)


def test_a_sentence_is_speech_and_half_a_word_or_a_hum_is_not() -> None:
    detector = silero_vad.load()
    [(_, sentence)] = synthesized(["Where is the station, please?"])
    assert is_clear_to_silero(sentence, NOISE, detector)
    loudest = int(np.abs(sentence).argmax())
    assert not is_clear_to_silero(sentence[loudest : loudest + 2_400], NOISE, detector)
    hum = np.asarray(0.3 * np.sin(2 * np.pi * 100 * np.arange(24_000) / 24_000), dtype=np.float32)
    assert not is_clear_to_silero(hum, NOISE, detector)


def test_sessions_are_measured_with_the_products_drafts() -> None:
    assert TurnTaking().drafts_per_turn == DRAFTS
