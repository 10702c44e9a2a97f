"""SSML, as far as the voices can follow it: parsed into pieces, and the pieces spoken by any synthesizer.

Understood, after the W3C's Speech Synthesis Markup Language 1.1:

- `speak`, the root; `p` and `s`: a sentence or paragraph ends as if it had a full stop, and a paragraph with a pause.
- `break time="500ms"`, at most 10 s, or `strength`: silence of that length.
- `prosody rate`: a name ("slow"), a percentage of the normal rate ("80%") or a factor ("0.8"); nested rates multiply.
  `pitch`, `range`, `contour` and `volume` are refused: no engine here has a control for them.
- `sub alias`: the alias is spoken.
- `phoneme ph`, alphabet "ipa": Kokoro says these sounds in its English, Spanish, French, Hindi, Italian and Portuguese
  voices, as far as it knows the symbols; in Japanese and Chinese, and with espeak, the word itself is spoken.
- `emphasis`: Kokoro's English voices stress the word more ("moderate", "strong") or less ("reduced"). That is a mark in
  the phonemes and changes a word audibly only where it was unstressed; other languages and espeak do not change.

All else is refused with its line, `say-as`, `voice`, `audio`, `lang` and `mark` among it: what is left out in silence
would be looked for. So is a document type: it is the way to entities that expand without end or read files.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Never, TypeVar, cast
from xml.parsers import expat

from .interfaces import BadRequest, SpeechChunk, Synthesizer, WordTime

MOST_BREAK_S = 10.0
_DEEPEST = 32
_PARAGRAPH_S = 0.5
_SLOWEST, _FASTEST = 0.25, 4.0
_DEFAULT_RATE = 24_000
"""Sample rate of a text that is nothing but breaks."""

_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.75, "x-strong": 1.0}
_RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
_STRESSES = {"none": "", "reduced": "-1", "moderate": "+1", "strong": "+2"}
_ATTRIBUTES: Mapping[str, frozenset[str]] = {
    "speak": frozenset({"version"}),
    "p": frozenset(),
    "s": frozenset(),
    "break": frozenset({"time", "strength"}),
    "prosody": frozenset({"rate"}),
    "sub": frozenset({"alias"}),
    "phoneme": frozenset({"ph", "alphabet"}),
    "emphasis": frozenset({"level"}),
}
_LEAVES = {"break", "sub", "phoneme"}
_TIME = re.compile(r"\+?(\d+(?:\.\d*)?|\.\d+)(ms|s)")
_RATE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(%?)")
_MARK_CHARACTERS = re.compile(r"[\[\]()\n]")
_IPA = {
    "aɪ": "I",
    "aʊ": "W",
    "eɪ": "A",
    "oʊ": "O",
    "əʊ": "Q",
    "ɔɪ": "Y",
    "tʃ": "ʧ",
    "dʒ": "ʤ",
    "ɚ": "əɹ",
    "ɝ": "ɜɹ",
    "r": "ɹ",
    "g": "ɡ",
    "'": "ˈ",
    ":": "ː",
    ".": "",
    "\u0361": "",
}
"""IPA as it is usually written -> the letters that Kokoro was trained on (misaki's), which has one for a diphthong."""


@dataclass(frozen=True, slots=True)
class Speech:
    text: str
    """For a synthesizer; may hold Kokoro's marks, `[word](/ipa/)`."""
    rate: float = 1.0
    """Times the speed that the caller asks for."""


@dataclass(frozen=True, slots=True)
class Break:
    seconds: float


T = TypeVar("T", float, str)

Piece = Speech | Break


def parse(ssml: str) -> list[Piece]:
    """What to say and where to pause, in order. Raises BadRequest with line and reason for anything not understood."""
    return _Parser().parse(ssml)


async def synthesize_ssml(
    engine: Synthesizer, pieces: Sequence[Piece], *, voice: str, speed: float
) -> AsyncIterator[SpeechChunk]:
    """The pieces spoken by `engine`, breaks as silence. Closing it early stops the engine, as with any synthesis.

    Word times count over the whole; their characters are those of the texts of all `Speech` pieces, joined.
    """
    sample_rate = _DEFAULT_RATE
    samples = characters = 0
    pause_s = 0.0
    for piece in pieces:
        match piece:
            case Break(seconds):
                pause_s += seconds
            case Speech(text, rate):
                stream = engine.synthesize(text, voice=voice, speed=speed * rate)
                # Every engine's stream is an async generator: closing it is what stops the engine.
                async with aclosing(cast("AsyncGenerator[SpeechChunk, None]", stream)) as chunks:
                    begins: int | None = None
                    async for chunk in chunks:
                        sample_rate = (
                            chunk.sample_rate
                        )  # only now is known how many samples the pause before has
                        for silence in _silence(pause_s, sample_rate):
                            samples += len(silence.pcm) // 2
                            yield silence
                        pause_s = 0.0
                        begins = samples if begins is None else begins
                        samples += len(chunk.pcm) // 2
                        yield replace(chunk, words=_moved(chunk.words, characters, begins / sample_rate))
                characters += len(text)
    for silence in _silence(pause_s, sample_rate):
        yield silence


def _silence(seconds: float, sample_rate: int) -> list[SpeechChunk]:
    samples = round(seconds * sample_rate)
    whole, rest = divmod(samples, sample_rate)
    return [SpeechChunk(bytes(2 * count), sample_rate) for count in [sample_rate] * whole + [rest] if count]


def _moved(words: tuple[WordTime, ...], characters: int, seconds: float) -> tuple[WordTime, ...]:
    return tuple(
        WordTime(
            word.start_char + characters,
            word.end_char + characters,
            word.start_s + seconds,
            word.end_s + seconds,
        )
        for word in words
    )


@dataclass(slots=True)
class _Element:
    name: str
    rate: float
    """Of all elements around it, multiplied."""
    mark: str = ""
    """What stands in the round brackets behind its text."""
    text: str = ""
    """Of an element whose text cannot be passed on before it ends."""


class _Parser:
    """Fed by expat, which knows the line of everything; the elements that are open are a stack."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._open: list[_Element] = []
        self._is_paragraph_due = False
        """The next that is said is a paragraph away from what was said before."""
        self._expat = expat.ParserCreate()
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._start
        self._expat.EndElementHandler = self._end
        self._expat.CharacterDataHandler = self._say
        self._expat.StartDoctypeDeclHandler = lambda *_: self._refuse("a document type is not allowed")
        self._starts: dict[str, Callable[[_Element, dict[str, str]], None]] = {
            "break": self._start_break,
            "prosody": self._start_prosody,
            "sub": self._start_sub,
            "phoneme": self._start_phoneme,
            "emphasis": self._start_emphasis,
        }

    def parse(self, ssml: str) -> list[Piece]:
        try:
            self._expat.Parse(ssml, True)
        except expat.ExpatError as error:
            raise _bad(error.lineno, expat.ErrorString(error.code)) from error
        except (UnicodeEncodeError, ValueError) as error:
            raise _bad(1, "not Unicode text") from error
        return [piece for piece in self._pieces if not isinstance(piece, Speech) or piece.text.strip()]

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        around = self._open[-1] if self._open else None
        if name not in _ATTRIBUTES:
            self._refuse(f"<{name}> is not supported; {', '.join(f'<{known}>' for known in _ATTRIBUTES)} are")
        if (name == "speak") != (around is None):
            self._refuse("<speak> is the root, and the root only")
        if around and around.name in _LEAVES:
            self._refuse(f"<{around.name}> holds no other element")
        if around and around.mark and name != "break":
            self._refuse(f"<{name}> in <emphasis> is not supported")
        if len(self._open) == _DEEPEST:
            self._refuse("too deeply nested")
        for attribute in attributes:
            if attribute not in _ATTRIBUTES[name] and not attribute.startswith(("xml:", "xmlns", "xsi:")):
                self._refuse(f"{attribute!r} of <{name}> is not supported")
        element = _Element(name, around.rate if around else 1.0)
        if name in self._starts:
            self._starts[name](element, attributes)
        elif name in ("s", "p"):
            self._part(name)
        self._open.append(element)

    def _part(self, name: str) -> None:
        """A sentence or paragraph begins or ends here."""
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Speech):
            ends = "." if last.text.rstrip()[-1:].isalnum() else ""
            self._pieces[-1] = replace(last, text=f"{last.text.rstrip()}{ends} ")
        if name == "p":
            self._is_paragraph_due = bool(self._pieces)

    def _start_break(self, _: _Element, attributes: dict[str, str]) -> None:
        if "time" in attributes:
            time = _TIME.fullmatch(attributes["time"].strip())
            if not time:
                self._refuse(f"time={attributes['time']!r} is not like 500ms or 1.5s")
            seconds = float(time[1]) / (1000 if time[2] == "ms" else 1)
            if seconds > MOST_BREAK_S:
                self._refuse(f"a break is at most {MOST_BREAK_S:g} s")
        else:
            seconds = self._one_of(_STRENGTHS, "strength", attributes.get("strength", "medium"))
        self._end_mark()
        self._pieces.append(Break(seconds))

    def _start_prosody(self, element: _Element, attributes: dict[str, str]) -> None:
        text = attributes.get("rate", "default").strip()
        figure = _RATE.fullmatch(text)
        rate = float(figure[1]) / (100 if figure[2] else 1) if figure else self._one_of(_RATES, "rate", text)
        element.rate *= rate
        if not _SLOWEST <= element.rate <= _FASTEST:
            self._refuse(f"a rate is {_SLOWEST:g} to {_FASTEST:g} times the normal one, not {element.rate:g}")

    def _start_sub(self, element: _Element, attributes: dict[str, str]) -> None:
        if "alias" not in attributes:
            self._refuse("<sub> has no alias")
        self._pass_on(attributes["alias"], element.rate)

    def _start_phoneme(self, element: _Element, attributes: dict[str, str]) -> None:
        if attributes.get("alphabet", "ipa") != "ipa":
            self._refuse(f"alphabet {attributes['alphabet']!r} is not supported; ipa is")
        sounds = attributes.get("ph", "").strip().strip("/")
        if not sounds or re.search(r"[/()\[\]\n]", sounds):
            self._refuse("<phoneme> needs ph, sounds in IPA")
        for usual, letter in _IPA.items():
            sounds = sounds.replace(usual, letter)
        element.mark = f"/{sounds}/"

    def _start_emphasis(self, element: _Element, attributes: dict[str, str]) -> None:
        element.mark = self._one_of(_STRESSES, "level", attributes.get("level", "moderate"))

    def _say(self, text: str) -> None:
        element = self._open[-1]
        if element.name == "break" and text.strip():
            self._refuse("<break> is empty")
        if element.mark:
            element.text += text
        elif element.name != "sub":
            self._pass_on(text, element.rate)

    def _end(self, name: str) -> None:
        self._end_mark()
        self._open.pop()
        if name in ("s", "p"):
            self._part(name)

    def _end_mark(self) -> None:
        """Passes on what the innermost element has gathered."""
        element = self._open[-1] if self._open else None
        if element and element.text:
            word = _MARK_CHARACTERS.sub(" ", element.text).strip()
            self._pass_on(f"[{word}]({element.mark})" if word else " ", element.rate)
            element.text = ""

    def _pass_on(self, text: str, rate: float) -> None:
        """Into the speech that is going on, where its rate is the same: one text sounds better than two."""
        if self._is_paragraph_due and text.strip():
            self._is_paragraph_due = False
            self._pieces.append(Break(_PARAGRAPH_S))
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, Speech) and last.rate == rate:
            self._pieces[-1] = replace(last, text=last.text + text)
        else:
            self._pieces.append(Speech(text, rate))

    def _one_of(self, names: Mapping[str, T], attribute: str, value: str) -> T:
        if value.strip() not in names:
            self._refuse(f"{attribute}={value!r}: one of {', '.join(names)}")
        return names[value.strip()]

    def _refuse(self, reason: str) -> Never:
        raise _bad(self._expat.CurrentLineNumber, reason)


def _bad(line: int, reason: str) -> BadRequest:
    return BadRequest(f"SSML, line {line}: {reason}", stage="tts", engine="ssml")
