"""The check of the drafts benchmark: it sees a trace of a dropped draft wherever there is one."""

from dataclasses import replace

import numpy as np
import pytest

from loadtest.bench_drafts import LAST_QUESTION, Clip, Seen, Told, traces

CLIP = Clip("clip", np.zeros(1, np.float32), 1.0, 1)
PROMPT = (("user", "tell me more"), ("assistant", "Once upon"), ("user", LAST_QUESTION))


def seen() -> Seen:
    return Seen(
        "s",
        CLIP,
        0.0,
        "r2",
        1.0,
        responses={"r2"},
        words={"r2": "Once upon"},
        sound_s={"r2": 0.4},
        transcripts={"tell me", "more"},
    )


def told() -> Told:
    return Told(
        generated={"r1": "Wrong words", "r2": "Once upon a time"},
        started={"r2"},
        confirmed={"r2"},
        dropped={"r1": 2},
        played_s={"r2": 0.4},
        prompt=PROMPT,
    )


def test_a_session_without_a_trace() -> None:
    assert traces(seen(), told()) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"responses": {"r1", "r2"}}, "responses"),
        ({"words": {"r2": "Wrong words"}}, "words of r2"),
        ({"words": {"r1": "Wrong words", "r2": "Once upon"}}, "words of r1"),
        ({"sound_s": {"r2": 0.9}}, "sound of r2"),
        ({"sound_s": {"r1": 0.1, "r2": 0.4}}, "sound of r1"),
        ({"transcripts": {"tell me"}}, "prompt: user"),
        ({"words": {"r2": "Onc"}}, "prompt: assistant"),
    ],
)
def test_a_trace_on_the_wire_is_found(change: dict[str, object], what: str) -> None:
    found = traces(replace(seen(), **change), told())
    assert any(trace.startswith(what) for trace in found)


@pytest.mark.parametrize(
    "prompt",
    [
        (("user", "tell me more"), ("assistant", "Wrong words"), ("user", LAST_QUESTION)),
        PROMPT[:2],
    ],
)
def test_a_trace_in_the_history_is_found(prompt: tuple[tuple[str, str], ...]) -> None:
    assert traces(seen(), replace(told(), prompt=prompt))
