"""Whisper through faster-whisper (CTranslate2): the ears with real accuracy, on CPU or GPU.

- Weights come from a folder or the hub cache and are never downloaded here: a replica that fetches in silence looks
  like one that hangs. A folder without `tokenizer.json` is refused, because faster-whisper would call the hub for it.
- Two ways to decode. A window (`faster_whisper_windows.py`) of 10, 15, 20 or 30 s for an utterance that fits, batches
  of them where that pays; and faster-whisper's own loop over 30 s with its fallback over temperatures, one at a time:
  for what is longer, for what looked wrong in a window, and on CPU for all that takes 30 s anyway.
- One thread does the work, and `MicroBatcher` is the queue before it: its head says who goes first, who goes together
  and what becomes of a cancelled call. A forward under way cannot be stopped, and its caller does not wait for it.
- Whisper invents words on silence. What is quieter than speech ever is never reaches it, and what it doubts itself
  (no-speech probability with a low log-probability or with what it says to noise) is dropped, as is a loop.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments import models
from deployments.interfaces import TRANSCRIBER_RATE, BadRequest, EngineFailed, Transcript
from deployments.microbatch import Job, MicroBatcher
from deployments.options import SttOptions

from .faster_whisper_windows import (
    MAX_COMPRESSION_RATIO,
    MAX_NO_SPEECH_PROBABILITY,
    MIN_LOG_PROBABILITY,
    WINDOWS_S,
    Audio,
    Decoded,
    Utterance,
    Verdict,
    WindowDecoder,
    is_loop,
    is_nothing,
    window_for,
)

_SILENCE_DBFS = -50.0
"""An utterance whose loudest 30 ms have less power is silence; quiet speech has -25 (shared/audio/multi)."""
_GATE_FRAME = TRANSCRIBER_RATE * 30 // 1000

_CPU_BATCH_WINDOW_S = WINDOWS_S[0]
"""The longest window of which a CPU decodes several at once."""

_COMPUTE_TYPES = {
    "cpu": ("int8", "int8_float32", "float32"),
    "cuda": ("float16", "int8_float16", "int8_float32", "float32"),
}
"""For `auto`, best first: a GPU before Volta has no fast float16."""

_WHOLE: dict[str, object] = {
    "beam_size": 1,
    "best_of": 1,
    "condition_on_previous_text": False,
    "without_timestamps": True,
    "vad_filter": False,
    "compression_ratio_threshold": MAX_COMPRESSION_RATIO,
    "log_prob_threshold": MIN_LOG_PROBABILITY,
    "no_speech_threshold": MAX_NO_SPEECH_PROBABILITY,
}
_TEMPERATURES = (0.0, 0.4, 0.8)
"""Each fallback is a decoding more: three bound the time that a hopeless utterance takes."""

_REMEDIES = {
    "out of memory": "choose a smaller model, or write `compute_type: int8_float16`",
    "libcublas": "pip install nvidia-cublas-cu12",
    "libcudnn": "pip install nvidia-cudnn-cu12",
}

_Key = tuple[int | None, int]
"""What a batch has in common: the window in seconds (None: faster-whisper's own loop) and the length of the context."""


class FasterWhisperTranscriber:
    """Transcripts with punctuation. Any CTranslate2 Whisper: a size, a hub repository in the cache, or a folder.

    Raises BadRequest for a language that the model does not have; an English-only model has "en".
    """

    def __init__(self, options: SttOptions) -> None:
        folder = models.locate(options)
        if folder is None:
            raise self._failed(models.missing(options))
        if options.max_batch < 1:
            raise self._failed(f"max_batch is 1 or more, not {options.max_batch}")
        self._options = options
        self._model = self._load(folder, options)
        self._is_on_gpu = self._model.model.device == "cuda"
        self._languages = frozenset(self._model.supported_languages)
        self._language = options.language
        if options.language and _code(options.language) not in self._languages:
            raise self._failed(f"{options.model} does not know the language {options.language!r}")
        self._windows = WindowDecoder(self._model)
        self.batches: MicroBatcher[Utterance, Transcript | None] = MicroBatcher(
            self._decode,
            max_batch=self._max_batch,
            max_wait_s=options.batch_wait_ms / 1000,
            stage="stt",
            engine="faster_whisper",
        )
        self._warm_up()

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
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
        utterance = Utterance(audio, code, self._windows.context(prompt), is_interim)
        arrived_at = asyncio.get_running_loop().time()
        key: _Key = (self._window(len(audio)), len(utterance.context))
        transcript = await self.batches.submit(utterance, key=key, is_interim=is_interim)
        if transcript is None and not is_interim:
            # It looked wrong. The others of its batch have their answers and do not wait for its second decoding.
            whole: _Key = (None, len(utterance.context))
            transcript = await self.batches.submit(utterance, key=whole, arrived_at=arrived_at)
        return transcript or Transcript(text="", language=code)

    def _window(self, samples: int) -> int | None:
        """Seconds; None: by faster-whisper's own loop."""
        window = window_for(samples)
        if window and not self._options.short_windows:
            window = WINDOWS_S[-1]
        # Alone, a window of 30 s is what faster-whisper does anyway, with its fallback in the same call.
        return None if window == WINDOWS_S[-1] and not self._is_on_gpu else window

    def _max_batch(self, key: _Key) -> int:
        window = key[0]
        pays = window is not None and (self._is_on_gpu or window <= _CPU_BATCH_WINDOW_S)
        return self._options.max_batch if pays else 1

    def _decode(self, jobs: Sequence[Job[Utterance]]) -> list[Transcript | None]:
        """One batch, in the worker's thread; None for what is to be decoded by faster-whisper's own loop."""
        window = self._window_of(jobs[0])
        try:
            if window is None:
                return [self._decode_whole(job) for job in jobs]
            decoded = self._windows.decode(
                [job.item for job in jobs], window, is_wanted=lambda index: jobs[index].is_wanted
            )
        except (RuntimeError, ValueError) as error:
            raise self._failed(f"the decoding broke: {_with_remedy(error)}") from error
        return [_transcript(each) if each else None for each in decoded]

    @staticmethod
    def _window_of(job: Job[Utterance]) -> int | None:
        assert isinstance(job.key, tuple), "every call is submitted with a _Key"
        window: int | None = job.key[0]
        return window

    def _decode_whole(self, job: Job[Utterance]) -> Transcript:
        utterance = job.item
        segments, info = self._model.transcribe(
            utterance.audio,
            language=utterance.language,
            initial_prompt=utterance.context or None,
            temperature=_TEMPERATURES[:1] if utterance.is_interim else _TEMPERATURES,
            **_WHOLE,
        )
        return Transcript(text="".join(_spoken(segments, job)).strip(), language=info.language)

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
        compute_type = self._compute_type(device, ctranslate2.get_supported_compute_types(device))
        try:
            model = faster_whisper.WhisperModel(
                str(folder),
                device=device,
                compute_type=compute_type,
                cpu_threads=options.threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise self._failed(f"the model in {folder} cannot be loaded: {_with_remedy(error)}") from error
        bands = len(model.feature_extractor.mel_filters)
        if bands != model.model.n_mels:
            raise self._failed(
                f"the model in {folder} takes {model.model.n_mels} mel bands and its features have {bands}: "
                "preprocessor_config.json is missing or of another model"
            )
        return model

    def _compute_type(self, device: str, supported: set[str]) -> str:
        wanted = self._options.compute_type
        if wanted == "auto":
            wanted = next((name for name in _COMPUTE_TYPES[device] if name in supported), "default")
        elif wanted not in supported:
            has = ", ".join(sorted(supported))
            raise self._failed(f"{wanted} does not run on this {device}, which has {has}")
        return wanted

    def _warm_up(self) -> None:
        """Half a second of silence through the way that most utterances take."""
        utterance = Utterance(np.zeros(TRANSCRIBER_RATE // 2, np.float32), "en")
        window = self._window(len(utterance.audio)) or WINDOWS_S[-1]
        try:
            self._windows.decode([utterance], window, is_wanted=lambda _: True)
        except (RuntimeError, ValueError) as error:
            raise self._failed(f"the model does not run: {_with_remedy(error)}") from error

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="stt", engine="faster_whisper")


def _transcript(decoded: Decoded) -> Transcript | None:
    match decoded.verdict:
        case Verdict.SPEECH:
            return Transcript(decoded.text, decoded.language)
        case Verdict.NOTHING:
            return Transcript("", decoded.language)
        case Verdict.DOUBTFUL:
            return None


def _spoken(segments: Iterator[Any], job: Job[Utterance]) -> Iterator[str]:
    """The texts of the segments that somebody said. Each step of the iterator decodes a window of 30 s."""
    for segment in segments:
        text = segment.text.strip()
        if not is_loop(text) and not is_nothing(text, segment.avg_logprob, segment.no_speech_prob):
            yield segment.text
        if not job.is_wanted:
            return


def _with_remedy(error: Exception) -> str:
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in str(error)), "")
    return f"{error}: {remedy}" if remedy else str(error)


def _code(language: str) -> str:
    """ISO 639-1 from a BCP 47 tag: "en-US" is "en"."""
    return language.lower().split("-")[0]


def _is_silent(audio: Audio) -> bool:
    frames = audio[: len(audio) // _GATE_FRAME * _GATE_FRAME].reshape(-1, _GATE_FRAME)
    if not len(frames):
        return True
    loudest = float(np.square(frames).mean(axis=1).max())
    return bool(10 * np.log10(loudest + 1e-12) < _SILENCE_DBFS)
