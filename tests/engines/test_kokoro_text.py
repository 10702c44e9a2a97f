import warnings
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engines.kokoro_text import (
    MOST_PHONEMES,
    SOFT_LIMIT,
    Piece,
    Token,
    WordTimes,
    is_spoken,
    phonemizer,
    split,
    token_times,
)
from deployments.interfaces import BadRequest, EngineFailed, WordTime

VOCABULARY = {symbol: index for index, symbol in enumerate('abcdeɹwɜdθ ˈ;:,.!?—…"“”()', start=1)}
RATE = 24_000


def word(phonemes: str = "wɜɹd", *, has_space: bool = True) -> Token:
    return Token(phonemes, 0, 1, has_space)


def sentence(words: int, mark: str = ".") -> list[Token]:
    return [*[word()] * (words - 1), word(has_space=False), word(mark)]


def only(tokens: list[Token]) -> Piece:
    (piece,) = split(tokens, VOCABULARY)
    return piece


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_a_short_text_is_one_piece():
    assert only([*sentence(3, ","), *sentence(3)]).phonemes == "wɜɹd wɜɹd wɜɹd, wɜɹd wɜɹd wɜɹd."


@pytest.mark.parametrize(
    ("first", "rest", "ends"),
    [
        (sentence(10), [*sentence(10, ","), *sentence(30)], "."),
        (sentence(10, ":"), [*sentence(10, ","), *sentence(30)], ":"),
        (sentence(10, ","), sentence(40), ","),
        ([], sentence(60), "d"),
    ],
    ids=["sentence", "colon", "comma", "word"],
)
def test_a_long_text_is_cut_at_the_best_mark(first: list[Token], rest: list[Token], ends: str):
    pieces = list(split([*first, *rest], VOCABULARY))
    assert len(pieces) > 1
    assert pieces[0].phonemes.endswith(ends)
    assert pieces[0].is_cut == (ends == "d")
    assert not pieces[-1].is_cut
    assert [token for piece in pieces for token in piece.tokens] == [*first, *rest]


def test_a_mark_inside_a_word_is_no_end():
    tokens = [*[word()] * 10, Token(".", 0, 1, False), *[word()] * 40]
    assert next(split(tokens, VOCABULARY)).phonemes.endswith("d")


def test_a_cut_is_never_inside_a_word():
    tokens = [*[word()] * 28, *[word(has_space=False)] * 30, word()]
    pieces = list(split(tokens, VOCABULARY))
    assert [len(piece.tokens) for piece in pieces] == [28, 31]
    assert all(len(piece.phonemes) <= MOST_PHONEMES for piece in pieces)


@given(
    st.lists(
        st.builds(Token, st.text("abcxyz,. ", max_size=200), st.just(0), st.just(1), st.booleans()),
        max_size=40,
    )
)
def test_pieces_fit_the_model_and_lose_nothing(tokens: list[Token]):
    pieces = list(split(tokens, VOCABULARY))
    assert all(0 < len(piece.phonemes) <= MOST_PHONEMES for piece in pieces)
    assert all(piece.phonemes == piece.phonemes.strip() for piece in pieces)
    assert set("".join(piece.phonemes for piece in pieces)) <= set(VOCABULARY)
    known = ["".join(symbol for symbol in token.phonemes if symbol in VOCABULARY) for token in tokens]
    kept = "".join(phonemes[:SOFT_LIMIT] for phonemes in known).replace(" ", "")
    assert "".join(piece.phonemes for piece in pieces).replace(" ", "") == kept
    for piece in pieces:
        edges = [edge for place in piece.places for edge in place]
        assert edges == sorted(edges)
        assert not edges or (edges[0] >= 0 and edges[-1] <= len(piece.phonemes))


# --- times ----------------------------------------------------------------------------------------------------------


def test_times_are_those_of_kokoros_pipeline():
    """Against `KPipeline.join_timestamps` of kokoro 0.9.4, on tokens for which it has no known mistake."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from kokoro import KPipeline
    from misaki.token import MToken

    tokens = [word("ab"), word("cd", has_space=False), word("ea"), word("bab"), word("a", has_space=False)]
    piece = only(tokens)
    durations = np.random.default_rng(1).integers(1, 20, len(piece.phonemes) + 2)
    theirs: list[Any] = [MToken("t", "", " " * token.has_space, phonemes=token.phonemes) for token in tokens]
    KPipeline.join_timestamps(theirs, torch.from_numpy(durations))
    expected = [(token.start_ts, token.end_ts) for token in theirs]
    assert token_times(piece, durations) == [pytest.approx(time) for time in expected]


def test_each_phoneme_is_where_its_durations_say():
    piece = only([word("ab"), word("c", has_space=False), word("."), word("d", has_space=False)])
    assert piece.phonemes == "ab c. d"
    durations = np.array([13, 4, 4, 2, 8, 20, 6, 10, 40])  # frames of 1/40 s, the first word 3 frames early
    assert token_times(piece, durations) == [
        (pytest.approx(10 / 40), pytest.approx(19 / 40)),
        (pytest.approx(19 / 40), pytest.approx(28 / 40)),
        None,
        (pytest.approx(51 / 40), pytest.approx(64 / 40)),
    ]


def test_symbols_that_the_model_lacks_do_not_shift_the_times():
    durations = np.array([3, 10, 10, 10, 5])
    (first, last) = token_times(only([word("aǂ"), word("ǂb", has_space=False)]), durations)
    assert first == (0.0, pytest.approx(15 / 40))
    assert last == (pytest.approx(15 / 40), pytest.approx(30 / 40))


def test_a_space_at_the_beginning_does_not_shift_the_times():
    piece = only([word(""), word("ab", has_space=False)])
    assert piece.phonemes == "ab"
    assert token_times(piece, np.array([3, 10, 10, 5])) == [None, (0.0, pytest.approx(0.5))]


def test_words_count_over_all_chunks():
    words = WordTimes("one two's three", RATE)
    first = words.place([Token("w", 0, 3)], [(0.3, 0.6)], shift_s=-0.2, samples=RATE)
    tokens = [Token("t", 4, 7, False), Token("s", 7, 9), Token("θ", 10, 15)]
    second = words.place(tokens, [(0.1, 0.3), (0.3, 0.4), (0.5, 9.0)], shift_s=0.0, samples=RATE)
    assert first == (WordTime(0, 3, pytest.approx(0.1), pytest.approx(0.4)),)
    assert second == (WordTime(4, 9, 1.1, 1.4), WordTime(10, 15, 1.5, 2.0))


# --- phonemes -------------------------------------------------------------------------------------------------------


def placed(letter: str, text: str) -> list[str]:
    tokens = phonemizer(letter)(text)
    assert all(one.end <= other.start for one, other in pairwise(tokens))
    return [text[token.start : token.end] for token in tokens]


def test_english_tokens_know_their_place():
    text = " I  don't\nsay [New York](/nu jˈɔɹk/) now."
    assert placed("a", text) == ["I", "don't", "say", "New York", "now", "."]


def test_words_of_a_language_of_espeak_know_their_place():
    text = "Qu'est-ce que c'est, [Kokoro](/kokoʁo/) ? Oui."
    assert placed("f", text) == ["Qu'est-ce", "que", "c'est,", "[Kokoro](/kokoʁo/)", "?", "Oui."]


def test_words_are_phonemised_beside_each_other():
    amis = phonemizer("f")("les amis")
    assert [token.phonemes for token in amis] == ["lez", "amˈi"]


def test_digits_without_end_do_not_break_the_engine():
    with suppress(EngineFailed):
        phonemizer("a")("9" * 400)


def test_a_language_that_there_is_not_is_a_bad_request():
    with pytest.raises(BadRequest):
        phonemizer("x")


def test_what_a_missing_phonemiser_needs_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.engines.kokoro_text.find_spec", lambda _: None)
    assert not is_spoken("j")
    with pytest.raises(BadRequest, match=r"misaki\[ja\]"):
        phonemizer("j")
