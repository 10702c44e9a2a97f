"""The Silero voice activity detector: its ONNX file run by onnxruntime alone.

The `silero_vad` package is never imported: that would load torch and set it to one thread for the whole process. Only
the model file that it carries is used. One onnxruntime session serves a process; a detector is one conversation's
recurrent state on top of it. 75-80 us a frame on one core, too little to be worth a thread or a batch.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, BadRequest, EngineFailed, SpeechDetector

_CONTEXT = 64
"""Samples of the frame before that the network sees again, at 16 kHz (silero_vad/utils_vad.py, OnnxWrapper)."""


class SileroDetector:
    """The voice activity of one conversation. `load` makes them."""

    def __init__(self, session: Any) -> None:
        # Any: onnxruntime ships no types.
        self._session = session
        self._input = np.zeros((1, _CONTEXT + DETECTOR_FRAME), dtype=np.float32)
        self._feed = {
            "input": self._input,
            "state": np.zeros((2, 1, 128), dtype=np.float32),
            "sr": np.array(TRANSCRIBER_RATE, dtype=np.int64),
        }

    def probability(self, frame: npt.NDArray[np.float32]) -> float:
        if frame.shape != (DETECTOR_FRAME,):
            raise BadRequest(f"a frame has shape (512,), not {frame.shape}", stage="vad", engine="silero")
        row = self._input[0]
        row[:_CONTEXT] = row[DETECTOR_FRAME:]
        row[_CONTEXT:] = frame
        try:
            output, self._feed["state"] = self._session.run(None, self._feed)
        except RuntimeError as error:
            raise EngineFailed(str(error), stage="vad", engine="silero") from error
        return float(output[0, 0])


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
    SileroDetector(session).probability(np.zeros(DETECTOR_FRAME, dtype=np.float32))
    return lambda: SileroDetector(session)


def _model_path() -> Path:
    spec = find_spec("silero_vad")  # finds a top-level package without importing it
    folders = (spec.submodule_search_locations if spec else None) or ()
    for folder in folders:
        path = Path(folder) / "data" / "silero_vad.onnx"
        if path.is_file():
            return path
    raise EngineFailed("silero_vad.onnx is not here: `pip install silero-vad`", stage="vad", engine="silero")
