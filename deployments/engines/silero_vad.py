"""The Silero voice activity detector: the weights of its ONNX file, and its network in numpy.

The network is small, and run by a general runtime most of its time is spent around the arithmetic and in convolutions of
three taps. Here a convolution is one matrix product for the frames of all sessions, and the Fourier transform, which the
file has as a convolution of 258 filters, is one. It gives what onnxruntime gives, to the rounding of float32
(tests/engines/test_silero_vad.py). A frame by itself costs 70 us of a core of an AMD EPYC either way; in a round of
four 32 instead of 43, of eight 22 instead of 37, of sixteen 16 instead of 35.

The `silero_vad` package is never imported: that would load torch and set it to one thread for the whole process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, BadRequest, EngineFailed, SpeechDetector

_FILE = "silero_vad_16k_op15.onnx"
"""The 16 kHz half of silero_vad.onnx, with its weights in one graph."""
_CONTEXT = 64
"""Samples of the frame before that the network sees again, at 16 kHz (silero_vad/utils_vad.py, OnnxWrapper)."""
_UNITS = 128
"""Of the recurrent layer."""
_WINDOW = 256
_HOP = 128
_BINS = _WINDOW // 2 + 1
_STEPS = 4
"""Spectra of a frame: it is mirrored at its end by `_CONTEXT` samples."""
_STRIDES = (1, 2, 2, 1)
"""Of the encoder's convolutions, each of three taps, with a zero on either side."""
_TAPS = 3
_SPEECH = 0.5
_KEPT = np.float32(0.99)
"""Of the recurrent layer's cell, after a frame without speech: half of it is forgotten in 2 s. Else it drifts in a room's
noise, and a session hears speech late and in the end not at all: of 1,052 spoken strings of digits (100 sessions of two
minutes, office noise at -55 dBFS between them) 116 were not heard, nearly all of sessions that had gone deaf for good.
With anything from 0.9 to 0.995 all are heard; with less than 0.99 noises begin to open turns."""
_ENCODER = "model.encoder.{}.reparam_conv"
_DECODER = "model.decoder"

Floats = npt.NDArray[np.float32]


class SileroDetector:
    """The voice activity of one conversation. `Network.detector` makes them."""

    def __init__(self, network: "Network") -> None:
        self._network = network
        self.memory: Floats = np.zeros(_CONTEXT + 2 * _UNITS, dtype=np.float32)
        """The end of the frame before, and the recurrent layer's output and cell."""

    def probability(self, frame: Floats) -> float:
        [probability] = self._network.score([self], frame[np.newaxis])
        return probability

    @staticmethod
    def probabilities(detectors: Sequence["SileroDetector"], frames: Floats) -> list[float]:
        return detectors[0]._network.score(detectors, frames)


@dataclass(frozen=True, slots=True)
class Layer:
    weight: Floats
    """(inputs, outputs)"""
    bias: Floats


class Network:
    """The network of a process, shared by the detectors of all its conversations; for one thread.

    Its weights (1.2 MB) pass through the processor's cache once a round, whether of one frame or of thirty.
    """

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        """Raises KeyError or ValueError for those of another network."""
        window = weights["model.stft.forward_basis_buffer"][0, 0]  # times the cosine of frequency 0
        self._window = np.ascontiguousarray(window.reshape(_WINDOW))
        self._encoder = tuple(
            _convolution(weights[f"{name}.weight"], weights[f"{name}.bias"])
            for name in map(_ENCODER.format, range(len(_STRIDES)))
        )
        inner = ("weight_ih", "weight_hh"), ("bias_ih", "bias_hh")
        into, biases = ([weights[f"{_DECODER}.rnn.{name}"] for name in names] for names in inner)
        # Of a gate that ends in a sigmoid half is computed, since sigmoid(x) = (1 + tanh(x / 2)) / 2.
        half = np.full(4 * _UNITS, 0.5, dtype=np.float32)
        half[2 * _UNITS : 3 * _UNITS] = 1.0
        self._gates = Layer(np.concatenate(into, axis=1).T * half, (biases[0] + biases[1]) * half)
        self._out = Layer(
            weights[f"{_DECODER}.decoder.2.weight"].reshape(_UNITS), weights[f"{_DECODER}.decoder.2.bias"]
        )

    def detector(self) -> SileroDetector:
        return SileroDetector(self)

    def score(self, detectors: Sequence[SileroDetector], frames: Floats) -> list[float]:
        """The probability of the frame, a row each of float32 (n, 512), of each detector; their memories go on by it."""
        if frames.shape != (len(detectors), DETECTOR_FRAME):
            shape = frames.shape[1:]
            raise BadRequest(f"a frame has shape (512,), not {shape}", stage="vad", engine="silero")
        before = np.array([detector.memory for detector in detectors])
        context, output, cell = before[:, :_CONTEXT], before[:, _CONTEXT:-_UNITS], before[:, -_UNITS:]
        seen = self._encoded(np.concatenate((context, frames), axis=1))
        after = np.empty_like(before)
        after[:, :_CONTEXT] = frames[:, -_CONTEXT:]
        self._remember(seen, output, cell, after[:, _CONTEXT:-_UNITS], after[:, -_UNITS:])
        logits = np.maximum(after[:, _CONTEXT:-_UNITS], 0) @ self._out.weight + self._out.bias
        probabilities: list[float] = (0.5 + 0.5 * np.tanh(0.5 * logits)).tolist()
        after[np.array(probabilities) <= _SPEECH, -_UNITS:] *= _KEPT
        for detector, memory in zip(detectors, after, strict=True):
            detector.memory = memory
        return probabilities

    def _encoded(self, sound: Floats) -> Floats:
        """(n, 576) samples to (n, 128)."""
        rows = len(sound)
        mirrored = np.concatenate((sound, sound[:, -2 : -2 - _CONTEXT : -1]), axis=1)
        pieces = _view(mirrored, (_STEPS, _WINDOW), _HOP)
        layers = np.zeros((rows, _STEPS + 2, _BINS), dtype=np.float32)
        np.abs(np.fft.rfft(pieces * self._window), out=layers[:, 1:-1])
        for layer, stride in zip(self._encoder, _STRIDES, strict=True):
            steps = (layers.shape[1] - _TAPS) // stride + 1
            channels = layers.shape[2]
            taps = _view(layers, (steps, _TAPS * channels), stride * channels)
            made = taps.reshape(rows * steps, _TAPS * channels) @ layer.weight
            made += layer.bias
            layers = np.zeros((rows, steps + 2, made.shape[1]), dtype=np.float32)
            np.maximum(made.reshape(rows, steps, -1), 0, out=layers[:, 1:-1])
        return layers[:, 1]

    def _remember(
        self, seen: Floats, output: Floats, cell: Floats, new_output: Floats, new_cell: Floats
    ) -> None:
        """One step of the LSTM (its gates in ONNX's and PyTorch's order: input, forget, cell, output)."""
        gates = np.concatenate((seen, output), axis=1) @ self._gates.weight
        gates += self._gates.bias
        np.tanh(gates, out=gates)
        new = gates[:, 2 * _UNITS : 3 * _UNITS].copy()
        gates += 1
        gates *= 0.5
        np.multiply(gates[:, _UNITS : 2 * _UNITS], cell, out=new_cell)
        new *= gates[:, :_UNITS]
        new_cell += new
        np.multiply(gates[:, 3 * _UNITS :], np.tanh(new_cell), out=new_output)


def _convolution(weight: Floats, bias: Floats) -> Layer:
    """(outputs, inputs, taps) as the product with what lies side by side: the inputs of the first tap, of the second, ..."""
    outputs, inputs, taps = weight.shape
    if taps != _TAPS:
        raise ValueError(f"a convolution of {taps} taps, not {_TAPS}")
    return Layer(np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(taps * inputs, outputs)), bias)


def _view(rows: Floats, shape: tuple[int, int], step: int) -> Floats:
    """Of each row of a contiguous array `shape[0]` overlapping pieces of `shape[1]` values, `step` apart; no copy."""
    size, item = rows[0].size, rows.itemsize
    strides = (size * item, step * item, item)
    return np.ndarray((len(rows), *shape), np.float32, rows, 0, strides)


def load() -> Callable[[], SpeechDetector]:
    """Loads the weights once; each call of the result gives a detector with a fresh state.

    Raises EngineFailed when they are missing, or are those of a network of another shape.
    """
    path = _model_path()
    try:
        network = Network(_weights(path))
        network.detector().probability(np.zeros(DETECTOR_FRAME, dtype=np.float32))
    except (KeyError, ValueError) as error:
        message = f"{path} is not the network that is known here ({error}): `pip install silero-vad==6.2.*`"
        raise EngineFailed(message, stage="vad", engine="silero") from error
    return network.detector


def _weights(path: Path) -> dict[str, Floats]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise EngineFailed("`pip install onnx`", stage="vad", engine="silero") from error
    graph: Any = onnx.load(path).graph  # Any: generated from a schema
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _model_path() -> Path:
    spec = find_spec("silero_vad")  # finds a top-level package without importing it
    folders = (spec.submodule_search_locations if spec else None) or ()
    for folder in folders:
        path = Path(folder) / "data" / _FILE
        if path.is_file():
            return path
    raise EngineFailed(f"{_FILE} is not here: `pip install silero-vad`", stage="vad", engine="silero")
