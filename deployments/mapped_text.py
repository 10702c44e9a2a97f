"""A text made from another one, that still knows where each of its characters is from.

What a person reads and what a voice is given differ ("$5", "five dollars"), and the times of the spoken words must
select the words as written. So each rewriting keeps, for every character, the span of the original it stands for; any
number of rewritings may follow each other, and offsets stay in order and within the original.
"""

import re
from bisect import bisect_right
from collections.abc import Callable

WORD = re.compile(r"[^\s、。，！？；：]*[、。，！？；：]+|\S+")
"""A word as written: a run of characters without a space, or, in scripts without spaces, a clause with its mark."""

Replacement = Callable[[re.Match[str]], str | None]
"""Gives what stands for a match, or None to leave it as it is."""


class MappedText:
    """Immutable. `text` is what it has become; `span` tells what a part of that was."""

    __slots__ = ("_ends", "_starts", "text")

    def __init__(self, text: str, starts: list[int] | None = None, ends: list[int] | None = None) -> None:
        self.text = text
        self._starts = list(range(len(text))) if starts is None else starts
        self._ends = list(range(1, len(text) + 1)) if ends is None else ends

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the original that `text[start:end]`, not empty, stands for."""
        return self._starts[start], self._ends[end - 1]

    def replace(self, pattern: re.Pattern[str], replacement: str | Replacement) -> "MappedText":
        """With each match replaced; all characters of a replacement stand for the whole match."""
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for match in pattern.finditer(self.text):
            new = replacement if isinstance(replacement, str) else replacement(match)
            first, last = match.span()
            if new is None or first == last:
                continue
            parts += (self.text[done:first], new)
            starts += self._starts[done:first] + [self._starts[first]] * len(new)
            ends += self._ends[done:first] + [self._ends[last - 1]] * len(new)
            done = last
        return self._joined(parts, starts, ends, done)

    def keep(self, pattern: re.Pattern[str]) -> "MappedText":
        """With each match reduced to its first group, whose characters keep their places."""
        parts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        done = 0
        for match in pattern.finditer(self.text):
            first, last = match.span(1) if match[1] is not None else (match.end(), match.end())
            parts += (self.text[done : match.start()], self.text[first:last])
            starts += self._starts[done : match.start()] + self._starts[first:last]
            ends += self._ends[done : match.start()] + self._ends[first:last]
            done = match.end()
        return self._joined(parts, starts, ends, done)

    def stripped(self) -> "MappedText":
        """Without white space around it."""
        first = len(self.text) - len(self.text.lstrip())
        last = max(first, len(self.text.rstrip()))
        return MappedText(self.text[first:last], self._starts[first:last], self._ends[first:last])

    def _joined(self, parts: list[str], starts: list[int], ends: list[int], done: int) -> "MappedText":
        if not parts:
            return self
        parts.append(self.text[done:])
        return MappedText("".join(parts), starts + self._starts[done:], ends + self._ends[done:])


class Words:
    """The words of a text as written, by their order."""

    def __init__(self, text: str) -> None:
        self.spans = [match.span() for match in WORD.finditer(text)]
        self._starts = [start for start, _ in self.spans]

    def at(self, start: int, end: int) -> tuple[int, int] | None:
        """Index of the first and of the last word that `start` to `end` touches; None if there is none."""
        first = max(0, bisect_right(self._starts, start) - 1)
        last = bisect_right(self._starts, end - 1) - 1
        while first <= last and self.spans[first][1] <= start:
            first += 1
        return (first, last) if first <= last else None
