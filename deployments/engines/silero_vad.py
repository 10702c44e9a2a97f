"""The Silero voice activity detector: its ONNX file run by onnxruntime alone.

The `silero_vad` package is never imported: that would load torch and set it to one thread for the whole process. Only
the model file that it carries is used. One onnxruntime session serves a process (`Network`); a detector is one
conversation's recurrent state on top of it. One core of an AMD EPYC spends 75-80 us on a frame by itself, 120 when
other work has cleared its cache meanwhile, 42 in a round of four, 36 of eight, 33 of sixteen.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, BadRequest, EngineFailed, SpeechDetector

_CONTEXT = 64
"""Samples of the frame before that the network sees again, at 16 kHz (silero_vad/utils_vad.py, OnnxWrapper)."""
_RATE = np.array(TRANSCRIBER_RATE, dtype=np.int64)


class SileroDetector:
    """The voice activity of one conversation. `Network.detector` makes them."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self.context = np.zeros(_CONTEXT, dtype=np.float32)
        """The end of the frame before."""
        self.state = np.zeros((2, 1, 128), dtype=np.float32)

    def probability(self, frame: npt.NDArray[np.float32]) -> float:
        [probability] = self._network.score([self], frame[np.newaxis])
        return probability

    @staticmethod
    def probabilities(detectors: Sequence["SileroDetector"], frames: npt.NDArray[np.float32]) -> list[float]:
        return detectors[0]._network.score(detectors, frames)


class Network:
    """The network of a process, shared by the detectors of all its conversations.

    Its weights (1.2 MB) pass through the processor's cache once a run, whether for one frame or for thirty.
    """

    def __init__(self, session: Any) -> None:
        # Any: onnxruntime ships no types.
        self._session = session

    def detector(self) -> SileroDetector:
        return SileroDetector(self)

    def score(self, detectors: Sequence[SileroDetector], frames: npt.NDArray[np.float32]) -> list[float]:
        """The probability of the frame, a row each, of each detector; their states go on by it."""
        if frames.shape != (len(detectors), DETECTOR_FRAME):
            shape = frames.shape[1:]
            raise BadRequest(f"a frame has shape (512,), not {shape}", stage="vad", engine="silero")
        feed = {
            "input": np.concatenate((np.stack([detector.context for detector in detectors]), frames), axis=1),
            "state": np.concatenate([detector.state for detector in detectors], axis=1),
            "sr": _RATE,
        }
        try:
            output, state = self._session.run(None, feed)
        except RuntimeError as error:
            raise EngineFailed(str(error), stage="vad", engine="silero") from error
        ends = frames[:, -_CONTEXT:].copy()
        for row, detector in enumerate(detectors):
            detector.context = ends[row]
            detector.state = state[:, row : row + 1]
        probabilities: list[float] = output[:, 0].tolist()
        return probabilities


def load(threads: int = 1) -> Callable[[], SpeechDetector]:
    """Loads the model once; each call of the result gives a detector with a fresh state.

    Raises EngineFailed when onnxruntime or the model file is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineFailed("`pip install onnxruntime`", stage="vad", engine="silero") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A thread that spins between frames would take a core from the engines.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(_model_path())
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    network = Network(session)
    network.detector().probability(np.zeros(DETECTOR_FRAME, dtype=np.float32))
    return network.detector


def _model_path() -> Path:
    spec = find_spec("silero_vad")  # finds a top-level package without importing it
    folders = (spec.submodule_search_locations if spec else None) or ()
    for folder in folders:
        path = Path(folder) / "data" / "silero_vad.onnx"
        if path.is_file():
            return path
    raise EngineFailed("silero_vad.onnx is not here: `pip install silero-vad`", stage="vad", engine="silero")
