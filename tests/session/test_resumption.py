"""A session and its record: what is saved and when, how it goes on elsewhere, who may write, and how it moves away."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from session.calls import Call, append, calling, scripted, tone
from session.virtual import the_loop, virtual_time

from deployments.options import ScriptedLlm, ScriptedTts
from serve_app.conversation.events import ItemId, Returned
from serve_app.conversation.parameters import Parameters
from serve_app.conversation.plain import NotReadable
from serve_app.session.resumption import (
    Claimed,
    GuardedStore,
    Lease,
    NotResumable,
    ResumeOptions,
    SessionSnapshot,
    StoreUnavailable,
    Superseded,
    Token,
    claim,
)
from serve_app.session.transport import SERVICE_RESTART, SUPERSEDED, Ending
from serve_app.stores.memory import MemoryStore

OPTIONS = ResumeOptions(within_s=60)
LONG = {
    "llm": ScriptedLlm(first_token_s=0.1, tokens_per_s=30.0, answer_words=40),
    "tts": ScriptedTts(first_audio_s=0.1, word_s=0.25),
}
WORD_S = 0.25


class Store(MemoryStore):
    """Counts its calls, and is slow or broken when told to."""

    def __init__(self) -> None:
        super().__init__(the_loop().time)
        self.saves: list[tuple[float, str]] = []
        self.calls = 0
        self.problem: Exception | None = None
        self.takes_s = 0.0
        self.at_once = 0
        self.most_at_once = 0

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.at_once -= 1
        if self.problem is not None:
            raise self.problem
        await super().save(session_id, generation, token_hash, snapshot, expires_s)
        self.saves.append((the_loop().time(), snapshot))


def new_lease(store: Any) -> Lease:
    return Lease(GuardedStore(store, OPTIONS), OPTIONS, "test")


@asynccontextmanager
async def resumable(store: Any, **options: Any) -> AsyncIterator[Call]:
    options = {"engines": scripted(**LONG), "lease": new_lease(store)} | options
    async with calling(**options) as call:
        yield call


@asynccontextmanager
async def back(store: Any, token: str, **options: Any) -> AsyncIterator[Call]:
    lease = await claim(GuardedStore(store, OPTIONS), OPTIONS, token)
    assert lease.snapshot is not None
    options = {"settings": lease.snapshot.conversation.settings, "lease": lease} | options
    async with resumable(store, **options) as call:
        yield call


def token_of(call: Call) -> str:
    token: str = call.all("session.created")[0]["resume"]["token"]
    return token


# --- going on -------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_lost_socket_costs_what_was_not_heard_and_nothing_else():
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta", count=20)
        response = call.only("response.created")["response"]["id"]
        sent_ms = sum(len(sound.audio) for sound in call.player.sounds) * 1000 / 24_000
        call.transport.hang_up()
        await call.until(lambda: call.ending is not None)
        token = token_of(call)
    assert call.ending is not None
    assert call.ending.code == 1001
    async with back(store, token) as again:
        done = (await again.until("response.done"))["response"]
        assert (done["id"], done["status"]) == (response, "incomplete")
        heard_ms = int(done["metadata"]["heard.audio_ms"])
        assert sent_ms - 300 - 80 - 1 <= heard_ms <= sent_ms - 300 + 1, "what was sent, less the lead"
        whole = int(heard_ms / 1000 / WORD_S)
        assert len(done["metadata"]["heard.text"].split()) == whole
        resumed = again.only("session.resumed")
        assert [item["status"] for item in resumed["items"]] == ["completed", "incomplete"]
        again.says(for_s=0.5)
        await again.until("response.done", count=2)
        assert again.outcomes() == ["incomplete", "completed"]
        assert [role for role, _ in again.history()] == ["user", "assistant"] * 2
        ids = [item["id"] for item in resumed["items"]] + [
            e["item"]["id"] for e in again.all("conversation.item.added")
        ]
        assert len(set(ids)) == 4


@virtual_time
async def test_the_clients_position_is_taken_for_what_was_heard():
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta", count=20)
        item_id = call.player.sounds[-1].item_id
    async with back(store, token_of(call), returned=Returned(ItemId(item_id), 1010)) as again:
        done = (await again.until("response.done"))["response"]
        assert done["metadata"]["heard.audio_ms"] == "1010"
        assert len(done["metadata"]["heard.text"].split()) == 4
        assert again.only("conversation.item.truncated")["audio_end_ms"] == 1010


@virtual_time
async def test_killed_without_a_word_it_goes_on_from_the_last_save():
    """As after kill -9: only what had reached the store is known, and the client's position fills the gap."""
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta", count=40)
        item_id, now = call.player.sounds[-1].item_id, the_loop().time()
        saved_at, snapshot = store.saves[-1]
        token = token_of(call)
    assert now - saved_at < 1.3, "each second of sound is a change"
    dead = Store()
    await MemoryStore.save(dead, "test", 1, Token.parse(token).hash, snapshot, 60)
    async with back(dead, token, returned=Returned(ItemId(item_id), 2500)) as again:
        done = (await again.until("response.done"))["response"]
        assert done["metadata"]["heard.audio_ms"] == "2500"
        # The words of the segment that began to sound last may not have been known yet.
        assert 8 <= len(done["metadata"]["heard.text"].split()) <= 10


@virtual_time
async def test_an_open_turn_is_lost_and_the_client_is_told():
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=5)
        item_id = (await call.until("input_audio_buffer.speech_started"))["item_id"]
        await call.sleep_until(2.0)
    async with back(store, token_of(call)) as again:
        await again.until("session.resumed")
        assert again.only("session.resumed")["lost_items"] == [item_id]
        await again.sleep_until(3.0)
        assert again.outcomes() == []


@virtual_time
async def test_settings_and_formats_live_on():
    store = Store()
    async with resumable(store, microphone=False) as call:
        call.configure(instructions="Be long.", audio={"output": {"format": {"type": "audio/pcmu"}}})
        await call.until("session.updated")
    _, snapshot = store.saves[-1]
    kept = SessionSnapshot.from_json(snapshot)
    assert kept.output_format.value == "audio/pcmu"
    assert kept.conversation.settings.instructions == "Be long."
    assert kept.model == "voice"


@virtual_time
async def test_each_return_has_a_token_of_its_own():
    store = Store()
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
    tokens = [token_of(call)]
    for _ in range(3):
        async with back(store, tokens[-1], microphone=False) as again:
            await again.until("session.resumed")
            tokens.append(token_of(again))
    assert len(set(tokens)) == 4
    for used in tokens[:-1]:
        with pytest.raises(NotResumable):
            await claim(GuardedStore(store, OPTIONS), OPTIONS, used)


# --- what is saved, and when ----------------------------------------------------------------------------------------


@virtual_time
async def test_saves_follow_the_changes_and_are_far_apart():
    store = Store()
    async with resumable(store) as call:
        await call.sleep_until(10.0)
        assert len(store.saves) <= 2, "nothing has happened"
        call.says(for_s=0.5)
        await call.until("response.done")
        times = [at for at, _ in store.saves]
    assert 8 <= len(times) <= 30, "about one for each second of sound"
    assert min(b - a for a, b in pairwise(times[1:-1])) > OPTIONS.save_gap_s - 1e-6
    texts = [[i["text"] for i in json.loads(s)["conversation"]["items"]] for _, s in store.saves]
    assert texts[0] == []
    assert len(texts[-1]) == 2


@virtual_time
async def test_many_changes_at_once_are_one_save():
    store = Store()
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
        before = len(store.saves)
        content = [{"type": "input_text", "text": "one of many"}]
        for n in range(100):
            await call.sleep_until(1 + n * 0.02)
            item = {"type": "message", "role": "user", "content": content}
            call.send({"type": "conversation.item.create", "item": item})
        await call.sleep_until(5.0)
        assert 2 <= len(store.saves) - before <= 2 / OPTIONS.save_gap_s + 2
        assert len(SessionSnapshot.from_json(store.saves[-1][1]).conversation.items) == 100, "the newest wins"


@virtual_time
async def test_a_silent_session_does_not_expire():
    store = Store()
    async with resumable(store, microphone=False) as call:
        for _ in range(15):
            await asyncio.sleep(19.0)
            assert len(store.table) == 1
            record = store.table._live("test")
            assert record is not None, "killed at any moment, it would still be there"
            assert record.expires_at - the_loop().time() >= OPTIONS.within_s - 1
        token = token_of(call)
    assert (await claim(GuardedStore(store, OPTIONS), OPTIONS, token)).generation == 2


@virtual_time
async def test_ids_given_after_the_last_save_are_not_given_again():
    store, dead = Store(), Store()
    async with resumable(store) as call:
        token = (await call.until("session.created"))["resume"]["token"]
        _, snapshot = store.saves[0]
        call.says(for_s=0.5)
        await call.until("response.done")
        given = {e["item"]["id"] for e in call.all("conversation.item.added")}
    await MemoryStore.save(dead, "test", 1, Token.parse(token).hash, snapshot, 60)
    async with back(dead, token) as again:
        again.says(at=0.5, for_s=0.5)
        await again.until("response.done")
        new = {e["item"]["id"] for e in again.all("conversation.item.added")}
    assert len(given) == len(new) == 2
    assert not given & new


@virtual_time
async def test_one_that_stays_away_too_long_is_gone():
    store = Store()
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
    await asyncio.sleep(OPTIONS.within_s + 1)
    with pytest.raises(NotResumable):
        await claim(GuardedStore(store, OPTIONS), OPTIONS, token_of(call))


@virtual_time
async def test_a_slow_store_costs_the_caller_nothing():
    store, plain = Store(), Store()
    store.takes_s = 0.4
    latencies = []
    for each in (plain, store):
        async with resumable(each) as call:
            await call.until("session.created")
            call.says(at=2.0, for_s=0.5)
            await call.until("response.done")
            latencies.append(call.latency()["total"])
    assert latencies[0] == latencies[1]
    assert store.most_at_once <= 1 + 1, "one, and the last"


class SlowClaims(MemoryStore):
    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        claimed = await super().claim(session_id, token_hash, new_hash, expires_s)
        await asyncio.sleep(3.0)
        return claimed


@virtual_time
async def test_a_claim_that_takes_long_is_not_given_up_for_then_the_token_would_be_lost():
    store = SlowClaims(the_loop().time)
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
    async with back(store, token_of(call), microphone=False) as again:
        await again.until("session.resumed")


# --- who may write --------------------------------------------------------------------------------------------------


@virtual_time
async def test_the_older_socket_is_closed_when_it_writes_and_does_not_change_the_newer_ones_record():
    store = Store()
    async with resumable(store) as old:
        await old.until("session.created")
        async with back(store, token_of(old)) as new:
            await new.until("session.resumed")
            old.says(for_s=0.5)
            await old.until(lambda: old.ending is not None)
            assert old.ending is not None
            assert old.ending.code == SUPERSEDED
            new.says(for_s=0.5)
            await new.until("response.done")
            history = new.history()
            token = token_of(new)
    last = SessionSnapshot.from_json(
        ((await claim(GuardedStore(store, OPTIONS), OPTIONS, token)).snapshot and store.saves[-1][1]) or ""
    )
    assert [(i.role, i.text) for i in last.conversation.items] == history


@virtual_time
async def test_who_says_goodbye_is_forgotten():
    store = Store()
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
        call.session.end(Ending(1000, "the client left", is_peer_gone=True))
    with pytest.raises(NotResumable):
        await claim(GuardedStore(store, OPTIONS), OPTIONS, token_of(call))


# --- a store that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
@virtual_time
async def test_a_store_that_is_down_is_announced_once_and_the_conversation_goes_on(kind: str, caplog: Any):
    store = Store()
    guarded = GuardedStore(store, OPTIONS)
    if kind == "refuses":
        store.problem = StoreUnavailable("it is down")
    else:
        store.takes_s = 1e6
    with caplog.at_level(logging.WARNING, logger="voice_serve.resumption"):
        async with resumable(store, lease=Lease(guarded, OPTIONS, "test")) as call:
            created = await call.until("session.created")
            assert "resume" not in created, "no token that would open nothing"
            call.says(for_s=0.5)
            await call.until("response.done")
            assert call.outcomes() == ["completed"]
            assert guarded.problem
            before, since = store.calls, call.now
            call.says(for_s=0.5)
            await call.until("response.done", count=2)
            assert store.calls - before <= (call.now - since) / OPTIONS.retry_store_s + 1, "it is left alone"
            assert [record.levelname for record in caplog.records] == ["ERROR"]
            store.problem, store.takes_s = None, 0.0
            call.says(for_s=0.5)
            await call.until("response.done", count=3)
            await asyncio.sleep(30)
            assert guarded.problem == ""
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@virtual_time
async def test_a_store_that_fails_later_comes_back_with_the_same_token():
    store = Store()
    async with resumable(store) as call:
        token = token_of_first = (await call.until("session.created"))["resume"]["token"]
        store.table.forget("test", 1, 0)  # the actor's node is lost
        store.problem = StoreUnavailable("gone")
        call.says(for_s=0.5)
        await call.until("response.created")
        store.problem = None
        await asyncio.sleep(20)
    assert (await claim(GuardedStore(store, OPTIONS), OPTIONS, token)).snapshot is not None
    assert token_of_first == token


@virtual_time
async def test_a_save_that_failed_is_tried_again_though_nothing_changes_any_more():
    store = Store()
    async with resumable(store, microphone=False) as call:
        await call.until("session.created")
        store.problem = StoreUnavailable("down")
        content = [{"type": "input_text", "text": "the last change"}]
        item = {"type": "message", "role": "user", "content": content}
        call.send({"type": "conversation.item.create", "item": item})
        await call.until("conversation.item.done")
        await asyncio.sleep(1.0)
        store.problem, before = None, len(store.saves)
        await asyncio.sleep(OPTIONS.retry_store_s)
        assert len(store.saves) > before
        [kept] = SessionSnapshot.from_json(store.saves[-1][1]).conversation.items
        assert kept.text == "the last change"


@virtual_time
async def test_what_a_store_has_forgotten_is_written_again_by_sessions_in_which_nothing_happens():
    """Its restart was noticed by one session; the others have not saved anything meanwhile."""
    store = Store()
    guarded = GuardedStore(store, OPTIONS)
    one, other = Lease(guarded, OPTIONS, "one"), Lease(guarded, OPTIONS, "other")
    silent = partial(resumable, store, microphone=False)
    async with silent(lease=one) as busy, silent(lease=other) as idle:
        await busy.until("session.created")
        token = (await idle.until("session.created"))["resume"]["token"]
        await asyncio.sleep(1.0)
        store.problem = StoreUnavailable("down")
        busy.configure(instructions="Something new.")
        await busy.until("session.updated")
        await asyncio.sleep(1.0)
        assert guarded.problem
        for session_id in ("one", "other"):
            store.table.forget(session_id, 1, 0)
        store.problem = None
        await asyncio.sleep(OPTIONS.retry_store_s + 2 * OPTIONS.save_gap_s)
        assert guarded.problem == ""
        assert len(store.table) == 2
    assert (await claim(GuardedStore(store, OPTIONS), OPTIONS, token)).snapshot is not None


@virtual_time
async def test_without_a_store_nothing_is_promised_or_asked():
    async with resumable(None, microphone=False) as call:
        created = await call.until("session.created")
        await call.sleep_until(30)
    assert "resume" not in created


@virtual_time
async def test_a_session_that_has_grown_too_large_is_not_resumed_as_it_was_not(caplog: Any):
    store = Store()
    options = ResumeOptions(max_snapshot_bytes=3000)
    lease = Lease(GuardedStore(store, options), options, "test")
    async with resumable(store, lease=lease, microphone=False) as call:
        token = (await call.until("session.created"))["resume"]["token"]
        content = [{"type": "input_text", "text": "x" * 3000}]
        call.send(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": content},
            }
        )
        await call.until("conversation.item.done")
        await asyncio.sleep(60)
    with pytest.raises(NotResumable):
        await claim(GuardedStore(store, OPTIONS), OPTIONS, token)
    assert [r.message for r in caplog.records] == ["a session has grown too large to be resumed"]


# --- moving away ----------------------------------------------------------------------------------------------------


async def moved(call: Call, *graces_s: float) -> None:
    """Once it has ended, having been told after a second that its replica goes."""
    await call.sleep_until(1.0)
    for grace_s in graces_s:
        call.session.drain(grace_s)
    await call.until(lambda: call.ending is not None)


@virtual_time
async def test_a_session_at_rest_moves_at_once():
    store = Store()
    async with resumable(store, hears_own_events=True) as call:
        await moved(call, 25)
        assert call.only("session.draining")["grace_s"] == 25
        assert call.transport.closed is not None
        assert call.transport.closed[0] == SERVICE_RESTART
        assert call.now - 1.0 < 0.2
    assert (await claim(GuardedStore(store, OPTIONS), OPTIONS, token_of(call))).snapshot is not None


@virtual_time
async def test_a_turn_under_way_is_brought_to_its_end_first():
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=1.0)
        await moved(call, 25)
        assert call.outcomes() == ["completed"]
        played_until = call.player.sounds[-1].end_s
        assert played_until <= call.ended_at + 0.001 < played_until + 0.3, "and its sound too"  # type: ignore[operator]
        assert "session.draining" not in call.kinds(), "who did not ask gets no event that it may not know"
    async with back(store, token_of(call)) as again:
        await again.until("session.resumed")
        assert [i["status"] for i in again.only("session.resumed")["items"]] == ["completed", "completed"]
        await again.sleep_until(2)
        assert again.outcomes() == []


@pytest.mark.parametrize("spoken_s", [0.05, 0.06, 0.07, 0.12])
@virtual_time
async def test_speech_too_short_yet_to_be_a_turn_is_not_cut_off(spoken_s: float):
    async with resumable(Store()) as call:
        call.says(at=1.0 - spoken_s, for_s=1.0)
        await moved(call, 25)
        assert call.outcomes() == ["completed"]


@virtual_time
async def test_a_microphone_that_falls_silent_in_a_first_sound_does_not_hold_the_session():
    async with resumable(Store(), microphone=False) as call:
        await call.until("session.created")
        await call.sleep_until(0.9)
        call.send(append(tone(0, 1536, 24_000)))
        await moved(call, 25)
        assert call.now < 0.9 + Parameters().stall_s + 0.2


@virtual_time
async def test_one_that_finds_no_rest_is_cut_at_the_end_of_the_grace():
    store = Store()
    async with resumable(store) as call:
        call.says(at=0.5, for_s=100)
        await moved(call, 5, 500)
        assert 6.0 <= call.now < 6.2


# --- tokens and snapshots -------------------------------------------------------------------------------------------


def test_a_token_has_128_random_bits_and_shows_them_to_nobody():
    tokens = [Token.new("abc") for _ in range(1000)]
    assert len({t.secret for t in tokens}) == 1000
    assert all(len(t.secret) >= 22 for t in tokens)
    for token in tokens:
        assert token.secret not in repr(token)
        assert token.secret not in token.hash
        assert Token.parse(str(token)) == token


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "abc",
        "abc.",
        "abc.short",
        ".aaaaaaaaaaaaaaaaaaaaaa",
        "a b.aaaaaaaaaaaaaaaaaaaaaa",
        "ä.aaaaaaaaaaaaaaaaaaaaaa",
        "a." + "x" * 65,
    ],
)
def test_what_is_no_token_opens_nothing(text: str):
    with pytest.raises(NotResumable):
        Token.parse(text)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"conversation": 1}', '{"conversation": {"schema": 99}}', "null"]
)
def test_a_snapshot_of_another_kind_is_refused(text: str):
    with pytest.raises(NotReadable):
        SessionSnapshot.from_json(text)


@virtual_time
async def test_the_guard_passes_refusals_on_without_taking_them_for_a_fault():
    class Refusing(Store):
        async def save(self, *_: Any) -> None:
            raise Superseded

        async def claim(self, *_: Any) -> Claimed:
            raise NotResumable

    guarded = GuardedStore(Refusing(), OPTIONS)
    with pytest.raises(Superseded):
        await guarded.save("a", 1, "t", "s", 1)
    with pytest.raises(NotResumable):
        await guarded.claim("a", "t", "n", 1)
    assert guarded.problem == ""
