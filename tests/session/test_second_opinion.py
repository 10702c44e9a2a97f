"""The model that hears how a turn sounds, in a session: it is given the turn, and a session lives without its answer."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from session.calls import Call, calling, scripted
from session.virtual import virtual_time

from deployments.interfaces import EngineFailed
from serve_app.conversation.events import ServerVad, Settings, TurnJudged
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions
from serve_app.session.stages import Engines

SEMANTIC = Settings(instructions="Be brief.", voice="any", turn_detection=ServerVad(eagerness="low"))
JUDGING = SessionOptions(parameters=Parameters(judges_turns=True))


class Judge:
    def __init__(self, opinion: Callable[[], float], takes_s: float = 0.04) -> None:
        self._opinion, self._takes_s = opinion, takes_s
        self.heard_s: list[float] = []
        self.cancelled = 0

    async def completeness(self, pcm: bytes) -> float:
        self.heard_s.append(len(pcm) / 2 / 16_000)
        try:
            await asyncio.sleep(self._takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._opinion()


def broken() -> float:
    raise EngineFailed("it broke", stage="turn", engine="test")


def judged_by(judge: Judge | None) -> Engines:
    return replace(scripted(), turn_judge=judge)


def opinions(call: Call) -> list[float]:
    return [fact.completeness for fact, _ in call.recorder.facts if isinstance(fact, TurnJudged)]


async def waited(judge: Judge | None, options: SessionOptions = JUDGING) -> tuple[float, Call]:
    """From the end of two seconds of speech to the end of its turn."""
    async with calling(engines=judged_by(judge), options=options, settings=SEMANTIC) as call:
        call.says(at=0.5, for_s=2.0)
        await call.until("input_audio_buffer.committed")
        at = call.now - 2.5
        await call.until("response.done")
    return at, call


@virtual_time
async def test_it_is_given_the_turn_and_what_it_says_moves_the_wait() -> None:
    judge = Judge(lambda: 1.0)
    sooner, call = await waited(judge)
    assert opinions(call) == [1.0]
    [heard_s] = judge.heard_s
    assert 2.0 < heard_s < 2.6
    later, _ = await waited(Judge(lambda: 0.0))
    alone, _ = await waited(None, SessionOptions())
    assert sooner < alone < later


@virtual_time
async def test_one_that_breaks_costs_the_turn_nothing_and_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    at, call = await waited(Judge(broken))
    alone, _ = await waited(None, SessionOptions())
    assert at == alone
    assert opinions(call) == []
    assert "no opinion on the end of a turn" in caplog.messages


@virtual_time
async def test_an_opinion_on_an_older_pause_is_no_longer_waited_for() -> None:
    judge = Judge(lambda: 1.0, takes_s=60.0)
    async with calling(engines=judged_by(judge), options=JUDGING, settings=SEMANTIC) as call:
        call.says(at=0.5, for_s=1.0)
        call.says(at=1.8, for_s=1.0)
        await call.until("response.done")
        assert len(judge.heard_s) == 2
        assert judge.cancelled == 1
    assert judge.cancelled == 2, "and a hang-up leaves none behind"
