import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from deployments.engines import silero_vad
from deployments.interfaces import EngineFailed


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
        self.states.append(float(feed["state"][0, 0, 0]))
        return [np.full((1, 1), 0.5, dtype=np.float32), feed["state"] + 1]


def test_each_frame_comes_with_the_end_of_the_one_before_and_its_state() -> None:
    session = RecordingSession()
    detector = silero_vad.SileroDetector(session)
    audio = np.arange(3 * 512, dtype=np.float32)
    for frame in np.split(audio, 3):
        assert detector.probability(frame) == 0.5
    padded = np.concatenate([np.zeros(64, dtype=np.float32), audio])
    for index, fed in enumerate(session.inputs):
        assert np.array_equal(fed, padded[np.newaxis, index * 512 : index * 512 + 576])
    assert session.states == [0.0, 1.0, 2.0]
