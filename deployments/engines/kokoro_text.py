"""From a text to what Kokoro's forward takes, and from its durations back to the times of the words.

- A `Token` is what has phonemes of its own and a place in the text. English has misaki's tokens ("do" "n't" ","); a
  language that espeak phonemises has its words, and Japanese and Chinese their clauses.
- A `Piece` is what one forward speaks. `split` cuts a text after a sentence, else a clause, else a word, so that a
  piece is at most `SOFT_LIMIT` phonemes.
- The times of words are those that kokoro's `KPipeline.join_timestamps` computes, counted from the phonemes that the
  model was in fact given: it knows 114 symbols and skips all others, and white space around a piece is stripped.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import BadRequest, EngineFailed, WordTime
from deployments.mapped_text import MappedText, Words

MOST_PHONEMES = 510
"""What the model takes: 512 with the marks of the beginning and the end."""
SOFT_LIMIT = 150
"""Phonemes in one piece, about 10 s of speech: what another caller waits for a forward under way (3 to 4 s on one
core; `python -m loadtest.bench_tts`). A longer piece would not sound better: it is cut between sentences."""

_FRAME_S = 600 / 24_000
"""A duration is counted in frames of 600 samples."""
_EARLY_FRAMES = 3
"""kokoro takes a word to begin so much before its first phoneme does (its `join_timestamps`)."""

_ESPEAK = {"e": "es", "f": "fr-fr", "h": "hi", "i": "it", "p": "pt-br"}
"""First letter of a voice -> the language that espeak phonemises for it."""
_PACKAGES = {
    **dict.fromkeys("ab", (("misaki", "spacy", "num2words"), "misaki[en]")),
    **dict.fromkeys(_ESPEAK, (("misaki", "phonemizer", "espeakng_loader"), "misaki[en]")),
    "j": (("misaki", "pyopenjtalk", "fugashi", "jaconv", "mojimoji", "unidic"), "misaki[ja]"),
    "z": (("misaki", "jieba", "pypinyin", "cn2an"), "misaki[zh]"),
}
"""First letter of a voice -> the packages its phonemiser imports, and what installs them."""

_MARKED = re.compile(r"\[([^\]]+)\]\(([^\)]*)\)")
"""misaki's own pattern of `[word](/ipa/)`."""
_SPACE = re.compile(r"\s+")
_CLAUSE = re.compile(r"[^、。，！？；：,.!?;:]*[、。，！？；：,.!?;:]*")
_CLAUSE_END = re.compile(r"[.,;:!?…]$")
_SENTENCE_MARKS, _CLAUSE_MARKS, _COMMAS = "!.?…", ":;", ",—"
_MARKS = '!.?…:;,—"“”() '
"""Symbols of the model that are no sound."""


@dataclass(frozen=True, slots=True)
class Token:
    phonemes: str
    start: int
    end: int
    """Place in the text as given."""
    has_space: bool = True
    """White space follows."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one forward speaks."""

    phonemes: str
    tokens: tuple[Token, ...]
    places: tuple[tuple[int, int], ...]
    """Of each token, where in `phonemes` its own begin and end, without the mark behind a word: that is a pause."""
    is_cut: bool = False
    """Ends amid a clause, where nobody would pause."""


Phonemizer = Callable[[str], list[Token]]


# --- phonemes -------------------------------------------------------------------------------------------------------


def is_spoken(letter: str) -> bool:
    """Whether voices that begin with this letter have their phonemiser installed."""
    return letter in _PACKAGES and all(find_spec(package) for package in _PACKAGES[letter][0])


def phonemizer(letter: str) -> Phonemizer:
    """The phonemiser of voices that begin with `letter`: text -> tokens in order. Takes a second or two to load.

    Raises BadRequest, saying what to install, where it is not installed.
    """
    if letter not in _PACKAGES:
        raise _bad(f"Kokoro has no language {letter!r}")
    if not is_spoken(letter):
        raise _bad(f"no phonemes for the voices {letter}*: pip install '{_PACKAGES[letter][1]}'")
    if letter in "ab":
        return _English(british=letter == "b")
    if letter in _ESPEAK:
        return _Espeak(_ESPEAK[letter])
    return _Clauses(letter)


class _English:
    """misaki's English, which reads numbers and `[word](/ipa/)` itself."""

    def __init__(self, *, british: bool) -> None:
        from .kokoro_g2p import EnglishG2P

        self._g2p = EnglishG2P(british=british)

    def __call__(self, text: str) -> list[Token]:
        marked = MappedText(text).replace(_SPACE, " ").stripped()
        plain = marked.keep(_MARKED)
        found: list[Token] = []
        cursor = 0
        for token in _guarded(self._g2p, marked.text)[1]:
            start = plain.text.find(token.text, cursor)
            if start < 0 or not token.text:
                continue
            cursor = start + len(token.text)
            found.append(Token(token.phonemes or "", *plain.span(start, cursor), bool(token.whitespace)))
        return found


class _Espeak:
    """misaki's espeak phonemes, which come without tokens.

    A clause is phonemised whole, because words change beside each other ("les amis"). Where espeak makes as many words
    of it as it has, they are the tokens; else ("qu'est-ce que" is one) each word is phonemised by itself.
    """

    def __init__(self, language: str) -> None:
        from misaki.espeak import EspeakG2P

        self._g2p = EspeakG2P(language)

    def __call__(self, text: str) -> list[Token]:
        tokens: list[Token] = []
        done = 0
        for match in _MARKED.finditer(text):
            tokens += self._clauses(text, done, match.start())
            ipa = match[2][1:-1] if match[2].startswith("/") else self._phonemes(match[1])
            tokens.append(Token(ipa, *match.span(), has_space=text[match.end() : match.end() + 1].isspace()))
            done = match.end()
        return tokens + self._clauses(text, done, len(text))

    def _clauses(self, text: str, start: int, end: int) -> list[Token]:
        tokens: list[Token] = []
        clause: list[tuple[int, int]] = []
        for match in re.finditer(r"\S+", text[start:end]):
            clause.append((start + match.start(), start + match.end()))
            if _CLAUSE_END.search(match[0]):
                tokens += self._clause(text, clause)
                clause = []
        return tokens + self._clause(text, clause)

    def _clause(self, text: str, words: Sequence[tuple[int, int]]) -> list[Token]:
        if not words:
            return []
        spoken = self._phonemes(text[words[0][0] : words[-1][1]]).split()
        if len(spoken) != len(words):
            spoken = [self._phonemes(text[start:end]) for start, end in words]
        return [
            Token(phonemes, start, end, has_space=text[end : end + 1].isspace())
            for phonemes, (start, end) in zip(spoken, words, strict=True)
        ]

    def _phonemes(self, text: str) -> str:
        phonemes: str = _guarded(self._g2p, text)[0]
        return phonemes.strip()


class _Clauses:
    """Japanese and Chinese, without spaces between words: a token a clause."""

    def __init__(self, letter: str) -> None:
        if letter == "j":
            from misaki.ja import JAG2P

            self._g2p = JAG2P()
        else:
            from misaki.zh import ZHG2P

            self._g2p = ZHG2P()

    def __call__(self, text: str) -> list[Token]:
        plain = MappedText(text).replace(_SPACE, " ").stripped().keep(_MARKED)
        return [
            Token(_guarded(self._g2p, match[0])[0].strip(), *plain.span(*match.span()))
            for match in _CLAUSE.finditer(plain.text)
            if match[0].strip()
        ]


def _guarded(g2p: Callable[[str], Any], text: str) -> Any:
    try:
        return g2p(text)
    except Exception as error:  # misaki documents none, and num2words has several for odd numbers
        message = f"no phonemes for the text: {type(error).__name__}"
        raise EngineFailed(message, stage="tts", engine="kokoro") from error


# --- pieces ---------------------------------------------------------------------------------------------------------


def split(tokens: Sequence[Token], vocabulary: Mapping[str, int], limit: int = SOFT_LIMIT) -> Iterator[Piece]:
    """Pieces of at most `limit` phonemes, cut after the last sentence, clause or word that fits.

    What the model does not know is left out, so that its durations and the phonemes are one to one.
    """
    known = [_known(token, vocabulary, limit) for token in tokens]
    waiting = [token for token in known if token.phonemes or token.has_space]
    while waiting:
        count = fitting = 0
        while fitting < len(waiting) and count + len(waiting[fitting].phonemes) <= limit:
            count += len(waiting[fitting].phonemes) + waiting[fitting].has_space
            fitting += 1
        while fitting < len(waiting) and not any(token.has_space for token in waiting[:fitting]):
            if count + len(waiting[fitting].phonemes) > MOST_PHONEMES:
                break
            count += len(waiting[fitting].phonemes)
            fitting += 1
        cut, is_cut = (fitting, False) if fitting == len(waiting) else _cut(waiting[:fitting])
        piece = _piece(waiting[:cut], is_cut=is_cut)
        waiting = waiting[cut:]
        if piece.phonemes:
            yield piece


def _known(token: Token, vocabulary: Mapping[str, int], limit: int) -> Token:
    """Without symbols that the model lacks; one endless word is cut short."""
    phonemes = "".join(symbol for symbol in token.phonemes if symbol in vocabulary)
    return token if phonemes == token.phonemes[:limit] else replace(token, phonemes=phonemes[:limit])


def _cut(tokens: Sequence[Token]) -> tuple[int, bool]:
    """How many tokens the piece takes, and whether that is amid a clause."""
    for marks in (_SENTENCE_MARKS, _CLAUSE_MARKS, _COMMAS):
        for index in range(len(tokens) - 1, -1, -1):
            # The mark ends a word of the languages of espeak, and is a token of its own in English.
            if (
                tokens[index].phonemes[-1:]
                and tokens[index].phonemes[-1] in marks
                and tokens[index].has_space
            ):
                return index + 1, False
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index].has_space:
            return index + 1, True
    return len(tokens), True


def _piece(tokens: Sequence[Token], *, is_cut: bool) -> Piece:
    spoken = "".join(token.phonemes + " " * token.has_space for token in tokens)
    stripped = len(spoken) - len(spoken.lstrip())
    phonemes = spoken.strip()
    places = []
    cursor = -stripped
    for token in tokens:
        sounding = len(token.phonemes.rstrip(_MARKS))
        first, last = max(cursor, 0), max(cursor + sounding, 0)
        places.append((min(first, len(phonemes)), min(last, len(phonemes))))
        cursor += len(token.phonemes) + token.has_space
    return Piece(phonemes, tuple(tokens), tuple(places), is_cut)


# --- times ----------------------------------------------------------------------------------------------------------


def token_times(piece: Piece, durations: npt.NDArray[np.int64]) -> list[tuple[float, float] | None]:
    """From when to when, in seconds of the forward's audio, each token sounds; None for one without phonemes.

    `durations`: frames of the beginning, of each phoneme, of the end. Half of a space belongs to the word before it
    and half to the word after it.
    """
    ends = np.cumsum(durations).astype(np.float64)
    early = min(_EARLY_FRAMES, int(durations[0]))
    times: list[tuple[float, float] | None] = []
    for first, last in piece.places:
        if first == last:
            times.append(None)
            continue
        start, end = (
            ends[first],
            ends[last],
        )  # ends[i] is where phoneme i begins: the first duration is the beginning's
        if first > 0 and piece.phonemes[first - 1] == " ":
            start -= durations[first] / 2
        if last < len(piece.phonemes) and piece.phonemes[last] == " ":
            end += durations[last + 1] / 2
        times.append((float(start - early) * _FRAME_S, float(end - early) * _FRAME_S))
    return times


class WordTimes:
    """Gathers the times of tokens into those of the words of one text, over all its chunks."""

    def __init__(self, text: str, sample_rate: int) -> None:
        self._words = Words(text)
        self._sample_rate = sample_rate
        self._samples = 0

    def place(
        self,
        tokens: Sequence[Token],
        times: Sequence[tuple[float, float] | None],
        *,
        shift_s: float,
        samples: int,
    ) -> tuple[WordTime, ...]:
        """The words of a chunk of `samples` samples, whose tokens' times are off by `shift_s`. Chunks come in order."""
        offset_s = self._samples / self._sample_rate
        self._samples += samples
        last_s = self._samples / self._sample_rate
        words: dict[tuple[int, int], WordTime] = {}
        for token, time in zip(tokens, times, strict=True):
            place = self._words.at(token.start, token.end)
            if time is None or place is None:
                continue
            begins, ends = (min(max(edge + shift_s, 0.0) + offset_s, last_s) for edge in time)
            for index in range(place[0], place[1] + 1):
                span = self._words.spans[index]
                first = words.setdefault(span, WordTime(*span, begins, ends))
                words[span] = replace(first, end_s=ends)
        return tuple(words.values())


def _bad(message: str) -> BadRequest:
    return BadRequest(message, stage="tts", engine="kokoro")
