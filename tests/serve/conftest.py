"""One application on scripted engines behind real Ray Serve, for all tests of this folder that do not need their own."""

from collections.abc import Iterator

import pytest

from loadtest.application import Application, application

SLOW_VOICE = {
    "llm": {
        "scripted": {
            "first_token_s": 0.1,
            "tokens_per_s": 8,
            "answer_words": 60,
            "calls": ['{"city":"Paris"}'],  # made only where tools are offered
        }
    },
    "tts": {"scripted": {"first_audio_s": 0.1, "word_s": 0.3, "realtime_factor": 0.9}},
    "limits": {"max_sessions_per_replica": 60},
    "turn_taking": {"drafts_per_turn": 0},  # calls that are cancelled are counted
}
"""Both engines are still at work while the answer is heard."""


@pytest.fixture(scope="session")
def app() -> Iterator[Application]:
    with application(args=SLOW_VOICE) as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A process holds one cluster at a time: tests that start their own come before those that share `app`."""
    items.sort(key=lambda item: "app" in getattr(item, "fixturenames", ()))
