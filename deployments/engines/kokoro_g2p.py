"""English text to phonemes for Kokoro, without the spaCy model that `misaki.en.G2P` downloads when it is built.

misaki needs of spaCy only tokens and a part of speech for each. spaCy's tokenizer is in its package; the tagger below
knows punctuation, numbers and the function words, and guesses verb or noun for what follows them. That decides the
few hundred English words with two pronunciations ("to record", "the record"); all others do not depend on the tag.
Where `en_core_web_sm` happens to be installed, it is used.

Imports misaki and spaCy (1 s): import it in the engine's constructor. spaCy in its turn imports torch (3 s, 280 MB)
where that is installed, in two places, and does nothing with it here: thinc looks for it, which `without_torch` keeps
from it, and `spacy.Language` loads what plug-ins offer, which is why the tokenizer is made without a `Language`.
"""

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, cast


@contextmanager
def without_torch() -> Iterator[None]:
    """What is imported in this block finds no torch, unless the process has it already."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = cast("ModuleType", None)  # what makes an import statement raise ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


with without_torch():
    import spacy
    from misaki import en, espeak
    from spacy.lang.en import English
    from spacy.language import create_tokenizer
    from spacy.tokens import Doc
    from spacy.vocab import Vocab

_SPACY_MODEL = "en_core_web_sm"
_UNKNOWN = "XX"
"""A tag that no dictionary entry names: the word's default pronunciation."""

_PUNCTUATION = {
    **dict.fromkeys(".!?…", "."),
    **dict.fromkeys(",", ","),
    **dict.fromkeys(":;-–—", ":"),
    **dict.fromkeys("([{", "-LRB-"),
    **dict.fromkeys(")]}", "-RRB-"),
    **dict.fromkeys("“‘", "``"),
    **dict.fromkeys("”’", "''"),
    **dict.fromkeys("$£€", "$"),
    # Spoken as words: "percent", "and", "plus", "at".
    **dict.fromkeys("%&+@", "NN"),
}
_WORDS = {
    **dict.fromkeys(("a", "an", "the", "this", "these", "those", "every", "each", "no", "some", "any"), "DT"),
    **dict.fromkeys(("my", "your", "his", "her", "its", "our", "their", "'s", "’s"), "PRP$"),
    **dict.fromkeys(("i", "you", "he", "she", "it", "we", "they"), "PRP"),
    **dict.fromkeys(
        ("can", "could", "will", "would", "shall", "should", "may", "might", "must", "'ll", "'d"), "MD"
    ),
    **dict.fromkeys(("do", "does", "did", "n't", "n’t", "not", "please", "let"), "MD"),
    **dict.fromkeys(("has", "have", "had", "having", "'ve"), "VBZ"),
    **dict.fromkeys(("am", "is", "are", "was", "were", "be", "been", "'m", "'re"), "VBP"),
    **dict.fromkeys(
        ("of", "in", "on", "at", "for", "with", "from", "by", "about", "that", "as", "into"), "IN"
    ),
    "to": "TO",
    "used": "VBD",
    "vs": "IN",
    "vs.": "IN",
}
_AFTER = {"TO": "VB", "MD": "VB", "PRP": "VB", "DT": "NN", "PRP$": "NN", "VBZ": "VBN"}
"""Tag of a word -> what an unknown word after it is taken for: to see, you see, the sea, has seen."""
_NUMBER = re.compile(r"[-+]?\d[\d.,]*")


def tag(words: Sequence[str]) -> list[str]:
    """A Penn Treebank tag for each token; `XX` for a word that stands in no telling place."""
    tags: list[str] = []
    quote = "``"
    for word in words:
        if word == '"':
            tags.append(quote)
            quote = "''" if quote == "``" else "``"
        else:
            tags.append(_tag(word, tags[-1] if tags else ""))
    return tags


def _tag(word: str, before: str) -> str:
    if known := _WORDS.get(word.lower()):
        return known
    if _NUMBER.fullmatch(word):
        return "CD"
    if not any(character.isalnum() for character in word):
        return _PUNCTUATION.get(word[0], "NFP") if word.strip() else "_SP"
    return _AFTER.get(before, _UNKNOWN)


class _Pipeline:
    """spaCy's English tokenizer and the tagger of this module."""

    def __init__(self) -> None:
        defaults = English.Defaults
        vocab = Vocab(lex_attr_getters=defaults.lex_attr_getters)
        self._tokenizer = create_tokenizer()(SimpleNamespace(Defaults=defaults, vocab=vocab))

    def __call__(self, text: str) -> Doc:
        doc = self._tokenizer(text)
        for token, name in zip(doc, tag([token.text for token in doc]), strict=True):
            token.tag_ = name
            if token.text == "-" and token.i and not token.whitespace_ and not doc[token.i - 1].whitespace_:
                token.tag_ = "HYPH"  # in a word ("well-known"): not the dash at which a voice pauses
        return doc


class EnglishG2P(en.G2P):  # type: ignore[misc]  # misaki has no types
    """`misaki.en.G2P` over the installed spaCy model, or over the tagger of this module.

    Words that are in no dictionary are spelled by espeak-ng, where it can be loaded, else left out.
    """

    def __init__(self, *, british: bool) -> None:
        # In place of G2P.__init__, which downloads: its attributes are those of misaki 0.9.4.
        self.version = None
        self.british = british
        self.nlp = _pipeline()
        with warnings.catch_warnings():
            # misaki 0.9.4 reads its dictionaries with the deprecated importlib.resources.open_text.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.lexicon = en.Lexicon(british)
        self.fallback = _speller(british)
        self.unk = ""


def _pipeline() -> Any:
    if spacy.util.is_package(_SPACY_MODEL):
        return spacy.load(_SPACY_MODEL, enable=["tok2vec", "tagger"])
    return _Pipeline()


def _speller(british: bool) -> Any:
    try:
        return espeak.EspeakFallback(british=british)
    except (RuntimeError, OSError):
        return None
