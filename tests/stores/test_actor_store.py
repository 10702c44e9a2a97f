"""What the store in an actor asks of its actor: saves of many sessions in one call, in their order with all else."""

import asyncio
from typing import Any

import pytest
from ray.exceptions import RayActorError

from serve_app.session.resumption import StoreUnavailable, Superseded
from serve_app.stores.ray_actor import ActorStore, Records


class Actor:
    """Answers as a Ray actor does: `method.remote()` is under way at once and can be awaited."""

    def __init__(self) -> None:
        self.records = Records(100, 1 << 20)
        self.asked: list[str] = []
        self.is_lost = False

    def __getattr__(self, method: str) -> Any:
        return Method(self, method)


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor = actor
        self._name = name

    def remote(self, *arguments: Any) -> Any:
        self._actor.asked.append(self._name)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._actor.is_lost:
            answer.set_exception(RayActorError())
        else:
            answer.set_result(getattr(self._actor.records, self._name)(*arguments))
        return answer


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
def store(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> ActorStore:
    store = ActorStore()
    monkeypatch.setattr(store, "_find", lambda: actor)
    return store


async def test_sessions_are_saved_together(store: ActorStore, actor: Actor) -> None:
    async with asyncio.TaskGroup() as tasks:
        for name in ("a", "b", "c"):
            tasks.create_task(store.save(name, 1, f"hash {name}", f"talk {name}", 60))
    assert actor.asked == ["save_all"]
    for name in ("a", "b", "c"):
        claimed = await store.claim(name, f"hash {name}", "new", 60)
        assert claimed.snapshot == f"talk {name}"


async def test_each_learns_its_own_refusal(store: ActorStore, actor: Actor) -> None:
    await store.save("a", 2, "hash", "newer", 60)
    older, other = await asyncio.gather(
        store.save("a", 1, "hash", "older", 60),
        store.save("b", 1, "hash", "other", 60),
        return_exceptions=True,
    )
    assert isinstance(older, Superseded)
    assert other is None
    assert actor.asked == ["save_all", "save_all"]


async def test_what_is_asked_later_comes_later(store: ActorStore, actor: Actor) -> None:
    saving = asyncio.create_task(store.save("a", 1, "hash", "talk", 60))
    await asyncio.sleep(0)
    assert (await store.claim("a", "hash", "new", 60)).snapshot == "talk"
    assert actor.asked == ["save_all", "claim"]
    await saving


async def test_a_save_that_was_given_up_is_not_sent(store: ActorStore, actor: Actor) -> None:
    saving = asyncio.create_task(store.save("a", 1, "hash", "talk", 60))
    await asyncio.sleep(0)
    saving.cancel()
    await asyncio.gather(saving, return_exceptions=True)
    await store.forget("a", 1, 60)
    assert actor.asked == ["forget"]


async def test_a_lost_actor_fails_all_that_wait_and_is_looked_up_anew(
    store: ActorStore, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor.is_lost = True
    saves = [store.save(name, 1, "hash", "talk", 60) for name in ("a", "b")]
    failures = await asyncio.gather(*saves, return_exceptions=True)
    assert [type(failure) for failure in failures] == [StoreUnavailable, StoreUnavailable]
    successor = Actor()
    monkeypatch.setattr(store, "_find", lambda: successor)
    await store.save("a", 1, "hash", "talk", 60)
    assert successor.asked == ["save_all"]
