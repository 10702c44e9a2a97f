"""pocketsphinx with the English model in its wheel: the ears that need no download.

Real-time factor 0.15 on one core, word error rate 0.35 on read speech (shared/audio/speech): it shows that the loop
works. Each of the `threads` slots is a process with a decoder, 120 MB, and a thread that waits for its answer
(`pocketsphinx_worker.py` says why a process). A call waits for a slot. A cancel kills the slot's process: the
caller is released at once, and the slot takes new work as soon as another process has loaded the model, 0.3 s.
"""

import asyncio
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO

import numpy as np

from deployments.interfaces import TRANSCRIBER_RATE, BadRequest, EngineFailed, Transcript
from deployments.options import SttOptions

from .pocketsphinx_worker import LENGTH

_SILENCE_DBFS = -50.0
"""An utterance whose loudest 30 ms have less power is not decoded; the quietest speech in shared/audio has -24."""
_GATE_FRAME = TRANSCRIBER_RATE * 30 // 1000


class PocketsphinxTranscriber:
    """Lower-case English words without punctuation. Noise over the gate may come out as words: a detector goes before.

    `prompt` is ignored. Raises BadRequest for any language but English.
    """

    def __init__(self, options: SttOptions) -> None:
        slots = max(1, options.threads)
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        # The executor's queue is the queue for a slot: a cancelled call that still waits in it is never begun.
        self._executor = ThreadPoolExecutor(slots, thread_name_prefix="pocketsphinx")
        weakref.finalize(self, _stop, self._executor, self._workers, slots)
        workers = [_Worker() for _ in range(slots)]
        for worker in workers:
            self._workers.put(worker)
        for worker in workers:
            worker.wait_until_loaded()

    async def transcribe(self, pcm: bytes, *, language: str | None, prompt: str | None) -> Transcript:
        if language and language.lower().split("-")[0] != "en":
            raise BadRequest(f"knows English only, not {language!r}", stage="stt", engine="pocketsphinx")
        if len(pcm) % 2:
            raise BadRequest(f"odd number of bytes: {len(pcm)}", stage="stt", engine="pocketsphinx")
        if _is_silent(pcm):
            return Transcript(text="", language="en")
        call = _Call()
        try:
            loop = asyncio.get_running_loop()
            text = await loop.run_in_executor(self._executor, _decode, self._workers, pcm, call)
        finally:
            call.end()
        return Transcript(text=text, language="en")


def _decode(workers: "SimpleQueue[_Worker]", pcm: bytes, call: "_Call") -> str:
    # Not a method: a thread that held the engine could be the last to do so, and would have to stop itself.
    worker = workers.get()
    try:
        worker.wait_until_loaded()
        if not call.begin(worker):
            return ""
        return worker.decode(pcm)
    except (OSError, EOFError) as error:
        call.lose()
        raise EngineFailed("the decoder's process ended", stage="stt", engine="pocketsphinx") from error
    finally:
        if call.leave():
            worker.restart()
        workers.put(worker)


class _Call:
    """Lets the event loop kill the process that works for a call, and never one that works for another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._has_ended = False
        self._has_lost_worker = False

    def begin(self, worker: "_Worker") -> bool:
        """False when the caller has gone: the work must not begin."""
        with self._lock:
            if not self._has_ended:
                self._worker = worker
            return not self._has_ended

    def lose(self) -> None:
        """The process ended by itself."""
        self._has_lost_worker = True

    def leave(self) -> bool:
        """Must be called before the worker takes other work. True when its process must be replaced."""
        with self._lock:
            self._worker = None
            return self._has_lost_worker

    def end(self) -> None:
        """The caller has its answer, or has gone; in the second case the work is stopped. Does not block."""
        with self._lock:
            self._has_ended = True
            if self._worker:
                self._has_lost_worker = True
                self._worker.kill()


class _Worker:
    """One decoder in its process. Only `kill` may be called from another thread than the one that uses it."""

    def __init__(self) -> None:
        self._process = self._start()
        self._is_loaded = False

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: this folder, in which `pocketsphinx` is another module, stays out of the import path.
        script = Path(__file__).with_name("pocketsphinx_worker.py")
        command = [sys.executable, "-P", str(script)]
        try:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise EngineFailed(f"no process: {error}", stage="stt", engine="pocketsphinx") from error

    def wait_until_loaded(self) -> None:
        """Raises EngineFailed when pocketsphinx or its model is missing."""
        if self._is_loaded:
            return
        try:
            self._read()
        except EOFError as error:
            self.restart()
            remedy = "does not start: `pip install pocketsphinx`"
            raise EngineFailed(remedy, stage="stt", engine="pocketsphinx") from error
        self._is_loaded = True

    def decode(self, pcm: bytes) -> str:
        """Raises EOFError or OSError when the process has ended."""
        requests = _pipe(self._process.stdin)
        requests.write(LENGTH.pack(len(pcm)) + pcm)
        requests.flush()
        return self._read()

    def kill(self) -> None:
        self._process.kill()

    def restart(self) -> None:
        """A new process in place of one that has ended; it loads its model while nobody waits."""
        self.stop()
        self._process = self._start()
        self._is_loaded = False

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        answers = _pipe(self._process.stdout)
        header = answers.read(LENGTH.size)
        if len(header) < LENGTH.size:
            raise EOFError
        return answers.read(LENGTH.unpack(header)[0]).decode()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream, "both ends were opened as pipes"
    return stream


def _stop(executor: ThreadPoolExecutor, workers: "SimpleQueue[_Worker]", slots: int) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    for _ in range(slots):
        # A worker that does not come back ends by itself when its pipe is collected.
        with suppress(Empty):
            workers.get(timeout=2.0).stop()


def _is_silent(pcm: bytes) -> bool:
    samples = np.frombuffer(pcm, dtype="<i2").astype(np.float64) / 32768
    padded = np.pad(samples, (0, -len(samples) % _GATE_FRAME))
    power = (padded.reshape(-1, _GATE_FRAME) ** 2).mean(axis=1)
    return float(power.max(initial=0.0)) < 10 ** (_SILENCE_DBFS / 10)
