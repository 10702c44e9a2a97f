"""Tokens into pieces that can be spoken: a short clause first, so that sound comes early, then whole sentences.

The pieces are slices: joined they are the text that was pushed, less an end in which there is nothing to say
(an emoji, closing quotes). A piece always holds a letter or a digit.
"""

import re

FIRST_MIN_CHARS = 10
"""Shorter than this, the first clause would be over before the next segment is ready."""
FIRST_MAX_CHARS = 48
"""Without punctuation the first segment is cut at the last space before this: about eight words, 3 s of speech."""
MAX_TOKENS = 64
MAX_WORDS = MAX_TOKENS * 3 // 4
"""A token is about three quarters of an English word."""
MAX_CHARS = 320
"""The same bound for scripts without spaces."""

_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st vs etc e.g i.e no inc ltd co jr sr dept approx fig vol cf a.m p.m u.s u.k ph.d".split()  # noqa: SIM905 - reads best as words
)
_CLAUSE_END = re.compile(
    r"[,;:.!?…]+[\"'”’)\]]*(?=\s)|[—–](?=\S|\s)|[、，。！？；：]+(?=[^、，。！？；：])|\n"
)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+(?=[^。！？])|\n")
_GAP = re.compile(r"\s+(?=\S)")


class SpeechSegmenter:
    """Cuts a stream of text; one for each answer."""

    def __init__(self) -> None:
        self._text = ""
        self._is_first = True

    def push(self, text: str) -> list[str]:
        """The segments that `text` completes, in order."""
        self._text += text
        segments = []
        while (end := self._cut()) is not None:
            segments.append(self._text[:end])
            self._text = self._text[end:]
            self._is_first = False
        return segments

    def flush(self) -> list[str]:
        """The rest, at the end of the answer: one segment, or none if there is nothing to say in it."""
        rest, self._text = self._text, ""
        return [rest] if is_speakable(rest) else []

    def _cut(self) -> int | None:
        """Where the next segment ends, if it has one yet.

        A text that is too long is looked at only as far as it was when it became so: the cuts are the same however the
        text came, and a burst of tokens does not lengthen the first clause.
        """
        longest = self._longest()
        if len(self._text) > longest:
            seen = self._text[: longest + 1]
            end = self._punctuated(seen) or _last_gap(seen)
            if is_speakable(seen[:end]):
                return end
        return self._punctuated(self._text)

    def _longest(self) -> int:
        """So many characters are one segment even without punctuation."""
        if self._is_first:
            return FIRST_MAX_CHARS
        words = [gap.end() for gap in _GAP.finditer(self._text)]
        return min([MAX_CHARS, *words[MAX_WORDS : MAX_WORDS + 1]])

    def _punctuated(self, text: str) -> int | None:
        pattern = _CLAUSE_END if self._is_first else _SENTENCE_END
        shortest = FIRST_MIN_CHARS if self._is_first else 1
        for match in pattern.finditer(text):
            piece = text[: match.end()]
            if len(piece.strip()) >= shortest and is_speakable(piece) and not _ends_in_abbreviation(piece):
                return match.end()
        return None


def is_speakable(text: str) -> bool:
    return any(char.isalnum() for char in text)


def _last_gap(text: str) -> int:
    """The end of the last whole word, or of all but the last character where there is no space."""
    return max([gap.start() for gap in _GAP.finditer(text)], default=0) or len(text) - 1


def _ends_in_abbreviation(piece: str) -> bool:
    """True for "Dr." and "J." but not for a sentence that ends in a longer word or in "...": those are ends."""
    words = piece.split()
    if not words or not words[-1].endswith(".") or words[-1].endswith(".."):
        return False
    word = words[-1][:-1].strip("\"'(“‘").lower()
    return word in _ABBREVIATIONS or (len(word) == 1 and word.isalnum() and word not in "i")
