"""What callers say: recordings cut into messages of 20 ms, and the noise of the room between them."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deployments.engines import create, silero_vad
from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, SpeechDetector, Synthesizer
from deployments.options import TtsOptions
from serve_app.audio.pcm import Audio, decode_pcm, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.client.connection import RATE
from serve_app.client.microphone import FRAME, FRAME_S

from .caller import onset_s, recordings
from .line import append_message

ENDPOINT_PAUSE_S = 0.35
"""A recording with a longer quiet inside would end its turn half-way: the server waits 500 ms by default."""
MIN_S, MAX_S = 0.8, 8.0
QUIET_DB = -35.0
"""Under the loudest 10 ms of a recording: no speech."""
ONSET_DB = -20.0
ONSET_WINDOWS, ONSET_SHARE = 10, 0.6
"""Speech has begun where six of ten windows are loud."""
NOISE_PEAK = 0.004
NOISE_S = 4.0
WINDOW_S = 0.01
THRESHOLD = 0.5
FRAME_AT_24_KHZ = 768
PHASES = 8
"""Of the detector's frames of 32 ms against a recording that begins with a packet of 20 ms."""
INTERRUPTING_FRAMES = 3
SURE_FRAMES = 8
HEARD_WITHIN_S = 0.3
"""From its onset until it interrupts."""
SENTENCES = (
    "Could you tell me what the weather will be tomorrow morning?",
    "I would like to know when the next train leaves for the harbour.",
    "What is the name of the river that runs through the old town?",
    "Please remind me to call my sister this evening.",
    "How many people can sit at that table?",
    "No wait, that is not the one I meant.",
)
"""Said by espeak-ng where no recordings are."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Something that a caller says."""

    name: str
    frames: tuple[bytes, ...]
    """Messages for `Line.send`, 20 ms each."""
    onset_s: float
    """Where its speech begins."""

    @property
    def duration_s(self) -> float:
        return len(self.frames) * FRAME_S


def clip(name: str, audio: Audio) -> Clip:
    """float32 (n,) at 24 kHz."""
    return Clip(name, messages(audio), speech_onset_s(audio))


def room_noise(seed: int = 0) -> tuple[bytes, ...]:
    """Messages of a quiet room, to be sent round and round: -48 dBFS at its loudest."""
    noise = np.random.default_rng(seed).uniform(-NOISE_PEAK, NOISE_PEAK, int(NOISE_S * RATE))
    return messages(noise.astype(np.float32))


def messages(audio: Audio) -> tuple[bytes, ...]:
    """For `Line.send`, 20 ms each, the last one filled up; float32 (n,) at 24 kHz."""
    frames = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    return tuple(append_message(encode_pcm(frame)) for frame in frames)


def longest_quiet_s(audio: Audio) -> float:
    """The longest quiet between the first and the last sound of a recording."""
    loud = np.flatnonzero(_is_loud(audio, QUIET_DB))
    return float(np.diff(loud).max(initial=1) - 1) * WINDOW_S


def speech_onset_s(audio: Audio) -> float:
    """Where a recording becomes loud and stays it: a breath or a click before the first word is passed over."""
    loud = _is_loud(audio, ONSET_DB)
    ahead = np.convolve(loud, np.ones(ONSET_WINDOWS))[ONSET_WINDOWS - 1 :]
    stays = int(np.argmax(ahead >= ONSET_WINDOWS * ONSET_SHARE))
    return float(stays + np.argmax(loud[stays:])) * WINDOW_S


def _is_loud(audio: Audio, level_db: float) -> npt.NDArray[np.bool_]:
    """Of each 10 ms: whether it comes near enough to the loudest of the recording."""
    window = int(RATE * WINDOW_S)
    levels = np.abs(audio[: len(audio) // window * window]).reshape(-1, window).max(axis=1)
    loud: npt.NDArray[np.bool_] = levels > levels.max(initial=0.0) * 10 ** (level_db / 20)
    return loud


def usable(audio: dict[str, Audio]) -> dict[str, Audio]:
    """Those of a caller's usual length, without a pause in them that would end the turn."""
    return {
        name: sound
        for name, sound in audio.items()
        if MIN_S <= len(sound) / RATE <= MAX_S and longest_quiet_s(sound) <= ENDPOINT_PAUSE_S
    }


def clear_to_silero(recordings: Mapping[str, Audio], noise: Audio) -> dict[str, Audio]:
    """Those that are. `noise`: two seconds of the room."""
    make_detector = silero_vad.load()
    return {
        name: sound for name, sound in recordings.items() if is_clear_to_silero(sound, noise, make_detector)
    }


def is_clear_to_silero(question: Audio, noise: Audio, make_detector: Callable[[], SpeechDetector]) -> bool:
    """Whether the detector by itself hears it, and soon, wherever its frames begin; else who misses it is not the server.

    Among these recordings are single digits of half a second, some of which reach the threshold in one place and not in
    another, and some that begin with a long fricative, which it takes for noise.
    """
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


def clips(folder: Path | None) -> tuple[list[Clip], str]:
    """What callers say, and a sentence about where it is from. Raises ValueError if nothing in `folder` fits."""
    if folder is None or not folder.is_dir():
        return [clip(*said) for said in synthesized(SENTENCES)], "espeak-ng's voice: no recordings here"
    found = recordings(folder)
    quiet = np.random.default_rng(0).uniform(-NOISE_PEAK, NOISE_PEAK, 2 * RATE).astype(np.float32)
    fitting = clear_to_silero(usable(found), quiet)
    if not fitting:
        raise ValueError(
            f"{folder}: no recording (.flac) of {MIN_S:g} to {MAX_S:g} s without a pause over {ENDPOINT_PAUSE_S:g} s, that Silero hears"
        )
    words = f"{len(fitting)} of {len(found)} recordings: the others are too short or long, pause as a turn's end, or Silero overhears them"
    return [clip(name, audio) for name, audio in fitting.items()], words


def synthesized(sentences: Iterable[str]) -> list[tuple[str, Audio]]:
    """Each sentence as espeak-ng says it; float32 (n,) at 24 kHz."""
    voice: Synthesizer = create(TtsOptions(engine="espeak"))
    return asyncio.run(_said(voice, sentences))


async def _said(voice: Synthesizer, sentences: Iterable[str]) -> list[tuple[str, Audio]]:
    said = []
    for number, text in enumerate(sentences):
        chunks = [chunk async for chunk in voice.synthesize(text, voice="en-us", speed=1.0)]
        audio = decode_pcm(b"".join(chunk.pcm for chunk in chunks))
        resampler = StreamingResampler(chunks[0].sample_rate, RATE)
        said.append((f"sentence {number}", np.concatenate((resampler.push(audio), resampler.flush()))))
    return said
