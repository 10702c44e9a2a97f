"""Kokoro (torch): the mouth with a natural voice. 24 kHz, and the time of every word.

- Nothing is downloaded: weights, config and voices come from a folder or the hub cache, and the phonemes from
  `kokoro_g2p`, which does without the spaCy model that kokoro's own pipeline fetches.
- One forward speaks at most 510 phonemes and gives no audio before it ends, so a short text is early audio. One
  forward at a time a replica: its one thread is the lock, the executor's queue the queue. A cancelled call begins no
  new forward; one under way cannot be stopped, and the caller does not wait for it.
- A forward starts with about 250 ms of silence, which a listener would only wait through: it is cut off.
"""

import asyncio
import re
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments import models
from deployments.interfaces import BadRequest, EngineFailed, SpeechChunk, WordTime
from deployments.options import TtsOptions

SAMPLE_RATE = 24_000

_MOST_PHONEMES = 510
_ACCENTS = {"a": "American", "b": "British"}
"""First letter of a voice -> English of that accent."""
_SILENCE = 10 ** (-45 / 20)
"""What is this far below the peak of a chunk, before its first sound, is lead silence."""
_MARGIN_S = 0.02
"""Kept of the lead silence, so that a soft onset is not clipped."""
_REPOSITORY = "hexgrad/Kokoro-82M"


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one forward speaks."""

    phonemes: str
    tokens: Sequence[Any]
    """misaki's tokens: text, phonemes, whitespace; `start_ts` and `end_ts` after the forward."""


class KokoroSynthesizer:
    """One chunk a forward, with the times of its words. A word is a run of characters without a space.

    A voice is a `.pt` file in the folder `voices`; English ones only (a: American, b: British). Raises BadRequest for
    another, naming those that are here.
    """

    def __init__(self, options: TtsOptions) -> None:
        folder = models.locate(options)
        if folder is None:
            raise self._failed(models.missing(options))
        self._voice_files = {path.stem: path for path in sorted(folder.glob("voices/*.pt"))}
        self.voices = tuple(name for name in self._voice_files if name[0] in _ACCENTS)
        self._styles: dict[str, Any] = {}
        self._phonemizers: dict[str, Any] = {}
        with warnings.catch_warnings():
            # torch deprecates what kokoro is built of (weight_norm, jit); nothing that a user could change.
            warnings.simplefilter("ignore")
            self._load(folder, options)
            self._warm_up(options.voice)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kokoro")

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        self._check(voice, speed)
        loop = asyncio.get_running_loop()
        pieces = await loop.run_in_executor(self._executor, self._pieces, text, voice[0])
        words = _Words(text)
        for index, piece in enumerate(pieces):
            audio = await loop.run_in_executor(self._executor, self._forward, piece, voice, speed)
            lead = _lead(audio, piece.tokens) if index == 0 else 0
            audio = audio[lead:]
            pcm = (np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes()
            times = words.place(piece.tokens, shift_s=-lead / SAMPLE_RATE, samples=len(audio))
            yield SpeechChunk(pcm=pcm, sample_rate=SAMPLE_RATE, words=times)

    def _check(self, voice: str, speed: float) -> None:
        if voice not in self._voice_files:
            message = f"no voice {voice!r}; there are {', '.join(self.voices)}"
            raise BadRequest(message, stage="tts", engine="kokoro")
        if voice[0] not in _ACCENTS:
            raise BadRequest(f"{voice} does not speak English", stage="tts", engine="kokoro")
        if not speed > 0:
            raise BadRequest(f"speed is positive, not {speed}", stage="tts", engine="kokoro")

    def _load(self, folder: Path, options: TtsOptions) -> None:
        try:
            import torch
            from kokoro import KModel, KPipeline
        except ImportError as error:
            raise self._failed("kokoro is not installed: pip install kokoro") from error
        has_gpu = torch.cuda.is_available()
        if options.device == "cuda" and not has_gpu:
            raise self._failed("device is cuda and torch finds no GPU: write `device: auto`")
        torch.set_num_threads(options.threads)
        weights = next(iter(sorted(folder.glob("*.pth"))))
        try:
            # A repository name keeps kokoro from printing one; it is not used when both paths are given.
            model = KModel(repo_id=_REPOSITORY, config=str(folder / "config.json"), model=str(weights))
        except Exception as error:  # torch, json and transformers each have their own for a broken file
            raise self._failed(f"the model in {folder} cannot be loaded: {error}") from error
        device = "cuda" if has_gpu and options.device != "cpu" else "cpu"
        self._model = model.to(device).eval()
        self._torch = torch
        self._time = KPipeline.join_timestamps

    def _warm_up(self, voice: str) -> None:
        """Loads the phonemes' dictionary and speaks a word, in the voice that will speak first."""
        try:
            self._check(voice, 1.0)
            for piece in self._pieces("Hello.", voice[0]):
                self._forward(piece, voice, 1.0)
        except BadRequest as error:
            raise self._failed(error.message) from error

    def _pieces(self, text: str, accent: str) -> list[_Piece]:
        if not any(character.isalnum() for character in text):
            return []
        if accent not in self._phonemizers:
            # 2 s of imports, and a dictionary that needs half a second.
            from .kokoro_g2p import EnglishG2P

            self._phonemizers[accent] = EnglishG2P(british=accent == "b")
        try:
            _, tokens = self._phonemizers[accent](" ".join(text.split()))
        except Exception as error:  # misaki documents none, and num2words has several for odd numbers
            raise self._failed(f"no phonemes for the text: {type(error).__name__}") from error
        return list(_split(tokens))

    def _forward(self, piece: _Piece, voice: str, speed: float) -> npt.NDArray[np.float32]:
        """The audio of `piece`, whose tokens get their times."""
        if voice not in self._styles:
            self._styles[voice] = self._torch.load(self._voice_files[voice], weights_only=True)
        style = self._styles[voice][len(piece.phonemes) - 1]
        try:
            output = self._model(piece.phonemes, style, speed, return_output=True)
        except (RuntimeError, IndexError) as error:
            raise self._failed(f"the forward broke: {error}") from error
        self._time(piece.tokens, output.pred_dur)
        audio: npt.NDArray[np.float32] = np.nan_to_num(output.audio.numpy().reshape(-1))
        return audio

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="tts", engine="kokoro")


class _Words:
    """Where the words of a text are in time: gathers misaki's tokens ("do" "n't" ",") into its words ("don't,")."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._runs = [match.span() for match in re.finditer(r"\S+", text)]
        self._cursor = 0
        self._samples = 0

    def place(self, tokens: Sequence[Any], *, shift_s: float, samples: int) -> tuple[WordTime, ...]:
        """The words of a chunk of `samples` samples, whose tokens' times are off by `shift_s`. Chunks come in order."""
        offset_s = self._samples / SAMPLE_RATE
        self._samples += samples
        end_s = self._samples / SAMPLE_RATE
        words: dict[tuple[int, int], WordTime] = {}
        for token in tokens:
            start = self._text.find(token.text, self._cursor)
            if start < 0:
                continue
            self._cursor = start + len(token.text)
            if token.start_ts is None or token.end_ts is None:
                continue
            begins, ends = (
                min(max(time + shift_s, 0.0) + offset_s, end_s) for time in (token.start_ts, token.end_ts)
            )
            for run in self._runs:
                if run[0] < self._cursor and start < run[1]:
                    first = words.setdefault(run, WordTime(*run, begins, ends))
                    words[run] = replace(first, end_s=ends)
        return tuple(words.values())


def _split(tokens: Sequence[Any]) -> Iterator[_Piece]:
    """Pieces of at most 510 phonemes, cut after the last sentence, clause or word that fits."""
    tokens = [token for token in tokens if token.phonemes or token.whitespace]
    while tokens:
        count = fitting = 0
        while fitting < len(tokens) and count + len(tokens[fitting].phonemes or "") <= _MOST_PHONEMES:
            count += len(_spoken(tokens[fitting]))
            fitting += 1
        cut = fitting if fitting == len(tokens) else _cut(tokens[:fitting])
        piece = tokens[: max(cut, 1)]
        tokens = tokens[len(piece) :]
        phonemes = "".join(_spoken(token) for token in piece).strip()[:_MOST_PHONEMES]
        if phonemes:
            yield _Piece(phonemes, piece)


def _cut(tokens: Sequence[Any]) -> int:
    for marks in ("!.?…", ":;", ",—"):
        for index in range(len(tokens) - 1, -1, -1):
            if tokens[index].phonemes and tokens[index].phonemes in marks:
                return index + 1
    return len(tokens)


def _spoken(token: Any) -> str:
    return (token.phonemes or "") + (" " if token.whitespace else "")


def _lead(audio: npt.NDArray[np.float32], tokens: Sequence[Any]) -> int:
    """Samples of silence before the first sound, less a margin; never beyond the onset of the first word."""
    loud = np.abs(audio) > _SILENCE * np.abs(audio).max(initial=0.0)
    first = int(loud.argmax()) if loud.any() else 0
    onset_s = next((token.start_ts for token in tokens if token.start_ts is not None), 0.0)
    return max(min(first - round(_MARGIN_S * SAMPLE_RATE), round(onset_s * SAMPLE_RATE)), 0)
