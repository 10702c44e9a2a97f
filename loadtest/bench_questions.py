"""Which recordings a benchmark may ask with: those that the voice activity detector hears, whatever the server does."""

from collections.abc import Mapping

import numpy as np

from deployments.engines import silero_vad
from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE
from serve_app.audio.pcm import Audio
from serve_app.audio.resampling import StreamingResampler
from serve_app.client.connection import RATE

from .caller import onset_s

THRESHOLD = 0.5
FRAME_AT_24_KHZ = 768
PHASES = 8
"""Of the detector's frames of 32 ms against a recording that begins with a packet of 20 ms."""
INTERRUPTING_FRAMES = 3
SURE_FRAMES = 8
HEARD_WITHIN_S = 0.3
"""From its onset until it interrupts."""


def clear_to_silero(recordings: Mapping[str, Audio], noise: Audio) -> dict[str, Audio]:
    """Those that are; the others are named on the terminal. `noise`: two seconds of the room."""
    clear = {name: sound for name, sound in recordings.items() if is_clear_to_silero(sound, noise)}
    others = sorted(recordings.keys() - clear.keys())
    print(f"{len(clear)} questions; without {others}, which Silero overhears or hears late")
    return clear


def is_clear_to_silero(question: Audio, noise: Audio) -> bool:
    """Whether the detector by itself hears it, and soon, wherever its frames begin; else who misses it is not the server.

    Among these recordings are single digits of half a second, some of which reach the threshold in one place and not in
    another, and some that begin with a long fricative, which it takes for noise.
    """
    make_detector = silero_vad.load()
    latest = int((RATE + (onset_s(question) + HEARD_WITHIN_S) * RATE) / FRAME_AT_24_KHZ)
    for phase in range(0, FRAME_AT_24_KHZ, FRAME_AT_24_KHZ // PHASES):
        sound = np.concatenate((noise[: RATE + phase], question, noise[:RATE]))
        at_16_khz = StreamingResampler(RATE, TRANSCRIBER_RATE).push(sound)
        detector = make_detector()
        frames = at_16_khz[: len(at_16_khz) // DETECTOR_FRAME * DETECTOR_FRAME].reshape(-1, DETECTOR_FRAME)
        is_speech = np.array([detector.probability(frame) > THRESHOLD for frame in frames])
        begins = np.flatnonzero(is_speech[:-2] & is_speech[1:-1] & is_speech[2:])
        if is_speech.sum() < SURE_FRAMES or not len(begins) or begins[0] + INTERRUPTING_FRAMES > latest:
            return False
    return True
