import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.conversation.commands import Heard
from serve_app.conversation.events import ChunkId, ItemId, ResponseId, SegmentId, WordTime
from serve_app.conversation.playout import SPOKEN_CHARS_PER_S, Chunk, Playout, Segment, Utterance

LEAD_S = 0.25
CHUNK_S = 0.125


def words_of(text: str, word_s: float = 0.5) -> list[WordTime]:
    times, place = [], 0
    for i, word in enumerate(text.split()):
        place = text.index(word, place)
        times.append(WordTime(place, place + len(word), i * word_s, (i + 1) * word_s))
        place += len(word)
    return times


def begin(playout: Playout, name: str = "item") -> Utterance:
    return playout.begin(ItemId(name), ResponseId(f"resp_{name}"))


def add(utterance: Utterance, text: str, duration_s: float = 0.0) -> Segment:
    utterance.add_segment(SegmentId(len(utterance.segments)), text)
    segment = utterance.segments[-1]
    segment.words, segment.duration_s = words_of(text), duration_s
    return segment


def offer(playout: Playout, utterance: Utterance, *chunk_ids: int) -> None:
    for chunk_id in chunk_ids:
        playout.push(utterance, utterance.segments[-1], ChunkId(chunk_id), CHUNK_S)


def play(playout: Playout, now: float) -> Chunk | None:
    chunk = playout.pop(now)
    if chunk is not None:
        playout.sent(chunk.chunk_id, now)
    return chunk


def speaking(chunks: int = 8, *, name: str = "item") -> tuple[Playout, Utterance]:
    """A playout whose first chunks were sent at 10.0, as many as the lead allows."""
    playout = Playout(LEAD_S)
    utterance = begin(playout, name)
    add(utterance, "one two three four")
    offer(playout, utterance, *range(chunks))
    while play(playout, 10.0):
        pass
    return playout, utterance


def test_chunks_leave_at_once_up_to_the_lead_and_one_more() -> None:
    playout, utterance = speaking()
    assert utterance.sent_s == LEAD_S + CHUNK_S
    assert playout.due() == 10.125
    assert playout.pop(10.124) is None
    assert playout.pop(10.125).chunk_id == 3


def test_a_chunk_on_its_way_holds_back_the_next() -> None:
    playout = Playout(LEAD_S)
    utterance = begin(playout)
    add(utterance, "one")
    offer(playout, utterance, 1, 2)
    assert playout.pop(10.0).is_first_of_segment
    assert playout.due() is None
    assert playout.pop(99.0) is None
    assert playout.sent(ChunkId(2), 10.0) is None, "not the one awaited"
    assert playout.sent(ChunkId(1), 10.5).chunk_id == 1
    assert playout.sent(ChunkId(1), 10.5) is None
    assert not playout.pop(10.5).is_first_of_segment


def test_sound_is_with_the_user_until_it_was_played_not_until_it_was_sent() -> None:
    playout, utterance = speaking(2)
    assert playout.is_empty(utterance)
    assert playout.is_audible(10.24)
    assert not playout.is_audible(10.25)


def test_sound_that_waits_or_is_on_its_way_counts_as_audible() -> None:
    playout = Playout(LEAD_S)
    utterance = begin(playout)
    assert not playout.is_audible(10.0)
    add(utterance, "one")
    offer(playout, utterance, 1)
    assert playout.is_audible(10.0)
    playout.pop(10.0)
    assert playout.is_audible(10.0)
    assert not playout.is_empty(utterance)
    assert playout.unsent_s(utterance) == CHUNK_S


def test_what_waits_is_counted_for_each_answer_alone() -> None:
    playout, first = speaking(5)
    second = begin(playout, "second")
    add(second, "two")
    offer(playout, second, 10)
    assert (playout.unsent_s(first), playout.unsent_s(second)) == (2 * CHUNK_S, CHUNK_S)
    playout.drop(first)
    assert (playout.unsent_s(first), playout.unsent_s(second)) == (0, CHUNK_S)
    assert playout.pop(10.5).utterance is second


def test_dropping_takes_back_the_chunk_on_its_way() -> None:
    playout, utterance = speaking(4)
    playout.pop(10.125)
    playout.drop(utterance)
    assert playout.is_empty(utterance)
    assert playout.sent(ChunkId(3), 10.2) is None
    assert utterance.sent_s == 3 * CHUNK_S


def test_a_cut_leaves_only_the_words_that_were_played_to_their_end() -> None:
    playout, utterance = speaking(8)
    while playout.due() < 10.5:
        play(playout, playout.due())
    assert utterance.sent_s == 0.75
    assert playout.cut(10.5) == [(utterance, Heard("one", 500, is_estimated=False))]
    assert utterance.sent_text() == "one"
    assert not playout.is_audible(10.5)
    assert playout.cut(10.5) == [], "once"


def test_a_cut_in_the_tail_of_what_was_all_sent_still_cuts() -> None:
    playout, utterance = speaking(2)
    ((cut, heard),) = playout.cut(10.125)
    assert (cut, heard) == (utterance, Heard("", 125, is_estimated=False))


def test_what_was_played_to_its_end_is_not_cut() -> None:
    playout, utterance = speaking(2)
    assert playout.cut(10.25) == []
    assert utterance.cut_s is None


def test_a_gap_in_the_sound_does_not_count_as_played() -> None:
    playout, utterance = speaking(1)
    offer(playout, utterance, 10)
    play(playout, 20.0)
    assert utterance.played_s(15.0) == CHUNK_S
    assert utterance.played_s(20.0625) == CHUNK_S + 0.0625
    assert utterance.played_s(99.0) == utterance.sent_s == 2 * CHUNK_S


def test_only_the_last_answer_but_one_is_remembered() -> None:
    playout, first = speaking(1, name="first")
    second = begin(playout, "second")
    add(second, "two")
    offer(playout, second, 10)
    play(playout, 11.0)
    assert playout.utterance(ItemId("first")) is first
    third = begin(playout, "third")
    assert playout.utterance(ItemId("first")) is None
    assert playout.utterance(ItemId("second")) is second
    assert playout.utterance(ItemId("third")) is third


def test_an_answer_that_never_sounded_does_not_push_out_the_one_before() -> None:
    playout, first = speaking(2, name="first")
    begin(playout, "second")
    begin(playout, "third")
    assert playout.utterance(ItemId("second")) is None
    assert [cut for cut, _ in playout.cut(10.125)] == [first]


def test_the_client_falls_silent_only_in_what_still_sounds() -> None:
    playout, first = speaking(1, name="first")
    second = begin(playout, "second")
    add(second, "two")
    offer(playout, second, 10)
    play(playout, 10.0625)
    playout.fall_silent(first, 10.125)
    assert playout.is_audible(10.125)
    playout.fall_silent(second, 10.125)
    assert not playout.is_audible(10.125)


def test_heard_goes_on_over_segments_with_the_punctuation_that_clings_to_a_word() -> None:
    utterance = Utterance(ItemId("i"), ResponseId("r"))
    add(utterance, "Well, yes.", 1.0)
    add(utterance, " It is.", 1.0)
    utterance.note_sent(0.0, 2.0)
    said = {seconds: utterance.heard(seconds).text for seconds in (0.0, 0.49, 0.5, 1.0, 1.49, 1.5, 2.0, 9.0)}
    assert list(said.values()) == [
        "",
        "",
        "Well,",
        "Well, yes.",
        "Well, yes.",
        "Well, yes. It",
        "Well, yes. It is.",
        "Well, yes. It is.",
    ]
    assert utterance.heard(9.0).audio_ms == 2000
    assert utterance.sent_text() == "Well, yes. It is."
    utterance.cut_s = 0.5
    assert utterance.sent_text() == "Well,"


def test_segments_are_found_by_their_id_and_lie_behind_each_other() -> None:
    utterance = Utterance(ItemId("i"), ResponseId("r"))
    add(utterance, "one", 0.5)
    second = add(utterance, " two", 0.5)
    assert utterance.segment(SegmentId(1)) is second
    assert utterance.segment(SegmentId(7)) is None
    assert second.start_s == 0.5


def test_without_word_times_words_are_laid_out_by_their_length_and_said_to_be() -> None:
    utterance = Utterance(ItemId("i"), ResponseId("r"))
    segment = add(utterance, "aaaa bbbb cccc", 1.4)
    segment.words, segment.is_finished = [], True
    utterance.note_sent(0.0, 1.4)
    assert utterance.heard(0.39) == Heard("", 390, is_estimated=True)
    assert utterance.heard(0.4) == Heard("aaaa", 400, is_estimated=True)
    assert utterance.heard(0.9).text == "aaaa bbbb"


def test_a_segment_of_unknown_length_is_estimated_at_ordinary_speed() -> None:
    segment = Segment(SegmentId(1), "aaaa bbbb cccc", duration_s=0.1)
    assert segment.spoken_until(4 / SPOKEN_CHARS_PER_S - 0.01) == 0
    assert segment.spoken_until(4 / SPOKEN_CHARS_PER_S) == 4


@pytest.mark.parametrize(
    "words", [[WordTime(0, 3, 0.0, 0.4), WordTime(4, 7, 0.4, 9.9)], [WordTime(0, 3, 0.0, 0.4)]]
)
def test_a_segment_played_to_its_end_was_heard_whole_whatever_its_word_times_say(
    words: list[WordTime],
) -> None:
    segment = Segment(SegmentId(1), "one two", duration_s=1.0, is_finished=True, words=words)
    assert segment.spoken_until(0.99) == 3
    assert segment.spoken_until(1.0) == 7


def test_punctuation_is_heard_with_the_word_that_it_clings_to() -> None:
    segment = Segment(
        SegmentId(1), '"Well," he said', words=[WordTime(1, 5, 0.0, 0.5), WordTime(8, 10, 0.5, 1.0)]
    )
    heard = [segment.text[: segment.spoken_until(seconds)] for seconds in (0.4, 0.5, 1.0)]
    assert heard == ["", '"Well,"', '"Well," he']


def test_an_end_without_words_belongs_to_the_last_word() -> None:
    segment = Segment(SegmentId(1), 'one two!" 🙂', duration_s=2.0, words=words_of("one two"))
    assert segment.spoken_until(1.0) == len(segment.text)
    assert segment.spoken_until(0.4) == 0


@given(
    lead_s=st.sampled_from([0.0, 0.25, 1.0]),
    chunks=st.lists(st.sampled_from([0.0625, 0.125, 0.5]), min_size=1, max_size=12),
    delays=st.lists(st.sampled_from([0.0, 0.0625, 0.75]), min_size=1),
    stop=st.floats(0.0, 8.0),
)
def test_pacing_keeps_the_lead_and_knows_what_was_played(
    lead_s: float, chunks: list[float], delays: list[float], stop: float
) -> None:
    """Against a player that plays what it has at 1x; the socket takes `delays`."""
    playout, now, ends, spans = Playout(lead_s), 0.0, 0.0, []
    utterance = begin(playout)
    add(utterance, "word")
    for chunk_id, duration_s in enumerate(chunks):
        playout.push(utterance, utterance.segments[0], ChunkId(chunk_id), duration_s)
    for i, duration_s in enumerate(chunks):
        now = max(now, playout.due())
        assert playout.pop(now).chunk_id == i
        now += delays[i % len(delays)]
        spans.append((max(now, ends), max(now, ends) + duration_s))
        ends = spans[-1][1]
        playout.sent(ChunkId(i), now)
        assert ends - now <= lead_s + duration_s
    assert playout.due() is None
    played = sum(min(max(stop - start, 0.0), end - start) for start, end in spans)
    assert utterance.played_s(stop) == pytest.approx(played)
    assert playout.is_audible(stop) == (stop < ends)
