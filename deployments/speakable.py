"""What is written, as a voice should say it; what is displayed stays as written.

A chat model writes for the eye: markdown, emoji, links, "$3.5M", "10:30", "Dr.". `speakable` turns that into words
before synthesis and keeps, for every character of the result, the place in the original that it stands for;
`Speakable` wraps an engine so that the times of its words select the words of the text as written.

- Rules run in a fixed order, each one regular expression over the whole text: first what is only for the eye, then
  addresses, then words and numbers (`speakable_english`). Plain words come out as they went in.
- English has all the rules. Other languages have those that do not depend on one, and, where num2words knows the
  language and Kokoro speaks it, numbers and sums of money (Kokoro's phonemes for them come from espeak clause by
  clause, and "$3.50" is two to it; the espeak voice itself reads numbers in all its languages).
- `[word](/ipa/)` and `[word](+1)` are Kokoro's own marks of pronunciation and stress. They are kept for it and dropped
  for an engine that would read them out. Anything else in the round brackets is a link: its text is spoken.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from html import unescape
from typing import Literal, cast

from .interfaces import SpeechChunk, Synthesizer, WordTime
from .mapped_text import MappedText, Words
from .number_words import MOST_DIGITS, in_words
from .speakable_english import in_english

Pronunciations = Literal["kept", "dropped"]

_LANGUAGES = {
    "a": "en",
    "b": "en",
    "e": "es",
    "f": "fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt",
    "z": "zh",
}
_KOKORO_VOICE = re.compile(r"([abefhijpz])[fm]_")

_PRONOUNCED = re.compile(r"\[([^\]\n]+)\]\((?:/[^)\n]*/|[+-]?\d(?:\.\d)?|#[^)\n]*#)\)")
_PRIVATE = re.compile("[\ue000-\uf8ff]")
"""Characters that no voice can say. While the rules run, each stands for one `[word](/ipa/)`."""
_MOST_PRONOUNCED = 0xF8FF - 0xE000

_ITEM_END = re.compile(r"(?<=[\w)\"'”’*%`])[ \t]*\n(?=[ \t]*\n\s*\S|[ \t]*(?:[-*+•]|\d+[.)]|#{1,6}|>)[ \t])")
"""The end of a paragraph, a heading or an item that has no mark of its own: the voice must pause there."""
_FOR_THE_EYE = re.compile(
    r"^[ \t]*(?:```|~~~)[^\n]*$"  # the fence around code, with the language's name
    r"|^[ \t]*(?:[-*_][ \t]*){3,}$"  # a rule across the page
    r"|^[ \t]*\|?[ \t]*:?-{2,}:?[ \t]*(?:\|[ \t]*:?-{2,}:?[ \t]*)*\|?[ \t]*$"  # the line under a table's head
    r"|^[ \t]{0,3}#{1,6}[ \t]+"  # heading
    r"|^(?:[ \t]*>)+[ \t]"  # quotation
    r"|^[ \t]*[-*+•‣◦][ \t]+(?:\[[ xX]\][ \t]+)?"  # item of a list, with its box
    r"|^[ \t]*\|[ \t]*|[ \t]*\|[ \t]*$"  # the edges of a table
    r"|\[\^[^\]\n]+\]:?"  # footnote
    r"|<!--.*?-->|</?[a-zA-Z][^<>\n@:]*>",  # HTML, but not <https://...> or <a@b.c>
    re.MULTILINE | re.DOTALL,
)
_AUTOLINK = re.compile(r"<((?:https?://|mailto:)[^\s<>]+|[^\s<>@]+@[^\s<>@]+)>")
_LINK = re.compile(r"!?\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])")
_ENTITY = re.compile(r"&(?:#\d+|#x[\da-fA-F]+|[a-zA-Z]+);")
_EMPHASIS = re.compile(
    r"\*\*+|~~|`+|__+(?!\w)|(?<!\w)__+"
    r"|(?<![\w*])\*(?=[^\s*])|(?<=[^\s*])\*(?![\w*])"  # a star on one side of a word
    r"|(?<!\w)_(?=\w)|(?<=[\w.,!?)])_(?!\w)"
    r"|\\(?=[\\`*_{}\[\]()#+.!|>~-])"
)
_CELL = re.compile(r"[ \t]*\|[ \t]*")
_SNAKE = re.compile(r"(?<=\w)_+(?=\w)")
_KEYCAP = re.compile("([0-9#*])\ufe0f?\u20e3")
_EMOJI = re.compile(
    "[\U0001f000-\U0001faff\U000e0020-\U000e007f\u2600-\u27bf\u2300-\u23ff\u2b00-\u2bff\u25a0-\u25ff\u2500-\u257f"
    "\ufe0e\ufe0f\u200b-\u200d\u2060\ufeff\u20e3\u2122\u00a9\u00ae\u3030\u303d\u3297\u3299]+"
)
_SCHEME = re.compile(r"\b(?:https?://|mailto:)(?:www\.)?(?=\w)|\bwww\.(?=\w)")
_NUMBER = re.compile(
    r"(?<![\w.,])([$€£])?\s?(\d{1,3}(?:[.\u202f\u00a0]\d{3})+|\d+)(?:[.,](\d+))?(?:\s?([$€£])|(?!\w))"
)
_MONEY = {
    "es": {"$": "dólares", "€": "euros", "£": "libras"},
    "fr": {"$": "dollars", "€": "euros", "£": "livres"},
    "it": {"$": "dollari", "€": "euro", "£": "sterline"},
    "pt": {"$": "dólares", "€": "euros", "£": "libras"},
}
"""Languages that num2words knows and Kokoro speaks by espeak's phonemes: symbol -> name of the money."""


def language_of(voice: str) -> str:
    """ISO 639-1 code of what a voice of either engine speaks: "bf_emma", "af_heart:0.7,am_adam:0.3", "de", "en-us"."""
    kokoro = _KOKORO_VOICE.match(voice)
    return _LANGUAGES[kokoro[1]] if kokoro else voice.partition("-")[0].lower()


def speakable(text: str, *, language: str = "en", pronunciations: Pronunciations = "kept") -> MappedText:
    """`text` in words. All that can be said is, except the targets of links and what opens a block of code."""
    said = MappedText(text).replace(_PRIVATE, " ")
    hidden: list[str] = []
    if pronunciations == "kept":
        said = said.replace(_PRONOUNCED, lambda match: _hide(match, hidden))
    else:
        said = said.keep(_PRONOUNCED)
    said = _plain(said)
    if language == "en":
        said = in_english(said)
    else:
        said = said.replace(_SCHEME, "")
        if language in _MONEY:
            said = said.replace(_NUMBER, lambda match: _number(match, language))
    return said.replace(_PRIVATE, lambda match: hidden[ord(match[0]) - 0xE000])


def _hide(match: re.Match[str], hidden: list[str]) -> str:
    if len(hidden) == _MOST_PRONOUNCED:
        return match[1]
    hidden.append(match[0])
    return chr(0xE000 + len(hidden) - 1)


def _plain(text: MappedText) -> MappedText:
    """Without what is only for the eye."""
    text = text.replace(_ITEM_END, ".\n").replace(_FOR_THE_EYE, "").keep(_AUTOLINK).keep(_LINK)
    text = text.replace(_ENTITY, lambda match: unescape(match[0]))
    text = text.replace(_EMPHASIS, "").replace(_CELL, ", ").replace(_SNAKE, " ")
    return text.keep(_KEYCAP).replace(_EMOJI, " ")


def _number(match: re.Match[str], language: str) -> str | None:
    before, whole, fraction, after = match.groups()
    digits = re.sub(r"\D", "", whole)
    if len(digits) + len(fraction or "") > MOST_DIGITS:
        return None
    words = in_words(f"{digits}.{fraction}" if fraction else digits, language=language)
    money = before or after
    return f"{words} {_MONEY[language][money]}" if money else words


class Speakable:
    """A synthesizer that is given `speakable` text and whose word times are those of the text as written.

    A word that becomes several ("$3.50") sounds from the first to the last of them, and is told when the last is
    known; a chunk that ends amid such a word waits for the next. Text in which there is nothing to say has no chunks.
    """

    def __init__(self, engine: Synthesizer, *, pronunciations: Pronunciations) -> None:
        self._engine = engine
        self._pronunciations = pronunciations
        self.voices: Sequence[str] = engine.voices

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        said = speakable(text, language=language_of(voice), pronunciations=self._pronunciations)
        if not any(character.isalnum() for character in said.text):
            said = MappedText("")  # the engine still refuses a wrong voice or speed
        words = _WordsAsWritten(text, said)
        held: SpeechChunk | None = None
        stream = self._engine.synthesize(said.text, voice=voice, speed=speed)
        # Every engine's stream is an async generator: closing it is what stops the engine.
        async with aclosing(cast("AsyncGenerator[SpeechChunk, None]", stream)) as chunks:
            async for spoken in chunks:
                if held:
                    yield held
                    held = None
                chunk = replace(spoken, words=words.take(spoken.words))
                if words.is_open:
                    held = chunk
                else:
                    yield chunk
        if held:
            yield replace(held, words=held.words + words.rest())


class _WordsAsWritten:
    """Gathers the times of spoken words into those of the written words that they stand for."""

    def __init__(self, text: str, said: MappedText) -> None:
        self._said = said
        self._words = Words(text)
        self._text = text
        self._open: tuple[int, int, WordTime] | None = None
        """First and last word that is being gathered, and their time so far."""

    @property
    def is_open(self) -> bool:
        """True while a word has sounded in part."""
        return self._open is not None

    def take(self, times: Sequence[WordTime]) -> tuple[WordTime, ...]:
        """The written words that `times`, which come in order, complete."""
        done: list[WordTime] = []
        for time in times:
            place = self._words.at(*self._said.span(time.start_char, time.end_char))
            if place is None:
                continue
            if self._open and place[0] > self._open[1]:
                done += self.rest()
            self._gather(place, time)
            following = self._following(time.end_char)
            if self._open and (following is None or following > self._open[1]):
                done += self.rest()
        return tuple(done)

    def rest(self) -> tuple[WordTime, ...]:
        """The word that is being gathered, as far as it is known."""
        opened, self._open = self._open, None
        return (opened[2],) if opened else ()

    def _gather(self, place: tuple[int, int], time: WordTime) -> None:
        first, last, start_s = (*place, time.start_s)
        if self._open:
            first, last, start_s = self._open[0], max(last, self._open[1]), self._open[2].start_s
        start, end = self._words.spans[first][0], self._words.spans[last][1]
        if self._following(time.end_char) is None:
            end = self._end_of_unspoken(last)
        self._open = (first, last, WordTime(start, end, start_s, time.end_s))

    def _following(self, end_char: int) -> int | None:
        """The written word that the first character after this one, if anything is said there, belongs to."""
        text = self._said.text
        while end_char < len(text):
            if text[end_char].isalnum():
                place = self._words.at(*self._said.span(end_char, end_char + 1))
                return place[0] if place else None
            end_char += 1
        return None

    def _end_of_unspoken(self, last: int) -> int:
        """The last word is heard with what is left unsaid behind it: the target of a link."""
        spans = self._words.spans
        for index in range(len(spans) - 1, last, -1):
            if any(character.isalnum() for character in self._text[slice(*spans[index])]):
                return spans[index][1]
        return spans[last][1]
