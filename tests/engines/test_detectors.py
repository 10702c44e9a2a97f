"""What every speech detector does, run over every one."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from deployments.interfaces import DETECTOR_FRAME, BadRequest, SpeechDetector

from .factories import DETECTORS, DetectorFactory

Audio = npt.NDArray[np.float32]
MakeDetector = Callable[[], SpeechDetector]


@pytest.fixture(scope="module", params=DETECTORS, ids=lambda factory: factory.name)
def make_detector(request: pytest.FixtureRequest) -> MakeDetector:
    factory: DetectorFactory = request.param
    return factory.build()


def frames(pcm: bytes) -> list[Audio]:
    audio = np.frombuffer(pcm, dtype="<i2").astype(np.float32) / np.float32(32768)
    return np.split(audio, range(DETECTOR_FRAME, len(audio), DETECTOR_FRAME))[:-1]


def probabilities(detector: SpeechDetector, pcm: bytes) -> list[float]:
    return [detector.probability(frame) for frame in frames(pcm)]


def test_silence_is_not_speech(make_detector: MakeDetector) -> None:
    assert max(probabilities(make_detector(), bytes(2 * 16_000))) < 0.2


def test_speech_is_speech(make_detector: MakeDetector, recording: Callable[[str], bytes]) -> None:
    heard = probabilities(make_detector(), recording("speech/jfk.flac"))
    assert all(0.0 <= probability <= 1.0 for probability in heard)
    # Of the recording's 11 s, about 7.5 are words.
    assert 0.5 < np.mean(np.array(heard) > 0.5) < 0.95


def test_detectors_do_not_share_their_state(
    make_detector: MakeDetector, recording: Callable[[str], bytes]
) -> None:
    pcm = recording("speech/cards-001.flac")
    alone = probabilities(make_detector(), pcm)
    one, other = make_detector(), make_detector()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, DETECTOR_FRAME).astype(np.float32)
    between = []
    for frame in frames(pcm):
        between.append(one.probability(frame))
        other.probability(noise)
    assert between == alone


def test_a_frame_stays_as_it_was(make_detector: MakeDetector) -> None:
    frame = np.full(DETECTOR_FRAME, 0.25, dtype=np.float32)
    make_detector().probability(frame)
    assert np.all(frame == 0.25)


@pytest.mark.parametrize("shape", [(1,), (511,), (1, 512)])
def test_a_frame_of_another_shape_is_refused(make_detector: MakeDetector, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest):
        make_detector().probability(np.zeros(shape, dtype=np.float32))
