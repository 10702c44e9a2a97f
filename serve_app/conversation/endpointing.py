"""How long a silence must last to end the turn, by what was said before it.

A fixed silence is wrong twice: too long after "What time is it?", too short after "I would like to ...". The transcript
of the first silence tells them apart well enough to set the wait, never to decide alone: every wait lies between the
bounds of its eagerness. A second opinion, from how the turn sounds, moves the wait towards the next kind, the further
the surer it is. Word lists are English; for other languages only the punctuation counts.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from .turn_taking import samples_of

Eagerness = Literal["low", "medium", "high"]


class Completeness(Enum):
    """In the order of their waits."""

    FINISHED = 0
    """A sentence that ends as sentences end."""
    PLAIN = 1
    """Nothing tells; also while the transcript is not known."""
    OPEN = 2
    """More must come: a conjunction, an article, a filler, a number that is being dictated."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Milliseconds of silence that end the turn after each kind of words."""

    finished: int
    plain: int
    open: int


WAITS: dict[Eagerness, Waits] = {
    "low": Waits(500, 1000, 3000),
    "medium": Waits(250, 600, 1500),
    "high": Waits(150, 350, 900),
}
"""Bounds of `semantic_vad`: a listener waits 200 ms at a smooth change of speakers (Stivers et al. 2009, PNAS 106), and
pauses within a turn last 0.5 to 1 s (Heldner & Edlund 2010); how often each cuts people off: loadtest/bench_endpointing.
"""

SHORTENED, LENGTHENED = 0.5, 0.25
"""How far towards the next shorter or longer wait a certain opinion moves one. Measured (loadtest/bench_endpointing):
moved all the way, an eager session cuts off 6 of 26 sentences in place of 2; at half and a quarter no more than the words
alone where the transcript is good, 4 where it is pocketsphinx's, without punctuation."""

_OPEN_WORDS = frozenset(
    """a an the this these those my your his her its our their some any each every
    and or but so because since although though while if unless when where that which who whose than as like
    of to in on at by for from with without about into over under between through after before during
    is are was were be been am will would can could shall should may might must have has had
    i we they he she you it's i'm um uh er erm hmm well okay actually maybe also just very really
    not no please tell ask let's want need""".split()  # noqa: SIM905 - reads best as words
) - frozenset("no you it that this please okay well so not".split())  # noqa: SIM905
"""Words after which an English utterance seldom ends; those that often do end one are taken out again."""

_NUMBER_WORDS = frozenset(
    """zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand double triple
    """.split()  # noqa: SIM905 - reads best as words
)
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*$")
_TRAILING_OFF = re.compile(r"(\.\.\.|…|[,;:、，—–-])[\"'”’)\]]*$")
_WORD = re.compile(r"[\w']+")
_DICTATED = 3
"""So many numbers in a row are being dictated: a phone number, a code."""


def completeness(transcript: str) -> Completeness:
    text = transcript.strip()
    words = [word.lower() for word in _WORD.findall(text)]
    if not words or _TRAILING_OFF.search(text) or _is_dictating(words):
        return Completeness.OPEN if words else Completeness.PLAIN
    if _SENTENCE_END.search(text):
        return Completeness.FINISHED
    return Completeness.OPEN if words[-1] in _OPEN_WORDS else Completeness.PLAIN


def _is_dictating(words: list[str]) -> bool:
    """The last words are digits: at least three of them, or one group of as many."""
    digits = 0
    for word in reversed(words):
        if word.isdigit():
            digits += len(word)
        elif word in _NUMBER_WORDS:
            digits += 1
        else:
            break
    return digits >= _DICTATED


class EndpointingPolicy:
    """A fixed silence (`eagerness` None, the wire's server_vad), or one that follows the words (semantic_vad)."""

    def __init__(self, silence_ms: int, eagerness: Eagerness | None = None) -> None:
        self._silence_ms = silence_ms
        self._waits = WAITS[eagerness] if eagerness else None

    @property
    def is_adaptive(self) -> bool:
        return self._waits is not None

    def delay(self, transcript: str | None, opinion: float | None = None) -> int:
        """Samples of silence after which the turn is over.

        `transcript` is what was said, `opinion` the probability that it sounds complete, where they are known already.
        """
        if self._waits is None:
            return samples_of(self._silence_ms)
        kinds = [self._waits.finished, self._waits.plain, self._waits.open]
        kind = completeness(transcript or "").value
        wait, shorter, longer = kinds[kind], kinds[max(0, kind - 1)], kinds[min(2, kind + 1)]
        return samples_of(wait if opinion is None else _leaning(shorter, wait, longer, opinion))


def _leaning(shorter: int, wait: int, longer: int, opinion: float) -> float:
    """`wait`, moved by an opinion that is often wrong."""
    certainty = 2 * opinion - 1
    if certainty > 0:
        return wait - (wait - shorter) * certainty * SHORTENED
    return wait - (longer - wait) * certainty * LENGTHENED
