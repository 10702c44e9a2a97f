"""Whisper through faster-whisper (CTranslate2): the ears with real accuracy, on CPU or GPU.

- Weights come from a folder or the hub cache and are never downloaded here: a replica that fetches in silence looks
  like one that hangs. A folder without `tokenizer.json` is refused, because faster-whisper would call the hub for it.
- One utterance at a time a replica: its one thread is the lock and the executor's queue the queue. A cancelled call
  that waits is never begun; a forward under way cannot be stopped, and the caller does not wait for it.
- Whisper invents words on silence. What is quieter than speech ever is never reaches it, and what it doubts itself
  (no-speech probability with a low log-probability) is dropped.
"""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments import models
from deployments.interfaces import TRANSCRIBER_RATE, BadRequest, EngineFailed, Transcript
from deployments.options import SttOptions

_SILENCE_DBFS = -50.0
"""An utterance whose loudest 30 ms have less power is silence; quiet speech has -25 (shared/audio/multi)."""
_GATE_FRAME = TRANSCRIBER_RATE * 30 // 1000

_DECODING: dict[str, object] = {
    "beam_size": 1,
    "best_of": 1,
    # Each fallback is a decoding more: three bound the time that a hopeless utterance takes.
    "temperature": (0.0, 0.4, 0.8),
    "condition_on_previous_text": False,
    "without_timestamps": True,
    "vad_filter": False,
    # The thresholds are those of openai/whisper's `transcribe`.
    "compression_ratio_threshold": 2.4,
    "log_prob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}


class FasterWhisperTranscriber:
    """Transcripts with punctuation. Any CTranslate2 Whisper: a size, a hub repository in the cache, or a folder.

    Raises BadRequest for a language that the model does not have; an English-only model has "en".
    """

    def __init__(self, options: SttOptions) -> None:
        folder = models.locate(options)
        if folder is None:
            raise self._failed(models.missing(options))
        self._model = self._load(folder, options)
        self._languages = frozenset(self._model.supported_languages)
        self._language = options.language
        if options.language and _code(options.language) not in self._languages:
            raise self._failed(f"{options.model} does not know the language {options.language!r}")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="whisper")
        self._decode(np.zeros(TRANSCRIBER_RATE, np.float32), "en", None, threading.Event())

    async def transcribe(self, pcm: bytes, *, language: str | None, prompt: str | None) -> Transcript:
        if len(pcm) % 2:
            raise BadRequest(f"odd number of bytes: {len(pcm)}", stage="stt", engine="faster_whisper")
        spoken = language or self._language
        code = _code(spoken) if spoken else None
        if code and code not in self._languages:
            known = "English only" if len(self._languages) == 1 else f"{len(self._languages)} languages"
            message = f"knows {known}, not {language!r}"
            raise BadRequest(message, stage="stt", engine="faster_whisper")
        audio = np.frombuffer(pcm, np.int16).astype(np.float32) * np.float32(2**-15)
        if _is_silent(audio):
            return Transcript(text="", language=code)
        cancelled = threading.Event()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._decode, audio, code, prompt, cancelled)
        finally:
            cancelled.set()

    def _load(self, folder: Path, options: SttOptions) -> Any:
        try:
            import ctranslate2
            import faster_whisper
        except ImportError as error:
            raise self._failed("faster-whisper is not installed: pip install faster-whisper") from error
        logging.getLogger("faster_whisper").setLevel(logging.WARNING)
        has_gpu = ctranslate2.get_cuda_device_count() > 0
        device = options.device if options.device != "auto" else "cuda" if has_gpu else "cpu"
        if device == "cuda" and not has_gpu:
            raise self._failed("device is cuda and CTranslate2 finds no GPU: write `device: auto`")
        supported = sorted(ctranslate2.get_supported_compute_types(device))
        automatic = "float16" if device == "cuda" else "int8"
        compute_type = options.compute_type if options.compute_type != "auto" else automatic
        if compute_type not in supported:
            raise self._failed(
                f"{compute_type} does not run on this {device}, which has {', '.join(supported)}"
            )
        try:
            return faster_whisper.WhisperModel(
                str(folder),
                device=device,
                compute_type=compute_type,
                cpu_threads=options.threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise self._failed(f"the model in {folder} cannot be loaded: {error}") from error

    def _decode(
        self,
        audio: npt.NDArray[np.float32],
        language: str | None,
        prompt: str | None,
        cancelled: threading.Event,
    ) -> Transcript:
        if cancelled.is_set():
            return Transcript(text="")
        try:
            segments, info = self._model.transcribe(
                audio, language=language, initial_prompt=prompt or None, **_DECODING
            )
            texts = []
            # Each step of the iterator decodes a window of 30 s.
            for segment in segments:
                texts.append(segment.text)
                if cancelled.is_set():
                    break
        except (RuntimeError, ValueError) as error:
            raise self._failed(f"the decoding broke: {error}") from error
        return Transcript(text="".join(texts).strip(), language=info.language)

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="stt", engine="faster_whisper")


def _code(language: str) -> str:
    """ISO 639-1 from a BCP 47 tag: "en-US" is "en"."""
    return language.lower().split("-")[0]


def _is_silent(audio: npt.NDArray[np.float32]) -> bool:
    frames = audio[: len(audio) // _GATE_FRAME * _GATE_FRAME].reshape(-1, _GATE_FRAME)
    if not len(frames):
        return True
    loudest = float(np.square(frames).mean(axis=1).max())
    return bool(10 * np.log10(loudest + 1e-12) < _SILENCE_DBFS)
