"""What computes Kokoro's forward: torch, or onnxruntime over an export of the same weights.

- A forward gives no audio before it ends, but it can be stopped: onnxruntime looks at a flag between its operators,
  torch at one between the modules. So a cancelled call gives its thread back after milliseconds, not seconds.
- On a CPU onnxruntime is faster and needs no torch in the replica (numbers: `python -m loadtest.bench_tts`). The export
  is made once, by `kokoro_export.py` in a process of its own, and named after a hash of the weights, so that other
  weights never meet an old export. It lies beside them or, where that cannot be written, in the user's cache.
- On a GPU torch computes, several texts in one forward (`kokoro_batch`): a forward there is a thousand small kernels,
  whose launch takes longer than their work. A CPU gains nothing by it, and computes them one after the other.
"""

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deployments.interfaces import EngineFailed
from deployments.options import TtsOptions

Audio = npt.NDArray[np.float32]
Durations = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int64]

EXPORT_S = 33
"""How long an export takes on one free core (facts/engines.md)."""
_EXPORT_LIMIT_S = 900.0
_VERSION = "1"
"""Of what `kokoro_export.py` writes: a new number makes new exports."""
_HEAD, _TAIL = 1 << 16, 1 << 20
"""Bytes of the weights that are hashed: a `.pth` is a zip, and its end lists the checksum of every tensor."""
_CACHE = Path(".cache") / "voice-serve" / "kokoro"
_EXPORTER = Path(__file__).with_name("kokoro_export.py")
log = logging.getLogger("ray.serve")


class Stopped(Exception):
    """The forward was stopped half-way."""


class Stop:
    """Set when nobody waits for a forward any more, from any thread; once set it stays so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_set = False
        self._then: Callable[[], None] | None = None

    def set(self) -> None:
        with self._lock:
            self._is_set = True
            if self._then:
                self._then()

    def check(self) -> None:
        if self._is_set:
            raise Stopped

    @property
    def is_set(self) -> bool:
        return self._is_set

    @contextmanager
    def calling(self, then: Callable[[], None]) -> Iterator[None]:
        """Calls `then` when set during the block. Raises Stopped before the block if it is set already."""
        with self._lock:
            self.check()
            self._then = then
        try:
            yield
        finally:
            with self._lock:
                self._then = None


class StopTogether(Stop):
    """Set when nobody waits for any text of a batch any more."""

    def __init__(self, stops: Sequence[Stop]) -> None:
        super().__init__()
        self._stops = stops

    def check(self) -> None:
        if all(stop.is_set for stop in self._stops):
            raise Stopped


@dataclass(frozen=True, slots=True)
class Text:
    """What one text of a batch is spoken from; the three as in `Backend.forward`."""

    ids: Ids
    style: Audio
    speed: float


class Backend(Protocol):
    name: str
    max_together: int
    """Texts that are worth a forward together."""

    def forward(self, ids: Ids, style: Audio, speed: float, stop: Stop) -> tuple[Audio, Durations]:
        """Audio (samples,) at 24 kHz and the frames of each phoneme, for `ids` (1, n), `style` (1, 256).

        Raises Stopped soon after `stop` is set, EngineFailed when the forward breaks.
        """
        ...

    def forward_together(self, texts: Sequence[Text], stop: StopTogether) -> list[tuple[Audio, Durations]]:
        """The same for each of `texts`, as if it were alone."""
        ...


def load(folder: Path, weights: Path, options: TtsOptions) -> Backend:
    """The backend that `options` ask for. `auto`: torch where there is a GPU, else onnx, torch if that fails."""
    wants_gpu = options.device == "cuda" or (options.device == "auto" and _may_have_gpu())
    if options.backend == "onnx" and options.device == "cuda":
        raise _failed("backend onnx computes on the CPU: write `backend: auto` or `device: cpu`")
    if options.backend == "torch" or (options.backend == "auto" and wants_gpu):
        torch_backend = TorchBackend(folder, weights, options)
        if torch_backend.device == "cuda" or options.backend == "torch" or options.device == "cuda":
            return torch_backend
    try:
        return OnnxBackend(exported(folder, weights), options.threads)
    except EngineFailed as error:
        if options.backend == "onnx":
            raise
        log.warning("kokoro computes with torch, which is slower", extra={"reason": error.message})
        return TorchBackend(folder, weights, options)


def _may_have_gpu() -> bool:
    """Whether it is worth importing torch to ask it."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


class OnnxBackend:
    name = "onnx"
    max_together = 1

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise _failed("onnxruntime is not installed: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # a stopped forward is an error to onnxruntime
        # Other engines share these cores: a thread that has no work must not wait for it in a loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise _failed(f"{path} cannot be loaded: delete it, it will be made again ({error})") from error
        self._run_options = onnxruntime.RunOptions

    def forward(self, ids: Ids, style: Audio, speed: float, stop: Stop) -> tuple[Audio, Durations]:
        run = self._run_options()
        run.log_severity_level = 4
        inputs = {"phonemes": ids, "style": style, "speed": np.array([speed], np.float32)}
        try:
            with stop.calling(lambda: setattr(run, "terminate", True)):
                audio, durations = self._session.run(None, inputs, run)
        except Stopped:
            raise
        except Exception as error:  # its exceptions have no common base
            stop.check()
            raise _failed(f"the forward broke: {error}") from error
        return audio.reshape(-1), durations.reshape(-1)

    def forward_together(self, texts: Sequence[Text], stop: StopTogether) -> list[tuple[Audio, Durations]]:
        return [self.forward(text.ids, text.style, text.speed, stop) for text in texts]


class TorchBackend:
    name = "torch"

    def __init__(self, folder: Path, weights: Path, options: TtsOptions) -> None:
        try:
            import torch

            from .kokoro_batch import PaddedKokoro
            from .kokoro_export import load
        except ImportError as error:
            raise _failed("kokoro is not installed: pip install kokoro") from error
        has_gpu = torch.cuda.is_available()
        if options.device == "cuda" and not has_gpu:
            raise _failed("device is cuda and torch finds no GPU: write `device: auto`")
        torch.set_num_threads(options.threads)
        self.device = "cuda" if has_gpu and options.device != "cpu" else "cpu"
        try:
            self._model = load(folder, weights, disable_complex=False).to(self.device)
        except ImportError as error:
            raise _failed("kokoro is not installed: pip install kokoro") from error
        except Exception as error:  # torch, json and transformers each have their own for a broken file
            raise _failed(f"the model in {folder} cannot be loaded: {error}") from error
        self.max_together = options.max_batch if self.device == "cuda" else 1
        self._torch = torch
        self._together = PaddedKokoro(self._model)
        self._stop = Stop()
        for module in self._model.modules():
            module.register_forward_pre_hook(lambda *_: self._stop.check())

    def forward(self, ids: Ids, style: Audio, speed: float, stop: Stop) -> tuple[Audio, Durations]:
        with self._stopped_by(stop):
            audio, durations = self._model.forward_with_tokens(self._tensor(ids), self._tensor(style), speed)
            return audio.cpu().numpy().reshape(-1), durations.cpu().numpy().reshape(-1)

    def forward_together(self, texts: Sequence[Text], stop: StopTogether) -> list[tuple[Audio, Durations]]:
        with self._stopped_by(stop):
            spoken = self._together.forward(
                [self._tensor(text.ids[0]) for text in texts],
                self._tensor(np.concatenate([text.style for text in texts])),
                self._tensor(np.array([text.speed for text in texts], np.float32)),
            )
            return [(audio.cpu().numpy(), durations.cpu().numpy()) for audio, durations in spoken]

    def _tensor(self, array: npt.NDArray[np.generic]) -> Any:
        return self._torch.from_numpy(array).to(self.device)

    @contextmanager
    def _stopped_by(self, stop: Stop) -> Iterator[None]:
        self._stop = stop
        try:
            yield
        except (RuntimeError, IndexError) as error:
            raise _failed(f"the forward broke: {error}") from error
        finally:
            # kokoro's models share an activation (a default argument), and so its hook: one at rest must let all pass.
            self._stop = Stop()


# --- the export -----------------------------------------------------------------------------------------------------


def exported(folder: Path, weights: Path) -> Path:
    """The ONNX file of these weights, made now if it is not there. Raises EngineFailed where it cannot be made."""
    name = f"{weights.stem}.{_key(folder, weights)}.onnx"
    places = [folder, Path.home() / _CACHE]
    for place in places:
        if (place / name).is_file():
            return place / name
    for place in places:
        if _is_writable(place):
            return _export(folder, weights, place / name)
    raise _failed(f"no place for the ONNX export: neither {places[0]} nor {places[1]} can be written")


def _key(folder: Path, weights: Path) -> str:
    digest = hashlib.sha256(_VERSION.encode())
    digest.update((folder / "config.json").read_bytes())
    size = weights.stat().st_size
    digest.update(str(size).encode())
    with weights.open("rb") as file:
        digest.update(file.read(_HEAD))
        file.seek(max(0, size - _TAIL))
        digest.update(file.read())
    return digest.hexdigest()[:16]


def _is_writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _export(folder: Path, weights: Path, target: Path) -> Path:
    """Makes `target` whole or not at all; of several replicas that start at once, one makes it and the others wait."""
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return target
        log.info("exporting kokoro to ONNX, once: about %d s; it will lie at %s", EXPORT_S, target)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        command = [sys.executable, "-P", str(_EXPORTER), str(folder), str(weights), str(part)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_EXPORT_LIMIT_S, check=False
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                raise _failed(f"the model in {folder} cannot be loaded for the ONNX export: {reason}")
            part.replace(target)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(f"the ONNX export failed: {error}") from error
        finally:
            part.unlink(missing_ok=True)
    return target


def _failed(message: str) -> EngineFailed:
    return EngineFailed(message, stage="tts", engine="kokoro")
