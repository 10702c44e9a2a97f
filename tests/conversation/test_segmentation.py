import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.conversation.segmentation import (
    FIRST_MAX_CHARS,
    MAX_CHARS,
    MAX_WORDS,
    SpeechSegmenter,
    is_speakable,
)


def segments(*pushed: str) -> list[str]:
    segmenter = SpeechSegmenter()
    return [piece for text in pushed for piece in segmenter.push(text)] + segmenter.flush()


def test_the_first_segment_is_a_short_clause_and_the_others_are_sentences() -> None:
    assert segments("Of course I can, and gladly. First, take the eggs. Then") == [
        "Of course I can,",
        " and gladly.",
        " First, take the eggs.",
        " Then",
    ]


def test_a_segment_is_ready_when_the_space_behind_its_end_arrives() -> None:
    segmenter = SpeechSegmenter()
    assert segmenter.push("Of course I can.") == []
    assert segmenter.push(" ") == ["Of course I can."]


def test_a_first_clause_that_is_over_at_once_is_not_cut_off() -> None:
    assert segments("Well, of course, gladly.") == ["Well, of course,", " gladly."]


def test_a_line_ends_a_segment() -> None:
    assert segments("Things to buy\neggs\nmilk") == ["Things to buy\n", "eggs\n", "milk"]


def test_closing_quotes_stay_with_their_sentence() -> None:
    assert segments('He said "come here." Then he left.') == ['He said "come here."', " Then he left."]


@pytest.mark.parametrize(
    "sentence",
    [
        "All right now, ask Dr. Brown about it.",
        "All right now, it opens at 8 a.m. on Sundays.",
        "All right now, John F. Kennedy said so.",
        "All right now, pi is 3.14159 or so.",
    ],
)
def test_a_dot_within_a_sentence_does_not_end_it(sentence: str) -> None:
    assert segments(sentence + " Good.") == [
        "All right now,",
        sentence.removeprefix("All right now,"),
        " Good.",
    ]


def test_a_sentence_may_end_in_i_or_in_dots() -> None:
    assert segments("All right now, so did I. And they... Well.") == [
        "All right now,",
        " so did I.",
        " And they...",
        " Well.",
    ]


def test_without_punctuation_the_first_segment_is_cut_between_words() -> None:
    first, second = segments("one two three four five six seven eight nine ten eleven twelve")
    assert first == "one two three four five six seven eight nine"
    assert second == " ten eleven twelve"
    assert len(first) <= FIRST_MAX_CHARS


def test_later_segments_are_cut_after_so_many_words() -> None:
    text = "Here you go, " + " ".join(["la"] * 100)
    assert [len(piece.split()) for piece in segments(text)] == [3, MAX_WORDS, MAX_WORDS, 100 - 2 * MAX_WORDS]


def test_a_text_without_spaces_is_cut_by_length() -> None:
    assert [len(piece) for piece in segments("x" * 1000)] == [
        48,
        MAX_CHARS,
        MAX_CHARS,
        1000 - 48 - 2 * MAX_CHARS,
    ]


def test_chinese_sentences_are_found_without_spaces() -> None:
    assert segments("你好，今天天气很好我们去吧！！我们走吧。好") == [
        "你好，今天天气很好我们去吧！！",
        "我们走吧。",
        "好",
    ]


@pytest.mark.parametrize("tail", ["", "  ", " 🙂", "...", '"'])
def test_a_tail_without_words_is_not_spoken(tail: str) -> None:
    assert segments("Here you are. " + tail) == ["Here you are."]


def test_punctuation_alone_is_never_a_segment() -> None:
    assert segments("...! ... ?! - - -\n\n") == []
    assert segments("- " * 60 + "and so it is. Yes.") == ["- " * 60 + "and so it is.", " Yes."]


def test_one_burst_is_cut_as_short_as_a_stream_is() -> None:
    text = "there is no comma in this sentence for quite a long time, but here is one"
    assert segments(text)[0] == "there is no comma in this sentence for quite a"


TEXTS = st.lists(
    st.sampled_from(
        [
            "hello",
            "I",
            "Dr",
            "a.m",
            "3",
            "word",
            " ",
            " ",
            " ",
            "  ",
            "\n",
            ".",
            ",",
            "!",
            "...",
            '"',
            "—",
            "。",
            "！",
            "你好",
        ]
    ),
    max_size=150,
).map("".join)


@given(text=TEXTS, cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_the_pieces_do_not_depend_on_the_tokens_and_join_to_the_text(text: str, cuts: list[int]) -> None:
    tokens, rest = [], text
    while rest:
        cut = cuts[len(tokens) % len(cuts)]
        tokens.append(rest[:cut])
        rest = rest[cut:]
    pieces = segments(*tokens)
    assert pieces == segments(*text) == segments(text)
    joined = "".join(pieces)
    assert text.startswith(joined)
    assert not is_speakable(text[len(joined) :])
    assert all(is_speakable(piece) for piece in pieces)


@given(TEXTS)
def test_no_piece_is_too_long_once_it_has_words(text: str) -> None:
    for i, piece in enumerate(segments(text)):
        words = re.search(r"\w.*", piece, re.DOTALL)
        assert words is not None
        limit = FIRST_MAX_CHARS if i == 0 else MAX_CHARS
        assert len(piece) <= limit or not is_speakable(piece[:limit])
        assert (
            i == 0 or len(piece.split()) <= MAX_WORDS or not is_speakable(" ".join(piece.split()[:MAX_WORDS]))
        )


def test_pieces_come_as_early_as_they_can() -> None:
    """Each push gives what its last character completes: no segment waits for a later one."""
    segmenter, text = SpeechSegmenter(), "Of course I can, and gladly. First, take the eggs. Then rest."
    at = [i for i, char in enumerate(text) if segmenter.push(char)]
    assert at == [text.index(" and"), text.index(" First"), text.index(" Then")]
    assert all(a < b for a, b in pairwise(at))
