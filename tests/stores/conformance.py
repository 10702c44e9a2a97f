"""What every `SessionStore` must do; each test is called with a fresh store and a way to let time pass."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.session.resumption import Claimed, NotResumable, SessionStore, Superseded


@dataclass(frozen=True)
class Subject:
    store: SessionStore
    expires_s: float
    """A time to live that the clock below makes short."""
    pass_time: Callable[[float], Awaitable[None]]
    name: str
    """Of a session that no other test uses."""


Test = Callable[[Subject], Awaitable[Any]]


async def what_was_saved_last_is_claimed(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "first", 60)
    await store.save(name, 1, "a", "zweiter Stand: „so“", 60)
    assert await store.claim(name, "a", "b", 60) == Claimed(2, "zweiter Stand: „so“")


async def a_token_opens_once_and_the_next_one_then(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "text", 60)
    await store.claim(name, "a", "b", 60)
    with pytest.raises(NotResumable):
        await store.claim(name, "a", "c", 60)
    assert (await store.claim(name, "b", "c", 60)).generation == 3


async def of_many_that_claim_at_once_one_gets_it(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "text", 60)
    claims = [store.claim(name, "a", f"new{n}", 60) for n in range(20)]
    answers = await asyncio.gather(*claims, return_exceptions=True)
    assert [a for a in answers if not isinstance(a, NotResumable)] == [Claimed(2, "text")]


async def a_wrong_token_opens_nothing_and_spoils_nothing(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "text", 60)
    for wrong in ("b", "", "A"):
        with pytest.raises(NotResumable):
            await store.claim(name, wrong, "c", 60)
    with pytest.raises(NotResumable):
        await store.claim(f"{name}x", "a", "c", 60)
    assert (await store.claim(name, "a", "b", 60)).snapshot == "text"


async def the_older_writer_is_refused_and_changes_nothing(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "old", 60)
    await store.claim(name, "a", "b", 60)
    for late in (store.save(name, 1, "a", "from the past", 60), store.forget(name, 1, 60)):
        with pytest.raises(Superseded):
            await late
    await store.save(name, 2, "b", "new", 60)
    assert await store.claim(name, "b", "c", 60) == Claimed(3, "new")


async def what_is_forgotten_is_gone_and_stays_so(subject: Subject) -> None:
    store, name = subject.store, subject.name
    await store.save(name, 1, "a", "text", 60)
    await store.claim(name, "a", "b", 60)
    await store.forget(name, 2, 60)
    for token in ("a", "b", ""):
        with pytest.raises(NotResumable):
            await store.claim(name, token, "c", 60)
    with pytest.raises(Superseded):
        await store.save(name, 1, "a", "a ghost", 60)


async def a_record_expires_and_each_save_renews_it(subject: Subject) -> None:
    store, name, ttl = subject.store, subject.name, subject.expires_s
    await store.save(name, 1, "a", "text", ttl)
    await subject.pass_time(ttl * 0.6)
    await store.save(name, 1, "a", "text", ttl)
    await subject.pass_time(ttl * 0.6)
    await store.claim(name, "a", "b", ttl)
    await subject.pass_time(ttl * 1.2)
    with pytest.raises(NotResumable):
        await store.claim(name, "b", "c", 60)


async def a_lost_record_is_written_anew_by_who_lives(subject: Subject) -> None:
    """As after the loss of the store's own node."""
    store, name = subject.store, subject.name
    await store.save(name, 3, "c", "text", 60)
    assert await store.claim(name, "c", "d", 60) == Claimed(4, "text")


SUITE: list[Test] = [
    what_was_saved_last_is_claimed,
    a_token_opens_once_and_the_next_one_then,
    of_many_that_claim_at_once_one_gets_it,
    a_wrong_token_opens_nothing_and_spoils_nothing,
    the_older_writer_is_refused_and_changes_nothing,
    what_is_forgotten_is_gone_and_stays_so,
    a_record_expires_and_each_save_renews_it,
    a_lost_record_is_written_anew_by_who_lives,
]
