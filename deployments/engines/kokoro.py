"""Kokoro: the mouth with a natural voice. 24 kHz, and the time of every word.

- Nothing is downloaded: weights, config and voices come from a folder or the hub cache, and the phonemes from
  `kokoro_text`, which does without the spaCy model that kokoro's own pipeline fetches.
- One forward speaks at most 510 phonemes and gives no audio before it ends, so a short text is early audio, and a long
  one is cut into pieces of which the first is heard while the next is computed. One forward at a time a replica:
  `MicroBatcher` is the queue before it, and calls take turns piece by piece. On a GPU pieces of about one length, of
  different calls, go together (`kokoro_batch`).
- A cancelled call begins no new forward, and the one under way is stopped (`kokoro_backends`): the caller does not wait
  for it, and the thread is free for the next call soon after.
- A forward starts with about 250 ms of silence, which a listener would only wait through: it is cut off. So is the
  silence behind a piece that ends amid a clause.
"""

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deployments import models
from deployments.interfaces import BadRequest, EngineFailed, SpeechChunk
from deployments.microbatch import Job, MicroBatcher
from deployments.options import TtsOptions

from . import kokoro_backends, kokoro_text
from .kokoro_backends import Audio, Durations, Stop, Stopped, StopTogether, Text
from .kokoro_text import Phonemizer, Piece, WordTimes
from .kokoro_voices import Voices

SAMPLE_RATE = 24_000

_SILENCE = 10 ** (-45 / 20)
"""What is this far below the peak of a chunk, before its first sound, is lead silence."""
_PAUSE = 10 ** (-35 / 20)
"""What is this far below the peak, at the end of a word, is the pause that follows it."""
_SLOWEST = 0.25
"""A slower speed is brought to this: time and memory of a forward grow with its sound."""
_MARGIN_S = 0.02
"""Kept of the lead silence, so that a soft onset is not clipped."""
_GAP_S = 0.05
"""Kept of the silence behind a piece that ends amid a clause."""
_WARM_UP = (
    "Hello.",
    "It takes about as long to say this clause,",
    "One sentence of an answer, as it comes again and again.",
)
"""Spoken at start: lengths of a first clause and of a sentence."""

_GATHER_S = 0.002
"""How long an idle GPU waits for company for a piece; a busy one takes what has come meanwhile."""
_LENGTHS = (40, 80, 160, kokoro_text.MOST_PHONEMES)
"""Phonemes up to which pieces count as of one length: padding does not double the work, and the first clause of an
answer does not wait for a long sentence that goes along."""

Times = list[tuple[float, float] | None]
Spoken = tuple[Audio, Times]


@dataclass(frozen=True, slots=True)
class _Order:
    piece: Piece
    voice: str
    speed: float
    stop: Stop


class KokoroSynthesizer:
    """One chunk a forward, with the times of its words. A word is a run of characters without a space.

    A voice is a `.pt` file in the folder `voices`, or a mixture ("af_heart:0.7,am_michael:0.3"). Its first letter is its
    language: a American, b British, e Spanish, f French, h Hindi, i Italian, j Japanese, p Portuguese, z Chinese. Raises
    BadRequest for a voice that is not here, and for a language whose phonemiser is not installed, saying what is.
    """

    def __init__(self, options: TtsOptions) -> None:
        folder = models.locate(options)
        if folder is None:
            raise self._failed(models.missing(options))
        self._voices = Voices(folder)
        self.voices = tuple(name for name in self._voices.names if kokoro_text.is_spoken(name[0]))
        self._phonemizers: dict[str, Phonemizer] = {}
        with warnings.catch_warnings():
            # torch deprecates what kokoro is built of (weight_norm, jit); nothing that a user could change.
            warnings.simplefilter("ignore")
            self._load(folder, options)
            self._warm_up(options.voice)
        self._phonemizing = ThreadPoolExecutor(1, thread_name_prefix="kokoro-text")
        self.batches: MicroBatcher[_Order, Spoken] = MicroBatcher(
            self._speak,
            max_batch=lambda _: self._backend.max_together,
            max_wait_s=_GATHER_S,
            stage="tts",
            engine="kokoro",
        )

    @property
    def backend(self) -> str:
        """What computes: "onnx" or "torch"."""
        return self._backend.name

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        letter = self._check(voice, speed)
        speed = max(speed, _SLOWEST)
        loop = asyncio.get_running_loop()
        stop = Stop()
        words = WordTimes(text, SAMPLE_RATE)
        try:
            pieces = await loop.run_in_executor(self._phonemizing, self._pieces, text, letter)
            for piece in pieces:
                audio, times = await self.batches.submit(
                    _Order(piece, voice, speed, stop), key=_length(piece)
                )
                lead, end = _heard(audio, times, is_cut=piece.is_cut)
                audio = audio[lead:end]
                pcm = (np.clip(audio, -1, 1) * 32767).astype(np.int16).tobytes()
                placed = words.place(piece.tokens, times, shift_s=-lead / SAMPLE_RATE, samples=len(audio))
                yield SpeechChunk(pcm=pcm, sample_rate=SAMPLE_RATE, words=placed)
        finally:
            stop.set()

    def _check(self, voice: str, speed: float) -> str:
        """The letter of the language that `voice` speaks."""
        letter = self._voices.parse(voice)[0][0][0]
        if not kokoro_text.is_spoken(letter):
            kokoro_text.phonemizer(letter)  # raises, with the remedy
        if not speed > 0:
            raise BadRequest(f"speed is positive, not {speed}", stage="tts", engine="kokoro")
        return letter

    def _load(self, folder: Path, options: TtsOptions) -> None:
        weights = next(iter(sorted(folder.glob("*.pth"))))
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._vocabulary: dict[str, int] = dict(config["vocab"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._failed(f"the config.json in {folder} cannot be loaded: {error}") from error
        self._backend = kokoro_backends.load(folder, weights, options)

    def _warm_up(self, voice: str) -> None:
        """Loads the phonemes' dictionary and speaks what is typical, in the voice that will speak first."""
        try:
            letter = self._check(voice, 1.0)
            pieces = [piece for text in _WARM_UP for piece in self._pieces(text, letter)]
            for piece in pieces:
                self._forward(piece, voice, 1.0, Stop())
            if self._backend.max_together > 1:
                self._forward_together([_Order(piece, voice, 1.0, Stop()) for piece in pieces])
        except BadRequest as error:
            raise self._failed(error.message) from error

    def _pieces(self, text: str, letter: str) -> list[Piece]:
        if not any(character.isalnum() for character in text):
            return []
        if letter not in self._phonemizers:
            self._phonemizers[letter] = kokoro_text.phonemizer(letter)
        return list(kokoro_text.split(self._phonemizers[letter](text), self._vocabulary))

    def _speak(self, jobs: Sequence[Job[_Order]]) -> list[Spoken]:
        """One batch, in the worker's thread; nothing for those that nobody waits for."""
        orders = [job.item for job in jobs if job.is_wanted]
        try:
            if len(orders) == 1:
                [order] = orders
                spoken = [self._forward(order.piece, order.voice, order.speed, order.stop)]
            else:
                spoken = self._forward_together(orders)
        except Stopped:
            spoken = []
        found = dict(zip(map(id, orders), spoken, strict=False))
        nothing: Spoken = (np.zeros(0, np.float32), [])
        return [found.get(id(job.item), nothing) for job in jobs]

    def _forward(self, piece: Piece, voice: str, speed: float, stop: Stop) -> Spoken:
        """The audio of `piece`, and the times of its tokens in it. Raises Stopped soon after `stop` is set."""
        text = self._text(piece, voice, speed)
        return _timed(piece, *self._backend.forward(text.ids, text.style, text.speed, stop))

    def _forward_together(self, orders: Sequence[_Order]) -> list[Spoken]:
        """The same for each of several. Raises Stopped soon after all are."""
        texts = [self._text(order.piece, order.voice, order.speed) for order in orders]
        spoken = self._backend.forward_together(texts, StopTogether([order.stop for order in orders]))
        return [_timed(order.piece, *each) for order, each in zip(orders, spoken, strict=True)]

    def _text(self, piece: Piece, voice: str, speed: float) -> Text:
        ids = np.array([[0, *(self._vocabulary[symbol] for symbol in piece.phonemes), 0]], np.int64)
        return Text(ids, self._voices.style(voice, len(piece.phonemes)), speed)

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="tts", engine="kokoro")


def _length(piece: Piece) -> int:
    return next(most for most in _LENGTHS if len(piece.phonemes) <= most)


def _timed(piece: Piece, audio: Audio, durations: Durations) -> Spoken:
    audio = np.nan_to_num(audio)
    return audio, _sounding(audio, kokoro_text.token_times(piece, durations))


def _sounding(audio: Audio, times: Times) -> Times:
    """`times` with each end moved back to the last sound before it: the model counts the start of a pause to the word.

    On the real weights (200 words, 24 of them before a pause) the ends before a pause were 0.2 s late without this; a
    word that had been heard would not have counted as heard.
    """
    loud = np.flatnonzero(np.abs(audio) > _PAUSE * np.abs(audio).max(initial=0.0))
    sounding: Times = []
    for time in times:
        if time:
            start, end = (round(edge * SAMPLE_RATE) for edge in time)
            last = int(np.searchsorted(loud, end)) - 1
            if last >= 0 and loud[last] > start:
                time = (time[0], min(time[1], (int(loud[last]) + 1) / SAMPLE_RATE))
        sounding.append(time)
    return sounding


def _heard(audio: Audio, times: Times, *, is_cut: bool) -> tuple[int, int]:
    """From which to which sample a chunk is sent: all but silence, and never less than from the first to the last word.

    The silence behind a piece is the pause at its mark; only a piece that is cut amid a clause has none.
    """
    loud = np.flatnonzero(np.abs(audio) > _SILENCE * np.abs(audio).max(initial=0.0))
    if not len(loud):
        return 0, len(audio)
    told = [time for time in times if time]
    onset_s, last_s = (told[0][0], told[-1][1]) if told else (0.0, 0.0)
    lead = max(min(int(loud[0]) - round(_MARGIN_S * SAMPLE_RATE), round(onset_s * SAMPLE_RATE)), 0)
    if not is_cut:
        return lead, len(audio)
    end = max(int(loud[-1]) + round(_GAP_S * SAMPLE_RATE), round(last_s * SAMPLE_RATE))
    return lead, min(end, len(audio))
