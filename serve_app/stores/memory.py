"""Records in this process alone: for tests, and for whoever serves `server.VoiceServer` without a cluster."""

import time
from collections.abc import Callable

from serve_app.session.resumption import Claimed, NotResumable, Superseded

from .table import NOT_RESUMABLE, SUPERSEDED, Table


class MemoryStore:
    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_records: int = 20_000,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        self.table = Table(clock, max_records=max_records, max_bytes=max_bytes)

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        raise_refusal(self.table.save(session_id, generation, token_hash, snapshot, expires_s))

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        return claimed(self.table.claim(session_id, token_hash, new_hash, expires_s))

    async def forget(self, session_id: str, generation: int, expires_s: float) -> None:
        raise_refusal(self.table.forget(session_id, generation, expires_s))


def raise_refusal(answer: object) -> None:
    """A `Table`'s refusal as the exception it stands for."""
    if answer == SUPERSEDED:
        raise Superseded
    if answer == NOT_RESUMABLE:
        raise NotResumable


def claimed(answer: tuple[int, str] | str) -> Claimed:
    raise_refusal(answer)
    assert not isinstance(answer, str)
    return Claimed(*answer)
