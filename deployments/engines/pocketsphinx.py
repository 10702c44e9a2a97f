"""pocketsphinx with the English model in its wheel: the ears that need no download.

Real-time factor 0.15 on one core, word error rate 0.35 on read speech (shared/audio/speech): it shows that the loop
works. Each of the `threads` slots is a process with a decoder, 120 MB, and a thread that waits for its answer
(`pocketsphinx_worker.py` says why a process). A call waits for a slot. A cancel kills the slot's process: the
caller is released at once, and the slot takes new work as soon as another process has loaded the model, 0.3 s.

Interims have a slot of their own, which is made for the first of them and does one at a time, in a process that gives
way to all others (`os.nice`). A final that comes kills it, so that it takes neither a slot from the final nor a core.
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
import numpy.typing as npt

from deployments.interfaces import TRANSCRIBER_RATE, BadRequest, EngineBusy, EngineFailed, Transcript
from deployments.options import SttOptions

from .pocketsphinx_worker import LENGTH

_SILENCE_DBFS = -50.0
"""An utterance whose loudest 30 ms have less power is not decoded; the quietest speech in shared/audio has -24."""
_GATE_FRAME = TRANSCRIBER_RATE * 30 // 1000
_INTERIM_NICENESS = 10

_RATED_S = 2.0
"""Sound that must be there for its rate of words to be told."""
_SOUNDING_DB = 25.0
"""How far under the loudest 30 ms of an utterance its sound reaches."""
_MIN_WORDS_PER_S = 0.75
"""Of sound. In shared/audio: noise without people 0.0 to 0.6, speech and digits, clean and noisy, 1.6 and more. The
decoder's own confidence does not tell them apart: posteriors of 0.02 for a digit heard right, 0.5 for a fan."""


class PocketsphinxTranscriber:
    """Lower-case English words without punctuation.

    Noise that goes on gives an empty transcript; a knock, and people in the background, come out as words: a detector
    goes before.

    `prompt` is ignored. Raises BadRequest for any language but English.
    """

    def __init__(self, options: SttOptions) -> None:
        self._finals = _Slots(max(1, options.threads))
        self._finals.wait_until_loaded()
        self._interims: _Slots | None = None
        self._interim: _Call | None = None
        """Under way."""
        self._busy_with = 0
        """Finals that wait or run."""

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        if language and language.lower().split("-")[0] != "en":
            raise BadRequest(f"knows English only, not {language!r}", stage="stt", engine="pocketsphinx")
        if len(pcm) % 2:
            raise BadRequest(f"odd number of bytes: {len(pcm)}", stage="stt", engine="pocketsphinx")
        if is_interim and (self._busy_with or self._interim):
            raise _busy()
        if _is_silent(pcm):
            return Transcript(text="", language="en")
        text = await (self._decode_interim(pcm) if is_interim else self._decode_final(pcm))
        return Transcript(text="" if _is_noise(text, pcm) else text, language="en")

    async def _decode_final(self, pcm: bytes) -> str:
        if self._interim:
            self._interim.turn_away()
        self._busy_with += 1
        try:
            return await self._finals.decode(pcm, _Call())
        finally:
            self._busy_with -= 1

    async def _decode_interim(self, pcm: bytes) -> str:
        self._interims = self._interims or _Slots(1, niceness=_INTERIM_NICENESS)
        self._interim = call = _Call()
        try:
            text = await self._interims.decode(pcm, call)
        except EngineFailed:
            if call.was_turned_away:
                raise _busy() from None
            raise
        finally:
            self._interim = None
        if call.was_turned_away:
            raise _busy()
        return text


def _busy() -> EngineBusy:
    return EngineBusy("finals come before interims", stage="stt", engine="pocketsphinx")


class _Slots:
    """Processes with decoders, and a queue before them: a cancelled call that still waits in it is never begun."""

    def __init__(self, count: int, *, niceness: int = 0) -> None:
        self.workers: SimpleQueue[_Worker] = SimpleQueue()
        self._count = count
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="pocketsphinx")
        weakref.finalize(self, _stop, self._executor, self.workers, count)
        for _ in range(count):
            self.workers.put(_Worker(niceness))

    def wait_until_loaded(self) -> None:
        """Must be called before the first `decode`, or not at all. Raises EngineFailed with the remedy."""
        workers = [self.workers.get() for _ in range(self._count)]
        for worker in workers:
            self.workers.put(worker)
        for worker in workers:
            worker.wait_until_loaded()

    async def decode(self, pcm: bytes, call: "_Call") -> str:
        """The words; nothing, or EngineFailed, when the call was turned away."""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, _decode, self.workers, pcm, call)
        finally:
            call.end()


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
        self.was_turned_away = False

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

    def turn_away(self) -> None:
        """The caller is told that there is no room for it. Does not block."""
        self.was_turned_away = True
        self.end()


class _Worker:
    """One decoder in its process. Only `kill` may be called from another thread than the one that uses it."""

    def __init__(self, niceness: int) -> None:
        self._niceness = niceness
        self._process = self._start()
        self._is_loaded = False

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: this folder, in which `pocketsphinx` is another module, stays out of the import path.
        script = Path(__file__).with_name("pocketsphinx_worker.py")
        command = [sys.executable, "-P", str(script), str(self._niceness)]
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
    return float(_powers(pcm).max(initial=0.0)) < 10 ** (_SILENCE_DBFS / 10)


def _is_noise(text: str, pcm: bytes) -> bool:
    """Too few words for so much sound: the decoder, which has no word for noise, gave the likeliest for a part of it."""
    powers = _powers(pcm)
    sounding = int(np.sum(powers > powers.max() * 10 ** (-_SOUNDING_DB / 10)))
    sounding_s = sounding * _GATE_FRAME / TRANSCRIBER_RATE
    return sounding_s >= _RATED_S and len(text.split()) < sounding_s * _MIN_WORDS_PER_S


def _powers(pcm: bytes) -> npt.NDArray[np.float64]:
    """Of each 30 ms; the last ones are filled up with silence."""
    samples = np.frombuffer(pcm, dtype="<i2").astype(np.float64) / 32768
    padded = np.pad(samples, (0, -len(samples) % _GATE_FRAME))
    powers: npt.NDArray[np.float64] = (padded.reshape(-1, _GATE_FRAME) ** 2).mean(axis=1)
    return powers
