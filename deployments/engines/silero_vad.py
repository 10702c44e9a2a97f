"""The Silero voice activity detector: its ONNX file run by onnxruntime alone.

The `silero_vad` package is never imported: that would load torch and set it to one thread for the whole process. Only
the model file that it carries is used. One onnxruntime session serves a process (`Network`); a detector is one
conversation's recurrent state on top of it. One core of an AMD EPYC spends 75-80 us on a frame by itself, 120 when
other work has cleared its cache meanwhile, 42 in a round of four, 36 of eight, 33 of sixteen.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, BadRequest, EngineFailed, SpeechDetector

_CONTEXT = 64
"""Samples of the frame before that the network sees again, at 16 kHz (silero_vad/utils_vad.py, OnnxWrapper)."""
_RATE = np.array(TRANSCRIBER_RATE, dtype=np.int64)


GATHER_S = 0.002
"""What a live frame waits for company. A hundred sessions bring six frames in that time, and one then costs half."""


class SileroDetector:
    """The voice activity of one conversation. `Network.detector` makes them."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self.input = np.zeros((1, _CONTEXT + DETECTOR_FRAME), dtype=np.float32)
        """The frame to be scored next, behind the end of the one before."""
        self.state = np.zeros((2, 1, 128), dtype=np.float32)

    def probability(self, frame: npt.NDArray[np.float32]) -> float:
        self._take_in(frame)
        [probability] = self._network.score([self])
        return probability

    def hear(self, frame: npt.NDArray[np.float32]) -> "asyncio.Future[float]":
        self._take_in(frame)
        return self._network.score_soon(self)

    def _take_in(self, frame: npt.NDArray[np.float32]) -> None:
        if frame.shape != (DETECTOR_FRAME,):
            raise BadRequest(f"a frame has shape (512,), not {frame.shape}", stage="vad", engine="silero")
        row = self.input[0]
        row[:_CONTEXT] = row[DETECTOR_FRAME:]
        row[_CONTEXT:] = frame


@dataclass(frozen=True, slots=True)
class _Round:
    """Frames that will be scored together."""

    loop: asyncio.AbstractEventLoop
    waiting: list[tuple[SileroDetector, "asyncio.Future[float]"]] = field(default_factory=list)


class Network:
    """The network of a process, shared by the detectors of all its conversations.

    Its weights (1.2 MB) pass through the processor's cache once a run, whether for one frame or for thirty, so the
    frames that come within `GATHER_S` go together. They are scored on the event loop: a round of thirty takes 1 ms.
    """

    def __init__(self, session: Any) -> None:
        # Any: onnxruntime ships no types.
        self._session = session
        self._round: _Round | None = None

    def detector(self) -> SileroDetector:
        return SileroDetector(self)

    def score(self, detectors: Sequence[SileroDetector]) -> list[float]:
        """The probability of the frame that each has taken in; their states go on by it."""
        feed = {
            "input": np.concatenate([detector.input for detector in detectors]),
            "state": np.concatenate([detector.state for detector in detectors], axis=1),
            "sr": _RATE,
        }
        try:
            output, state = self._session.run(None, feed)
        except RuntimeError as error:
            raise EngineFailed(str(error), stage="vad", engine="silero") from error
        for row, detector in enumerate(detectors):
            detector.state = state[:, row : row + 1]
        probabilities: list[float] = output[:, 0].tolist()
        return probabilities

    def score_soon(self, detector: SileroDetector) -> "asyncio.Future[float]":
        loop = asyncio.get_running_loop()
        if self._round is None or self._round.loop is not loop:
            self._round = _Round(loop)
            loop.call_later(GATHER_S, self._score_round, self._round)
        answer: asyncio.Future[float] = loop.create_future()
        self._round.waiting.append((detector, answer))
        return answer

    def _score_round(self, this: _Round) -> None:
        if self._round is this:
            self._round = None
        waiting = [(detector, answer) for detector, answer in this.waiting if not answer.done()]
        if not waiting:
            return
        try:
            probabilities = self.score([detector for detector, _ in waiting])
        except EngineFailed as error:
            for _, answer in waiting:
                answer.set_exception(error)
            return
        for (_, answer), probability in zip(waiting, probabilities, strict=True):
            answer.set_result(probability)


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
