import subprocess
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from deployments.engines import silero_vad
from deployments.interfaces import EngineFailed

Audio = npt.NDArray[np.float32]


def test_loading_it_imports_neither_torch_nor_silero_vad() -> None:
    script = (
        "import sys; from deployments.engines.silero_vad import load; load();"
        "assert not {'torch', 'silero_vad'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_missing_model_file_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero_vad, "find_spec", lambda name: None)
    with pytest.raises(EngineFailed, match="pip install silero-vad"):
        silero_vad.load()


class RecordingSession:
    """In the place of an onnxruntime session; keeps what it was fed."""

    def __init__(self) -> None:
        self.inputs: list[npt.NDArray[np.float32]] = []
        self.states: list[float] = []

    def run(self, outputs: None, feed: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        self.inputs.append(feed["input"].copy())
        self.states += feed["state"][0, :, 0].tolist()
        return [np.full((len(feed["input"]), 1), 0.5, dtype=np.float32), feed["state"] + 1]


def test_each_frame_comes_with_the_end_of_the_one_before_and_its_state() -> None:
    session = RecordingSession()
    detector = silero_vad.Network(session).detector()
    audio = np.arange(3 * 512, dtype=np.float32)
    for frame in np.split(audio, 3):
        assert detector.probability(frame) == 0.5
    padded = np.concatenate([np.zeros(64, dtype=np.float32), audio])
    for index, fed in enumerate(session.inputs):
        assert np.array_equal(fed, padded[np.newaxis, index * 512 : index * 512 + 576])
    assert session.states == [0.0, 1.0, 2.0]


def test_frames_of_several_sessions_go_together_each_with_its_own_state() -> None:
    session = RecordingSession()
    network = silero_vad.Network(session)
    one, other, third = network.detector(), network.detector(), network.detector()
    one.probability(np.full(512, 7.0, dtype=np.float32))
    frames = np.stack([np.full(512, value, dtype=np.float32) for value in (1.0, 2.0, 3.0)])
    assert one.probabilities([one, other, third], frames) == [0.5] * 3
    assert [fed.shape for fed in session.inputs] == [(1, 576), (3, 576)]
    together = session.inputs[1]
    assert together[:, 0].tolist() == [7.0, 0.0, 0.0], "the end of the frame before"
    assert together[:, 64].tolist() == [1.0, 2.0, 3.0]
    assert session.states == [0.0, 1.0, 0.0, 0.0]


def test_a_network_that_fails_says_so_and_serves_the_next() -> None:
    session = RecordingSession()
    network = silero_vad.Network(session)
    works = session.run

    def fails(outputs: None, feed: object) -> list[Audio]:
        raise RuntimeError("broken")

    session.run = fails  # type: ignore[method-assign]
    frame = np.zeros(512, dtype=np.float32)
    with pytest.raises(EngineFailed, match="broken"):
        network.detector().probability(frame)
    session.run = works  # type: ignore[method-assign]
    assert network.detector().probability(frame) == 0.5


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
