"""The stores in memory and in Redis; the one in an actor takes the same suite in tests/serve."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from stores.conformance import SUITE, Subject, Test

from loadtest.redis_server import NoRedis, RedisServer, redis_server
from serve_app.session.resumption import (
    GuardedStore,
    Lease,
    NotResumable,
    ResumeOptions,
    StoreUnavailable,
    Token,
)
from serve_app.stores.memory import MemoryStore
from serve_app.stores.table import NOT_RESUMABLE, SUPERSEDED, Table


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("test", SUITE, ids=lambda test: test.__name__)
async def test_in_memory(test: Test):
    clock = Clock()
    await test(Subject(MemoryStore(clock), 60.0, clock.sleep, "a1"))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    try:
        with redis_server() as server:
            yield server
    except NoRedis as error:
        pytest.skip(str(error))


@asynccontextmanager
async def redis_store(url: str) -> AsyncIterator[object]:
    from serve_app.stores.redis import RedisStore

    store = RedisStore(url)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("test", SUITE, ids=lambda test: test.__name__)
async def test_in_redis(test: Test, redis: RedisServer):
    async with redis_store(redis.url) as store:
        await test(Subject(store, 0.5, asyncio.sleep, test.__name__))  # type: ignore[arg-type]


async def test_what_redis_held_is_written_again_after_its_restart_though_nothing_changes(redis: RedisServer):
    options = ResumeOptions(within_s=3600, save_gap_s=0.01, retry_store_s=0.05)
    async with redis_store(redis.url) as store, asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        guarded = GuardedStore(store, options)  # type: ignore[arg-type]
        leases = [Lease(guarded, options, name) for name in ("changed", "unchanged")]
        tokens = [Token.parse(str((await lease.offer("as it was") or {})["token"])) for lease in leases]
        keeping = [tasks.create_task(lease.keep(lambda: "as it is")) for lease in leases]
        redis.kill()
        leases[0].note("a change")
        while not guarded.problem:
            await asyncio.sleep(0.01)
        redis.start()
        while await asyncio.to_thread(redis.keys) < len(leases):
            await asyncio.sleep(0.01)
        for task in keeping:
            task.cancel()
        for token in tokens:
            claimed = await guarded.claim(token.session_id, token.hash, "another token's", 60)
            assert claimed.snapshot == "as it is"


async def test_a_redis_that_is_not_there_is_unavailable_and_its_password_is_not_told():
    pytest.importorskip("redis", reason="redis-py is not installed (extra: redis)")
    async with redis_store("unix://nobody:secret@/nowhere/socket") as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.claim("a", "b", "c", 60)  # type: ignore[attr-defined]
    assert not re.search("secret|nowhere", str(caught.value))


# --- the table's bounds ---------------------------------------------------------------------------------------------


def test_a_full_table_drops_what_was_saved_longest_ago():
    clock = Clock()
    table = Table(clock, max_records=3, max_bytes=10**6)
    for name in "abc":
        table.save(name, 1, name, name, 60)
    table.save("a", 1, "a", "a again", 60)
    table.save("d", 1, "d", "d", 60)
    assert (len(table), table.dropped) == (3, 1)
    assert table.claim("b", "b", "x", 60) == NOT_RESUMABLE
    assert table.claim("a", "a", "x", 60) == (2, "a again")


def test_a_table_is_bounded_in_bytes_and_counts_them_right():
    table = Table(Clock(), max_records=1000, max_bytes=10_000)
    for n in range(100):
        table.save(f"s{n % 30}", 1, "t", "x" * 1000, 60)
        assert table.bytes <= 10_000
    assert 1 <= len(table) <= 9
    for n in range(30):
        table.forget(f"s{n}", 9, 60)
    assert table.bytes == 200 * len(table)


def test_what_expired_is_swept_out_by_the_calls_that_come():
    clock = Clock()
    table = Table(clock, max_records=1000, max_bytes=10**6)
    for n in range(40):
        table.save(f"old{n}", 1, "t", "text", 60)
    clock.now += 61
    for _ in range(3):
        table.save("new", 1, "t", "text", 60)
    assert len(table) == 1
    assert table.dropped == 0


def test_an_expired_generation_binds_nobody():
    clock = Clock()
    table = Table(clock, max_records=10, max_bytes=10**6)
    table.save("a", 5, "t", "text", 60)
    assert table.save("a", 4, "t", "text", 60) == SUPERSEDED
    clock.now += 61
    assert table.save("a", 4, "t", "text", 60) is None


async def test_a_table_that_lost_all_lets_a_claim_fail():
    with pytest.raises(NotResumable):
        await MemoryStore().claim("a", "b", "c", 60)
