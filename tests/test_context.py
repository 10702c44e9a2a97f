"""The window: what is dropped, what never is, and that the cut does not wander."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.context import estimate, fit, with_question
from deployments.interfaces import BadRequest, ChatMessage, Role, Tool, ToolCall, Tools

SYSTEM = ChatMessage("system", "s" * 10)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def agent(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


def letters(messages: Sequence[ChatMessage]) -> int:
    """One token a letter and two a message."""
    return sum(len(message.content) + 2 for message in messages)


def fitted(messages: Sequence[ChatMessage], *, window: int, reserve: int = 0) -> Sequence[ChatMessage]:
    return fit(messages, window=window, reserve=reserve, count=letters, engine="some")


def conversation(turns: int, size: int = 8) -> list[ChatMessage]:
    return [SYSTEM, *(m for i in range(turns) for m in (user(f"{i:0{size}}"), agent(f"{i:0{size}}")))]


# --- examples -------------------------------------------------------------------------------------------------------


def test_what_fits_is_left_as_it_is():
    messages = conversation(4)
    assert fitted(messages, window=letters(messages) + 1) is messages


def test_the_oldest_turns_go_and_the_prompt_stays():
    messages = conversation(10)  # 12 tokens of prompt, 20 a turn
    assert fitted(messages, window=153) == [SYSTEM, *messages[-12:]]


def test_room_for_the_answer_is_kept():
    messages = conversation(4)
    assert fitted(messages, window=letters(messages) + 10, reserve=10) is messages
    assert fitted(messages, window=letters(messages) + 10, reserve=11) != messages


def test_an_answer_as_long_as_the_window_does_not_cost_the_whole_conversation():
    kept = fitted(conversation(10), window=200, reserve=200)
    assert len(kept) > 3


def test_a_long_question_is_answered_shortly_rather_than_refused():
    question = [SYSTEM, user("q" * 150)]
    assert fitted([*question[:1], user("a"), agent("b"), *question[1:]], window=200, reserve=90) == question


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_newest_turn_that_does_not_fit_alone_is_a_bad_request(earlier: int):
    messages = [*conversation(earlier), user("q" * 200)]
    with pytest.raises(BadRequest, match=r"214 tokens.*context size of 200") as raised:
        fitted(messages, window=200)
    assert (raised.value.stage, raised.value.engine) == ("llm", "some")


def test_a_prompt_that_leaves_no_room_for_one_token_is_a_bad_request():
    with pytest.raises(BadRequest):
        fitted([SYSTEM, user("q" * 6)], window=20)
    assert fitted([SYSTEM, user("q" * 5)], window=20, reserve=5)


def test_a_greeting_is_the_first_to_go():
    messages = [SYSTEM, agent("hello" * 10), user("hi"), agent("yes"), user("now")]
    assert fitted(messages, window=41) == [SYSTEM, *messages[2:]]


def test_a_question_that_nobody_answered_belongs_to_the_one_after_it():
    messages = [SYSTEM, user("a" * 50), agent("b"), user("one"), user("two")]
    assert fitted(messages, window=40) == [SYSTEM, user("one"), user("two")]


def test_a_note_to_the_model_stays_with_the_question_that_it_was_written_for():
    note = ChatMessage("system", "note")
    messages = [SYSTEM, user("a" * 50), agent("b"), note, user("one"), agent("c"), user("two")]
    assert fitted(messages, window=50) == [SYSTEM, *messages[3:]]
    assert fitted(messages, window=30) == [SYSTEM, user("two")]


def test_a_prompt_alone_is_no_turn():
    assert fitted([SYSTEM], window=20) == [SYSTEM]
    with pytest.raises(BadRequest):
        fitted([SYSTEM], window=12)


def test_a_cut_stays_where_it_is_for_a_quarter_of_the_window():
    """Each cut is a prompt computed anew: 100 turns through a window of 20 must not mean 80 of them."""
    firsts = [fitted(conversation(turns), window=410)[1].content for turns in range(1, 101)]
    assert len(set(firsts)) < 20
    assert firsts == sorted(firsts)


def test_a_long_prompt_does_not_cost_the_turns_that_would_fit():
    messages = [ChatMessage("system", "s" * 160), *conversation(4)[1:]]
    assert len(fitted(messages, window=220)) == 1 + 2 * 2


def test_a_long_conversation_is_counted_a_few_times_and_not_once_a_turn():
    counted = []

    def count(messages: Sequence[ChatMessage]) -> int:
        counted.append(len(messages))
        return letters(messages)

    kept = fit(conversation(300), window=800, reserve=100, count=count, engine="some")
    assert len(kept) > 40
    assert len(counted) <= 4


def test_an_estimate_is_more_than_the_tokens_of_a_text():
    text = "The quick brown fox jumps over the lazy dog, and nobody knows why it should."
    assert 17 < estimate([user(text)]) < 60
    assert estimate([]) == 0
    assert estimate([user("日本語")]) == 3 + 8


# --- properties -----------------------------------------------------------------------------------------------------

ROLES: list[Role] = ["system", "user", "assistant"]
MESSAGES = st.lists(
    st.builds(ChatMessage, st.sampled_from(ROLES), st.text("abc", min_size=1, max_size=30)), max_size=30
)


def starts_of_turns(messages: Sequence[ChatMessage]) -> set[int]:
    """Where a conversation may be cut, told independently: before a user's or a system's word that follows an answer,
    and before the first message that is not of the prompt."""
    spoken = [i for i, m in enumerate(messages) if any(x.role != "system" for x in messages[: i + 1])]
    first = spoken[0] if spoken else len(messages)
    follows = {
        i
        for i in range(first + 1, len(messages))
        if messages[i].role != "assistant" and messages[i - 1].role == "assistant"
    }
    return {first} | follows


@given(MESSAGES, st.integers(1, 300), st.integers(0, 300))
def test_a_conversation_is_cut_between_turns_or_refused(
    messages: list[ChatMessage], window: int, reserve: int
):
    starts = starts_of_turns(messages)
    prompt = messages[: min(starts)]
    newest = [*prompt, *messages[max(starts) :]]
    try:
        kept = list(fitted(messages, window=window, reserve=reserve))
    except BadRequest:
        assert letters(newest) >= window
        return
    room = window - max(1, min(reserve, window // 2))
    assert kept[: len(prompt)] == prompt
    tail = kept[len(prompt) :]
    assert messages[len(messages) - len(tail) :] == tail
    assert len(messages) - len(tail) in starts
    assert letters(kept) <= room or kept == newest
    assert letters(kept) < window
    if letters(messages) <= room:
        assert kept == messages


@given(MESSAGES, st.integers(50, 300), st.integers(0, 100))
def test_no_more_than_a_block_is_given_away(messages: list[ChatMessage], window: int, reserve: int):
    try:
        kept = list(fitted(messages, window=window, reserve=reserve))
    except BadRequest:
        return
    starts = sorted(starts_of_turns(messages))
    cut = len(messages) - (len(kept) - starts[0])
    room = window - max(1, min(reserve, window // 2))
    if cut > starts[0]:
        before = starts[starts.index(cut) - 1]
        longer = [*messages[: starts[0]], *messages[before:]]
        assert letters(longer) > room - max(1, room // 4)


def test_a_turn_is_not_dropped_that_just_fits():
    messages = [SYSTEM, user("a" * 10), agent("b" * 10), user("c" * 18), agent("d" * 18), user("e" * 28)]
    assert letters(messages[3:]) + letters(messages[:1]) == 82
    assert fitted(messages, window=83) == [SYSTEM, *messages[3:]]


@given(MESSAGES, st.integers(50, 300), st.integers(0, 100))
def test_what_was_kept_fits_again(messages: list[ChatMessage], window: int, reserve: int):
    try:
        kept = fitted(messages, window=window, reserve=reserve)
    except BadRequest:
        return
    assert fitted(kept, window=window, reserve=reserve) == kept


def test_a_prompt_that_is_read_ahead_ends_with_a_question() -> None:
    assert with_question([SYSTEM]) == [SYSTEM, user("Hello")]
    assert with_question([SYSTEM, user("a"), agent("b")]) == [SYSTEM, user("a"), agent("b"), user("Hello")]
    assert with_question([SYSTEM, user("a")]) == [SYSTEM, user("a")], "what is said next goes on from there"


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_turn_with_a_call_goes_whole_or_stays_whole():
    made = ToolCall("c", "get_weather", "x" * 30)
    turns = [
        [
            user(str(i)),
            ChatMessage("assistant", "", (made,)),
            ChatMessage("tool", "ok", call_id="c"),
            agent("Fine."),
        ]
        for i in range(6)
    ]
    messages = [SYSTEM, *(message for turn in turns for message in turn)]
    for window in range(120, 330):
        kept = list(fit(messages, window=window, reserve=0, count=estimate, engine="some"))
        assert kept == [SYSTEM, *messages[len(messages) - len(kept) + 1 :]]
        assert (len(kept) - 1) % 4 == 0, "no call without its output"


def test_the_estimate_counts_calls_and_tools():
    plain = [user("hello")]
    tool = Tool("get_weather", "d" * 30, "p" * 300)
    assert estimate(plain, Tools((tool,))) >= estimate(plain) + 110
    made = ChatMessage("assistant", "", (ToolCall("c", "get_weather", "x" * 300),))
    assert estimate([made]) >= 100
