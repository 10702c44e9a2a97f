"""Tokens that travel together: the same answer, spoken as early."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from hypothesis import given
from hypothesis import strategies as st
from session.virtual import the_loop, virtual_time

from deployments.gathering import GATHER_S, gathered
from deployments.interfaces import ChatDelta, ToolCallDelta, Usage
from serve_app.conversation.segmentation import SpeechSegmenter

Timed = list[tuple[float, ChatDelta]]
LAST = ChatDelta("", "stop", Usage(7, 9))


def of(*words: str) -> list[ChatDelta]:
    return [*(ChatDelta(word) for word in words), LAST]


async def sent(deltas: Sequence[ChatDelta], gaps_s: Sequence[float]) -> Timed:
    """Each that comes out, and when, of a stream with these waits before its items."""

    async def stream() -> AsyncIterator[ChatDelta]:
        for delta, gap_s in zip(deltas, gaps_s, strict=True):
            await asyncio.sleep(gap_s)
            yield delta

    began = the_loop().time()
    async with aclosing(gathered(stream())) as out:
        return [(the_loop().time() - began, delta) async for delta in out]


def texts(timed: Timed) -> list[str]:
    return [delta.text for _, delta in timed]


@virtual_time
async def test_what_somebody_waits_for_passes_at_once_and_the_middle_of_a_clause_goes_together():
    answer = of("Well", ",", " the", " rain", " in", " Spain", " stays", " there", ".", " Now", " go")
    found = await sent(answer, [0.01] * 12)
    assert texts(found) == ["Well", ",", " the", " rain in Spain stays there.", " Now", " go"]
    assert [round(at, 2) for at, _ in found] == [0.01, 0.02, 0.03, 0.09, 0.1, 0.12]
    assert [delta.tokens for _, delta in found] == [1, 1, 1, 6, 1, 1]
    assert found[-1][1].usage == LAST.usage
    assert found[-1][1].finish_reason == "stop"


@virtual_time
async def test_no_word_is_held_longer_than_it_may():
    found = await sent(of(*[" word"] * 20), [0.02] * 21)
    assert [delta.tokens for _, delta in found] == [1, 4, 4, 4, 4, 3]


@virtual_time
async def test_a_slow_models_words_are_seen_one_by_one():
    found = await sent(of("a", " b", " c"), [GATHER_S + 0.01] * 4)
    assert texts(found) == ["a", " b", " c", ""]


@virtual_time
async def test_a_call_takes_the_words_before_it_along():
    call = ChatDelta("", call=ToolCallDelta(0, "c1", "look_up"))
    found = await sent([ChatDelta("One"), ChatDelta(" moment"), call, LAST], [0.01] * 4)
    assert texts(found) == ["One", " moment", ""]
    assert found[1][1].call == call.call


@virtual_time
async def test_what_is_held_when_a_stream_just_ends_is_not_lost():
    found = await sent([ChatDelta("One"), ChatDelta(" moment")], [0.01] * 2)
    assert texts(found) == ["One", " moment"]


PIECES = st.lists(
    st.sampled_from(
        [" a", " word", "s", ".", ",", " Dr.", '."', " ", "\n", "…", "—", "了", "。", "'s", " 3", ".5"]
    ),
    max_size=40,
)


@given(PIECES, st.randoms(use_true_random=False))
def test_whatever_the_tokens_the_text_is_the_same_and_each_clause_is_spoken_as_early(pieces, random):
    gaps = [random.choice([0.0, 0.005, 0.02, 0.08]) for _ in range(len(pieces) + 1)]

    @virtual_time
    async def check() -> None:
        stream = of(*pieces)
        found = await sent(stream, gaps)
        assert "".join(texts(found)) == "".join(pieces)
        assert sum(delta.tokens for _, delta in found) == len(pieces)
        at, direct = 0.0, []
        for gap, delta in zip(gaps, stream, strict=True):
            at += gap
            direct.append((at, delta))
        assert by_punctuation(found) == by_punctuation(direct)

    check()


def by_punctuation(timed: Timed) -> list[tuple[float, str]]:
    """The segments that are complete, and when; one that is cut for its length may be later."""
    segmenter, segments = SpeechSegmenter(), []
    for at, delta in timed:
        segments += [(round(at, 6), each) for each in segmenter.push(delta.text)]
    return segments if sum(len(delta.text) for _, delta in timed) < 48 else []
