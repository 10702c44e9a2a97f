"""How long the silence after which words must be."""

import pytest

from serve_app.conversation.endpointing import WAITS, Completeness, EndpointingPolicy, completeness


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What time is it?", Completeness.FINISHED),
        ("Stop!", Completeness.FINISHED),
        ('He said "no."', Completeness.FINISHED),
        ("今日はいい天気です。", Completeness.FINISHED),
        ("I would like to", Completeness.OPEN),
        ("Well,", Completeness.OPEN),
        ("And then I thought ...", Completeness.OPEN),
        ("And then I thought…", Completeness.OPEN),
        ("so I went there and", Completeness.OPEN),
        ("um", Completeness.OPEN),
        ("the number is five five five", Completeness.OPEN),
        ("My number is 555.", Completeness.OPEN),
        ("call me at 0 1 7 one", Completeness.OPEN),
        ("I have two cats", Completeness.PLAIN),
        ("the year 42", Completeness.PLAIN),
        ("please call stella", Completeness.PLAIN),
        ("thank you", Completeness.PLAIN),
        ("I like it", Completeness.PLAIN),
        ("", Completeness.PLAIN),
        ("...", Completeness.PLAIN),
    ],
)
def test_words_tell_whether_more_is_to_come(text: str, expected: Completeness) -> None:
    assert completeness(text) is expected


def test_a_fixed_silence_is_the_same_whatever_was_said() -> None:
    policy = EndpointingPolicy(500)
    assert policy.delay(None) == policy.delay("well,") == policy.delay("Yes.") == 8000


@pytest.mark.parametrize("eagerness", list(WAITS))
def test_an_adaptive_wait_is_shorter_after_a_sentence_and_longer_after_a_conjunction(eagerness: str) -> None:
    policy = EndpointingPolicy(500, eagerness)  # type: ignore[arg-type]
    assert (
        policy.delay("Yes, I do.") < policy.delay("yes i do") == policy.delay(None) < policy.delay("yes and")
    )


def test_the_eager_wait_less() -> None:
    low, medium, high = (EndpointingPolicy(0, each) for each in ("low", "medium", "high"))  # type: ignore[arg-type]
    for words in ("Yes.", "yes", "and", None):
        assert high.delay(words) < medium.delay(words) < low.delay(words)
