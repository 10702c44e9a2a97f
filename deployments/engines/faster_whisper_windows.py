"""Whisper in short windows: one forward of CTranslate2 for a batch of utterances of one window length.

faster-whisper pads every utterance to 30 s, and the encoder's time grows faster than its window: base, int8, one
thread: 30 s 527 ms, 10 s 65 ms. CTranslate2 takes any window, and what comes out is the same words where the window
leaves a margin of silence after the last one (WINDOWS_S, MARGIN_S: transcribe.cpp #149 saw no loss with a 10 s floor
and 2 s of margin; below it repeats and losses: CTranslate2 #2100, whisper.cpp #1117).

The rules that must survive edits:

- The margin is filled as faster-whisper fills its 30 s: features of 0.0. Digits model, shared/audio/digits: word error
  rate 0.11; with the features of digital silence, as openai/whisper pads, 0.51 - that model was trained on the former,
  and large ones are used with both every day.
- An utterance is decoded greedily here, once. What looks wrong (`Verdict.DOUBTFUL`) is for the caller to decode again
  in 30 s with faster-whisper's fallback over temperatures.
- The result of an utterance does not depend on the others of its batch.
- A CPU encodes one by one and decodes together. tiny, int8, one thread, 10 s, ms an utterance alone and in a batch of
  8: encoder 31 and 60, as its working set leaves the cache; 20 tokens 60 and 21. A GPU does both together.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import TRANSCRIBER_RATE

Audio = npt.NDArray[np.float32]

WINDOWS_S = (10, 15, 20, 30)
MARGIN_S = 2
"""Between the last sample of an utterance and the end of its window; 30 s is taken without."""
FRAMES_PER_S = 100

# The thresholds are those of openai/whisper's `transcribe`.
MAX_COMPRESSION_RATIO = 2.4
MIN_LOG_PROBABILITY = -1.0
MAX_NO_SPEECH_PROBABILITY = 0.6

_MAX_TOKENS = 224
"""Whisper's own limit: half of its text context."""
_TOKENS_BASE, _TOKENS_PER_S = 32, 16
"""Speech has 4 to 8 tokens a second. A repetition loop is cut there rather than at 224, and decoded again."""

_INVENTED = frozenset(
    {
        "you",
        "bye",
        "bye bye",
        "so",
        "oh",
        "thank you",
        "thank you very much",
        "thank you so much",
        "thank you for watching",
        "thanks for watching",
        "please subscribe",
        "subtitles by the amara org community",
        "untertitel der amara org community",
        "untertitelung des zdf 2020",
        "sous titres réalisés par la communauté d amara org",
        "sous titrage société radio canada",
        "subtítulos realizados por la comunidad de amara org",
        "sottotitoli creati dalla comunità amara org",
        "продолжение следует",
        "спасибо за просмотр",
        "ご視聴ありがとうございました",
        "字幕由 amara org 社区提供",
        "시청해주셔서 감사합니다",
    }
)
"""What Whisper says to noise, with a high probability: arXiv 2501.11378 (its bag of hallucinations) and the threads of
openai/whisper. Dropped only where Whisper doubts, too, that anybody spoke."""


class Verdict(Enum):
    SPEECH = auto()
    NOTHING = auto()
    """Whisper doubts that anybody spoke: the transcript is empty."""
    DOUBTFUL = auto()
    """A loop, a guess or a loss: to be decoded again in a window of 30 s."""


@dataclass(frozen=True, slots=True)
class Utterance:
    audio: Audio
    """Float32 at 16 kHz."""
    language: str | None
    """None: Whisper finds out, from the same encoding."""
    context: tuple[int, ...] = ()
    """Tokens of text that may come before it."""
    is_interim: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    text: str
    language: str
    log_probability: float
    """Mean over the tokens, the end of the text among them; 0 without tokens."""
    no_speech_probability: float
    is_cut: bool
    """The limit of tokens came before the end of the text."""

    @property
    def verdict(self) -> Verdict:
        if is_nothing(self.text, self.log_probability, self.no_speech_probability):
            return Verdict.NOTHING
        is_wrong = self.is_cut or not self.text or is_loop(self.text)
        return Verdict.DOUBTFUL if is_wrong or self.log_probability < MIN_LOG_PROBABILITY else Verdict.SPEECH


def is_nothing(text: str, log_probability: float, no_speech_probability: float) -> bool:
    """Whisper gives the audio little chance to be speech, and the text is empty, a guess, or what it says to noise."""
    if no_speech_probability <= MAX_NO_SPEECH_PROBABILITY:
        return False
    return not text or log_probability < MIN_LOG_PROBABILITY or _words(text) in _INVENTED


def is_loop(text: str) -> bool:
    data = text.encode()
    return len(data) / len(zlib.compress(data)) > MAX_COMPRESSION_RATIO


def _words(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def window_for(samples: int) -> int | None:
    """Seconds of the shortest window that holds so much with its margin; None where it takes more than 30 s."""
    for window in WINDOWS_S[:-1]:
        if samples <= (window - MARGIN_S) * TRANSCRIBER_RATE:
            return window
    return WINDOWS_S[-1] if samples <= WINDOWS_S[-1] * TRANSCRIBER_RATE else None


class WindowDecoder:
    """Decodes batches with the model of a `faster_whisper.WhisperModel`. For one thread at a time."""

    def __init__(self, whisper: Any) -> None:
        from ctranslate2 import StorageView
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        self._whisper = whisper
        self._is_on_gpu = whisper.model.device == "cuda"
        self._storage = StorageView.from_array
        self._make_tokenizer: Callable[[str], Any] = lambda language: Tokenizer(
            whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language=language
        )
        self._tokenizers: dict[str, Any] = {}
        # -1: all that does not stand for speech ("♪", "(", ...), as faster-whisper suppresses it.
        self._suppressed = list(get_suppressed_tokens(self._tokenizer("en"), [-1]))

    def context(self, text: str | None) -> tuple[int, ...]:
        """`text` as the tokens of an utterance's context. Batches are of one length of context (see `decode`)."""
        tokens = self._tokenizer("en").encode(" " + text.strip()) if text and text.strip() else []
        return tuple(tokens[-(_MAX_TOKENS - 1) :])

    def decode(
        self, utterances: Sequence[Utterance], window_s: int, *, is_wanted: Callable[[int], bool]
    ) -> list[Decoded | None]:
        """Each utterance decoded in a window of so many seconds; None for one that was no longer wanted.

        `is_wanted` is asked with an index, between forwards. All must have contexts of one length: CTranslate2 needs
        <|startoftranscript|> at one place. Raises RuntimeError or ValueError as CTranslate2 does.
        """
        encode = self._encode_together if self._is_on_gpu else self._encode_one_by_one
        indices, encoded = encode(utterances, window_s, is_wanted)
        decoded: list[Decoded | None] = [None] * len(utterances)
        if any(is_wanted(index) for index in indices):
            chosen = [utterances[index] for index in indices]
            for index, each in zip(indices, self._generate(chosen, encoded), strict=True):
                decoded[index] = each
        return decoded

    def _encode_together(
        self, utterances: Sequence[Utterance], window_s: int, is_wanted: Callable[[int], bool]
    ) -> tuple[list[int], Any]:
        """Which were encoded, and their encodings."""
        features = np.stack([self.features(utterance.audio, window_s) for utterance in utterances])
        return list(range(len(utterances))), self._whisper.model.encode(self._storage(features))

    def _encode_one_by_one(
        self, utterances: Sequence[Utterance], window_s: int, is_wanted: Callable[[int], bool]
    ) -> tuple[list[int], Any]:
        """Which were encoded, and their encodings."""
        found = {}
        for index, utterance in enumerate(utterances):
            if is_wanted(index):
                features = self.features(utterance.audio, window_s)[None]
                found[index] = self._whisper.model.encode(self._storage(features))
        encodings = list(found.values())
        if len(encodings) > 1:
            encodings = [self._storage(np.concatenate([np.asarray(each) for each in encodings]))]
        return list(found), encodings[0] if encodings else None

    def _generate(self, utterances: Sequence[Utterance], encoded: Any) -> list[Decoded]:
        languages = self._spoken_languages(utterances, encoded)
        prompts = [
            self._whisper.get_prompt(
                self._tokenizer(language), list(utterance.context), without_timestamps=True
            )
            for utterance, language in zip(utterances, languages, strict=True)
        ]
        limits = [_token_limit(len(utterance.audio)) for utterance in utterances]
        longest = max(limits)
        results = self._whisper.model.generate(
            encoded,
            prompts,
            beam_size=1,
            # CTranslate2 gives half of it to the text, and the text what the prompt leaves.
            max_length=min(2 * _MAX_TOKENS, max(2 * longest, longest + len(prompts[0]))),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=self._suppressed,
        )
        return [self._decoded(*each) for each in zip(results, languages, limits, strict=True)]

    def features(self, audio: Audio, window_s: int) -> Audio:
        """Log-mel features (n_mels, frames) of `audio`, which fits, filled up to the window."""
        frames = window_s * FRAMES_PER_S
        # The extractor gives one frame more than there is audio for.
        heard = self._whisper.feature_extractor(audio)[:, :-1][:, :frames]
        filled: Audio = np.pad(heard, ((0, 0), (0, frames - heard.shape[1])))
        return np.ascontiguousarray(filled, np.float32)

    def _spoken_languages(self, utterances: Sequence[Utterance], encoded: Any) -> list[str]:
        if not self._whisper.model.is_multilingual:
            return ["en"] * len(utterances)
        if all(utterance.language for utterance in utterances):
            return [utterance.language or "" for utterance in utterances]
        found = self._whisper.model.detect_language(encoded)
        likeliest = [ranking[0][0].strip("<|>") for ranking in found]
        return [u.language or language for u, language in zip(utterances, likeliest, strict=True)]

    def _tokenizer(self, language: str) -> Any:
        if language not in self._tokenizers:
            self._tokenizers[language] = self._make_tokenizer(language)
        return self._tokenizers[language]

    def _decoded(self, result: Any, language: str, limit: int) -> Decoded:
        tokens = result.sequences_ids[0]
        # CTranslate2 divides the score by the number of tokens, without the end of the text (NaN when there are none).
        score = result.scores[0] if tokens else 0.0
        return Decoded(
            text=self._tokenizer(language).decode(tokens[:limit]).strip(),
            language=language,
            log_probability=-math.inf if math.isnan(score) else score * len(tokens) / (len(tokens) + 1),
            no_speech_probability=result.no_speech_prob,
            is_cut=len(tokens) >= limit,
        )


def _token_limit(samples: int) -> int:
    return min(_MAX_TOKENS, _TOKENS_BASE + math.ceil(samples / TRANSCRIBER_RATE * _TOKENS_PER_S))
