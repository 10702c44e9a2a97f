import subprocess
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from deployments.engines import silero_vad
from deployments.interfaces import BadRequest, EngineFailed, SpeechDetector

Audio = npt.NDArray[np.float32]


def test_loading_it_imports_no_runtime_and_not_silero_vad() -> None:
    script = (
        "import sys; from deployments.engines.silero_vad import load; load();"
        "assert not {'torch', 'silero_vad', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_missing_model_file_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero_vad, "find_spec", lambda name: None)
    with pytest.raises(EngineFailed, match="pip install silero-vad"):
        silero_vad.load()


def test_a_network_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = silero_vad._weights(silero_vad._model_path())
    name = "model.encoder.0.reparam_conv.weight"
    for other in (
        {**weights, name: weights[name][:, :, :2]},
        {k: v for k, v in weights.items() if k != name},
    ):
        monkeypatch.setattr(silero_vad, "_weights", lambda path, other=other: other)
        with pytest.raises(EngineFailed, match="pip install silero-vad=="):
            silero_vad.load()


class Oracle:
    """onnxruntime on the package's own file, fed as the package feeds it (silero_vad/utils_vad.py, OnnxWrapper)."""

    forgets = True

    def __init__(self) -> None:
        path = silero_vad._model_path().with_name("silero_vad.onnx")
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._context = np.zeros((1, 64), dtype=np.float32)
        self._state = np.zeros((2, 1, 128), dtype=np.float32)

    def probability(self, frame: Audio) -> float:
        sound = np.concatenate((self._context, frame[np.newaxis]), axis=1)
        feed = {"input": sound, "state": self._state, "sr": np.array(16_000, dtype=np.int64)}
        output, self._state = self._session.run(None, feed)
        self._context = sound[:, -64:]
        if output[0, 0] <= 0.5 and self.forgets:
            self._state[1] *= 0.99
        return float(output[0, 0])


@pytest.mark.parametrize("file", ["speech/jfk.flac", "speech/cards-001.flac", "noise/office-ambience.flac"])
def test_it_hears_what_the_package_hears(file: str, recording: Callable[[str], bytes]) -> None:
    """Alone and in company, with the memory of the frames before: errors would add up over hundreds of frames."""
    pcm = np.frombuffer(recording(file), dtype="<i2").astype(np.float32) / 32768
    frames = pcm[: len(pcm) // 512 * 512].reshape(-1, 512)[:340]
    make_detector = silero_vad.load()
    oracles, detectors = [Oracle() for _ in range(3)], [make_detector() for _ in range(3)]
    gains = np.array([[1.0], [0.03], [0.0]], dtype=np.float32)
    for number, frame in enumerate(frames):
        company = [0, 1, 2] if number % 3 else [number % 2]
        sounds = frame * gains[company]
        [*heard] = detectors[0].probabilities([detectors[one] for one in company], sounds)
        expected = [oracles[one].probability(sound) for one, sound in zip(company, sounds, strict=True)]
        assert heard == pytest.approx(expected, abs=2e-5)


def test_a_frame_of_another_length_is_refused_and_changes_nothing() -> None:
    make_detector = silero_vad.load()
    one, other = make_detector(), make_detector()
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 512).astype(np.float32)
    with pytest.raises(BadRequest, match="512"):
        one.probability(noise[:-1])
    assert one.probability(noise) == other.probability(noise)


def test_a_frame_scored_in_company_is_scored_as_alone(recording: Callable[[str], bytes]) -> None:
    make_detector = silero_vad.load()
    pcm = np.frombuffer(recording("speech/cards-001.flac"), dtype="<i2").astype(np.float32) / 32768
    frames = pcm[: len(pcm) // 512 * 512].reshape(-1, 512)[:100]
    alone, live = make_detector(), make_detector()
    company = [*(make_detector() for _ in range(6)), live]
    rng = np.random.default_rng(0)
    for frame in frames:
        noise = rng.uniform(-0.3, 0.3, (6, 512)).astype(np.float32)
        *_, heard = live.probabilities(company, np.vstack((noise, frame)))
        assert abs(heard - alone.probability(frame)) < 1e-3


def test_a_session_does_not_go_deaf_in_a_rooms_noise(
    recording: Callable[[str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the network itself does, which never forgets: of these it hears the first, and then hardly any."""

    def heard(file: str) -> Audio:
        return np.frombuffer(recording(file), dtype="<i2").astype(np.float32) / 32768

    room = heard("noise/office-ambience.flac")
    room *= 10 ** (-55 / 20) / np.sqrt(np.mean(room**2))
    pauses = np.resize(room, (4, 8 * 16_000))
    names = ("nicolas-18", "jackson-15", "jackson-09", "nicolas-18")
    sound = [
        np.concatenate((pause, heard(f"digits/{name}.flac")))
        for pause, name in zip(pauses, names, strict=True)
    ]
    ends = np.cumsum([len(part) for part in sound]) // 512
    frames = np.concatenate([*sound, room[:16_000]])[: (ends[-1] + 5) * 512].reshape(-1, 512)

    def speech_frames(detector: SpeechDetector) -> list[int]:
        """In each of the questions."""
        is_speech = [detector.probability(frame) > 0.5 for frame in frames]
        return [sum(is_speech[before + 250 : end + 5]) for before, end in zip((0, *ends), ends, strict=False)]

    monkeypatch.setattr(Oracle, "forgets", False)
    assert speech_frames(Oracle())[1:3] == [0, 0]
    assert min(speech_frames(silero_vad.load()())) >= 15
