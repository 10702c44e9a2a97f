"""Simulated callers against the real server in memory, on a clock that is a number."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ingress.asgi import server_of
from memory_line import Exchange
from session.calls import FAST_TTS, ToneDetector, scripted, tone
from session.faulty import Fault, FaultyChatModel
from session.virtual import the_loop, virtual_time

from deployments.options import ScriptedLlm
from loadtest.ledger import Ledger
from loadtest.moves import returns
from loadtest.pacing import Lateness
from loadtest.people import (
    BARGE_IN,
    BROKEN_OFF,
    LOST,
    OPENED,
    REFUSED,
    RESUMED,
    STAGE,
    STALE,
    TURN,
    Habits,
    Outcome,
    Person,
)
from loadtest.voices import Clip, clip
from serve_app.session.stages import Engines
from serve_app.stores.memory import MemoryStore

APOLOGY = "Sorry about that."
HABITS = Habits(think_s=(0.5, 1.5), barge_in_share=0.0, missed_after_s=5.0, again_after_s=(0.5, 1.0))
LONG = ScriptedLlm(first_token_s=0.1, tokens_per_s=50, answer_words=40)


def said(seconds: float = 0.8) -> Clip:
    """A tone behind a tenth of a second of quiet."""
    quiet = np.zeros(2400, np.float32)
    return clip("tone", np.concatenate([quiet, tone(0, int(seconds * 24_000), 24_000)]))


class Callers:
    def __init__(self, exchange: Exchange, habits: Habits, count: int) -> None:
        self.outcomes: list[Outcome] = []
        self.exchange = exchange
        self.ledgers = [Ledger(APOLOGY) for _ in range(count)]
        self.lateness = Lateness()
        silence = (clip("silence", np.zeros(480, np.float32)).frames[0],)
        self.people = [
            Person(
                f"caller {number}",
                "ws://voice.test/v1/realtime",
                [said()],
                silence,
                habits,
                self.outcomes.append,
                self.lateness,
                self.ledgers[number],
                clock=the_loop().time,
                connect=exchange.connect,
            )
            for number in range(count)
        ]

    def all(self, name: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.name == name]

    def failures(self) -> list[tuple[str, str]]:
        return [(outcome.name, outcome.failure) for outcome in self.outcomes if outcome.failure]


@asynccontextmanager
async def calling(
    *, engines: Engines | None = None, habits: Habits = HABITS, count: int = 1, **config: Any
) -> AsyncIterator[Callers]:
    engines = engines or scripted(tts=FAST_TTS)
    callers = Callers(Exchange(server_of(engines=engines, apology=APOLOGY, **config)), habits, count)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(person.live()) for person in callers.people]
        yield callers
        for task in running:
            task.cancel()


@virtual_time
async def test_a_caller_tells_of_every_turn_and_its_stages():
    async with calling() as callers:
        await asyncio.sleep(30)
    turns = callers.all(TURN)
    assert len(turns) >= 4
    assert callers.failures() == []
    assert len(callers.all(OPENED)) == 1
    assert len(callers.all(STAGE + "overhead")) >= len(turns) - 1
    for turn, endpointing in zip(turns, callers.all(STAGE + "endpointing"), strict=False):
        assert 499 <= turn.ms <= 560, (
            "the silence that ends a turn, and next to nothing: the answer is drafted"
        )
        assert endpointing.ms == pytest.approx(500, abs=40)
    assert callers.lateness.percentile_ms(1.0) <= 0.1
    assert [turn.failure for turn in callers.ledgers[0].turns] == [""] * len(turns)


@virtual_time
async def test_a_turn_is_measured_from_the_last_speech_to_the_first_sound():
    """With every stage slower by a known time, turns are longer by just that."""
    slow = ScriptedLlm(first_token_s=1.0, tokens_per_s=1000, answer_words=4)
    engines = scripted(llm=slow, tts=replace(FAST_TTS, first_audio_s=0.5))
    async with calling(engines=engines, turn_taking={"drafts_per_turn": 0}) as callers:
        await asyncio.sleep(20)
    for turn in callers.all(TURN):
        assert turn.ms == pytest.approx(500 + 1000 + 500, abs=45)


@virtual_time
async def test_a_barge_in_is_timed_from_the_onset_of_speech_to_the_last_old_sound():
    habits = replace(HABITS, barge_in_share=1.0)
    async with calling(engines=scripted(llm=LONG, tts=FAST_TTS), habits=habits) as callers:
        await asyncio.sleep(30)
    stops = callers.all(BARGE_IN)
    assert len(stops) >= 5
    assert callers.failures() == []
    for stop in stops:
        assert 0 < stop.ms <= 200, "three frames of 32 ms, a packet of 20 ms and the socket"


@virtual_time
async def test_a_server_that_does_not_give_way_is_told_of():
    habits = replace(HABITS, barge_in_share=1.0)
    engines = scripted(llm=LONG, tts=FAST_TTS)
    async with calling(engines=engines, habits=habits, turn_taking={"interruption_min_ms": 2000}) as callers:
        await asyncio.sleep(20)
    assert (BARGE_IN, "speech over the answer did not interrupt it") in callers.failures()


@virtual_time
async def test_sound_of_an_answer_that_was_interrupted_is_told_of():
    habits = replace(HABITS, barge_in_share=1.0)
    async with calling(engines=scripted(llm=LONG, tts=FAST_TTS), habits=habits) as callers:
        await asyncio.sleep(12)
        person = callers.people[0]
        old = person._interrupted
        assert old is not None
        stale = f'{{"type":"response.output_audio.delta","item_id":"{old.item_id}","delta":"AAAA"}}'
        callers.exchange.lines[0].deliver(stale)
    assert len(callers.all(STALE)) == 1


@virtual_time
async def test_a_full_server_refuses_and_that_is_no_failure():
    async with calling(count=2, limits={"max_sessions_per_replica": 1}) as callers:
        await asyncio.sleep(10)
    assert len(callers.all(OPENED)) == 1
    assert len(callers.all(REFUSED)) >= 5
    assert callers.failures() == []


@virtual_time
async def test_a_turn_without_a_sound_is_missed():
    hanging = FaultyChatModel(scripted().chat, [Fault("hangs")] * 99)
    engines = scripted(tts=FAST_TTS, chat=hanging)
    async with calling(engines=engines, timeouts={"llm_first_token_s": 60}) as callers:
        await asyncio.sleep(12)
    assert callers.failures()[0] == (TURN, "missed: no sound within 5 s")
    (seen, *_) = callers.ledgers[0].turns
    assert seen.silence_s == pytest.approx(5.0, abs=0.1)


@virtual_time
async def test_a_missed_turn_tells_whether_it_was_heard_at_all():
    class Deaf(ToneDetector):
        def probability(self, frame: Any) -> float:
            return 0.0

    async with calling(engines=scripted(tts=FAST_TTS, make_detector=Deaf)) as callers:
        await asyncio.sleep(12)
    assert callers.failures()[0] == (TURN, "missed: no sound within 5 s, nor was its end heard")


def broken(times: int, *, apologizes: bool = True) -> Any:
    chat = FaultyChatModel(scripted().chat, [Fault("fails")] * times)
    return calling(engines=scripted(tts=FAST_TTS, chat=chat), **({} if apologizes else {"apology": ""}))


@virtual_time
async def test_an_apology_is_heard_and_known_as_one():
    async with broken(6) as callers:
        await asyncio.sleep(15)
    first, *others = callers.ledgers[0].turns
    assert (first.is_apology, first.failure) == (True, "")
    assert first.silence_s < 1.0
    assert not others[-1].is_apology
    assert callers.all(BROKEN_OFF)[0].failure == "failed: engine_failed"


@virtual_time
async def test_a_lost_session_is_told_of_and_opened_anew():
    async with calling() as callers:
        await asyncio.sleep(10)
        assert len(callers.ledgers[0].items) >= 2
        callers.exchange.lines[0].break_down()
        await asyncio.sleep(10)
    assert [outcome.failure for outcome in callers.all(LOST)] == ["closed with 1006"]
    assert len(callers.all(OPENED)) + len(callers.all(RESUMED)) == 2
    assert callers.all(TURN)[-1].failure == ""


@virtual_time
async def test_the_callers_of_a_replica_that_goes_all_move_and_lose_nothing():
    store = MemoryStore(lambda: the_loop().time())
    engines = scripted(llm=ScriptedLlm(tokens_per_s=50, answer_words=24), tts=FAST_TTS)
    async with calling(engines=engines, store=store, count=8) as callers:
        await asyncio.sleep(10)
        leaving = callers.exchange.server
        callers.exchange.server = server_of(engines=engines, store=store, apology=APOLOGY)
        leaving.drain()
        await asyncio.sleep(20)
        assert (leaving.session_count, callers.exchange.server.session_count) == (0, 8)
    found = returns(callers.outcomes)
    assert (found.begun, found.lost, found.codes) == (8, 0, {"1012": 8})
    assert max(found.away_s) <= HABITS.again_after_s[1] + 0.1
    assert [ledger.resumptions for ledger in callers.ledgers] == [[True]] * 8
    assert {name for name, _ in callers.failures()} == {LOST}, "no turn was missed or cut"


@virtual_time
async def test_the_token_of_a_lost_session_is_kept_until_somebody_takes_it():
    async with calling(store=MemoryStore(lambda: the_loop().time())) as callers:
        await asyncio.sleep(10)
        exchange = callers.exchange
        exchange.is_away = True
        exchange.lines[0].break_down()
        await asyncio.sleep(5)
        exchange.is_away = False
        await asyncio.sleep(5)
    tries = exchange.addresses[1:]
    assert len(tries) > 3
    assert len(set(tries)) == 1
    assert "?resume=" in tries[0]
    assert len(callers.all(RESUMED)) == 1


@pytest.mark.parametrize("reason", ["server_draining", "server_full"])
@virtual_time
async def test_a_refusal_that_passes_does_not_cost_the_session(reason: str):
    limits = {"max_sessions_per_replica": 1}
    async with calling(store=MemoryStore(lambda: the_loop().time()), limits=limits) as callers:
        await asyncio.sleep(10)
        server = callers.exchange.server
        if reason == "server_draining":
            server.is_draining = True
        else:
            server._callers += 1
        callers.exchange.lines[0].break_down()
        await asyncio.sleep(5)
        assert len(callers.exchange.addresses) > 3
        server.is_draining, server._callers = False, 0
        await asyncio.sleep(5)
    assert [len([one for one in callers.all(name) if not one.failure]) for name in (OPENED, RESUMED)] == [
        1,
        1,
    ]
    assert callers.ledgers[0].forgotten == 0
    assert callers.ledgers[0].resumptions == [True]


@virtual_time
async def test_a_token_that_opens_nothing_is_not_shown_twice():
    store = MemoryStore(lambda: the_loop().time())
    async with calling(store=store) as callers:
        await asyncio.sleep(10)
        callers.exchange.is_away = True
        callers.exchange.lines[0].break_down()
        await asyncio.sleep(1)
        store.table.forget(callers.ledgers[0].session_id, 9, 0)
        callers.exchange.is_away = False
        await asyncio.sleep(10)
    *_, used, new = callers.exchange.addresses
    assert "resume=" in used
    assert "resume=" not in new
    assert callers.ledgers[0].forgotten == 1


@virtual_time
async def test_who_leaves_hangs_up_between_two_turns():
    async with calling(store=MemoryStore(lambda: the_loop().time())) as callers:
        await asyncio.sleep(10)
        callers.people[0].leave()
        await asyncio.sleep(20)
        assert callers.exchange.server.session_count == 0
        addresses = len(callers.exchange.addresses)
        await asyncio.sleep(20)
    assert len(callers.exchange.addresses) == addresses == 1
    assert callers.failures() == []


@virtual_time
async def test_who_leaves_while_cut_off_comes_back_to_hang_up():
    async with calling(store=MemoryStore(lambda: the_loop().time())) as callers:
        await asyncio.sleep(10)
        callers.exchange.lines[0].break_down()
        await asyncio.sleep(0)
        callers.people[0].leave()
        await asyncio.sleep(20)
        assert callers.exchange.server.session_count == 0
    assert len(callers.all(RESUMED)) == 1
    assert len(callers.exchange.addresses) == 2


@virtual_time
async def test_the_server_is_asked_whether_it_remembers_what_the_caller_does():
    async with calling() as callers:
        await asyncio.sleep(10)
        (ledger,), (person,) = callers.ledgers, callers.people
        asked: Sequence[str] = list(ledger.items)
        assert len(asked) >= 3
        for item_id in asked:
            person.line.tell("conversation.item.retrieve", item_id=item_id)
        await asyncio.sleep(0.5)
        assert ledger.is_intact(asked)
        ledger.items[asked[0]] = "something else"
        assert not ledger.is_intact(asked)
        ledger.items[asked[0]] = None
        assert ledger.is_intact(asked)
        del ledger.shown[asked[0]]
        assert not ledger.is_intact(asked)
