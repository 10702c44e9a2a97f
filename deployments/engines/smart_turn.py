"""smart-turn: from the last eight seconds of sound, how likely a turn is over. A second opinion, never the only one.

Pipecat's model (v3, BSD-2-Clause, 8.7 MB ONNX: Whisper tiny's encoder and a classifier). It lies in the wheel of
`pipecat-ai`, which is located and never imported. It hears intonation, which a transcript does not show. On read speech
it takes 72 % of true endings for such, and 45 % of cuts in mid-utterance too; so `conversation.endpointing` lets it move
a wait and not end a turn.

35 ms a call on one core, and a batch saves nothing: calls of a process are computed one after the other, in a thread.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import TRANSCRIBER_RATE, BadRequest, EngineFailed, EngineInfo

WINDOW_S = 8
REMEDY = "make turn, or pip install --no-deps pipecat-ai==1.14.0"
"""Without its dependencies: it asks for protobuf<7 and Ray for a newer one, and nothing of it is run."""
_SAMPLES = WINDOW_S * TRANSCRIBER_RATE
_FFT = 400
_HOP = 160
_MELS = 80
_LOG_RANGE = 8.0
"""Powers of ten under the loudest that are told apart."""

Features = npt.NDArray[np.float32]


class SmartTurn:
    """One model a process; `load` makes it."""

    def __init__(self, session: Any) -> None:
        # Any: onnxruntime ships no types.
        self._session = session
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smart-turn")

    async def completeness(self, pcm: bytes) -> float:
        """Probability in [0, 1] that the turn that `pcm` (16-bit, 16 kHz; its last 8 s count) holds is over.

        A call that is cancelled while it waits is never begun.
        """
        if len(pcm) % 2:
            raise BadRequest(f"odd number of bytes: {len(pcm)}", stage="turn", engine="smart_turn")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, pcm)

    def _judge(self, pcm: bytes) -> float:
        audio = np.frombuffer(pcm[-2 * _SAMPLES :], dtype="<i2").astype(np.float32) / np.float32(32768)
        try:
            [[probability]] = self._session.run(None, {"input_features": features(audio)[np.newaxis]})[0]
        except RuntimeError as error:
            raise EngineFailed(str(error), stage="turn", engine="smart_turn") from error
        return float(probability)


def load() -> SmartTurn:
    """Raises EngineFailed, with the remedy, where onnxruntime or the model is missing."""
    path = model_path()
    if path is None:
        raise EngineFailed(f"the model is not here: {REMEDY}", stage="turn", engine="smart_turn")
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineFailed("`pip install onnxruntime`", stage="turn", engine="smart_turn") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return SmartTurn(session)


def info() -> EngineInfo:
    """What gives the second opinion where `turn_taking.smart_turn` asks for one."""
    path = model_path()
    if path is not None:
        return EngineInfo("turn", "smart_turn", path.stem)
    reason = "turn_taking.smart_turn is true and the model is not installed"
    return EngineInfo("turn", "transcript", "the words alone", reason, REMEDY)


def model_path() -> Path | None:
    """The newest of the models in pipecat's wheel."""
    spec = find_spec("pipecat")  # finds a top-level package without importing it
    for folder in (spec.submodule_search_locations if spec else None) or ():
        found = sorted(Path(folder).glob("audio/turn/smart_turn/data/smart-turn-v3*.onnx"))
        if found:
            return found[-1]
    return None


def features(audio: npt.NDArray[np.float32]) -> Features:
    """Whisper's log-mel spectrogram, float32 (80, 800), of 8 s that end as `audio` does, silence before it.

    As transformers' WhisperFeatureExtractor with `do_normalize`: the model was trained on it.
    """
    window = np.zeros(_SAMPLES, dtype=np.float32)
    window[_SAMPLES - len(audio) :] = audio
    window = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    padded = np.pad(window.astype(np.float64), _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:-1]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FFT + 1)[:-1], axis=-1)) ** 2
    mel = np.log10(np.maximum(power @ _mel_filters(), 1e-10)).T
    scaled: Features = ((np.maximum(mel, mel.max() - _LOG_RANGE) + 4.0) / 4.0).astype(np.float32)
    return scaled


@cache
def _mel_filters() -> npt.NDArray[np.float64]:
    """(201, 80): triangles on Slaney's mel scale (linear to 1 kHz, then logarithmic), each of the same area."""
    step = np.log(6.4) / 27
    top = 15 + np.log(TRANSCRIBER_RATE / 2 / 1000) / step
    mels = np.linspace(0, top, _MELS + 2)
    edges = np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(step * (mels - 15)))
    frequencies = np.linspace(0, TRANSCRIBER_RATE / 2, _FFT // 2 + 1)
    slopes = edges[np.newaxis] - frequencies[:, np.newaxis]
    rising, falling = -slopes[:, :-2] / np.diff(edges)[:-1], slopes[:, 2:] / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
