"""The records of sessions in memory: bounded, with a time to live. Pure; the clock is handed in."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

SUPERSEDED = "superseded"
NOT_RESUMABLE = "not resumable"


@dataclass(slots=True)
class _Record:
    generation: int
    token_hash: str
    snapshot: str
    """"": the session is over, and only its generation is remembered."""
    expires_at: float


class Table:
    """A refusal is a returned word: exceptions cross a process boundary badly.

    Full, it drops what was saved longest ago. Its calls sweep out what has expired, some on each.
    """

    def __init__(self, clock: Callable[[], float], *, max_records: int, max_bytes: int) -> None:
        self._clock = clock
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, _Record] = OrderedDict()
        """The one that was saved longest ago first."""
        self.bytes = 0
        self.dropped = 0
        """Records that were not expired and had to make room."""

    def __len__(self) -> int:
        return len(self._records)

    def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> str | None:
        self._sweep()
        record = self._live(session_id)
        if record is not None and record.generation > generation:
            return SUPERSEDED
        self._put(session_id, _Record(generation, token_hash, snapshot, self._clock() + expires_s))
        return None

    def claim(
        self, session_id: str, token_hash: str, new_hash: str, expires_s: float
    ) -> tuple[int, str] | str:
        self._sweep()
        record = self._live(session_id)
        if record is None or not record.snapshot or record.token_hash != token_hash:
            return NOT_RESUMABLE
        generation = record.generation + 1
        self._put(session_id, _Record(generation, new_hash, record.snapshot, self._clock() + expires_s))
        return generation, record.snapshot

    def forget(self, session_id: str, generation: int, expires_s: float) -> str | None:
        return self.save(session_id, generation, "", "", expires_s)

    def _live(self, session_id: str) -> _Record | None:
        record = self._records.get(session_id)
        return record if record is not None and record.expires_at > self._clock() else None

    def _put(self, session_id: str, record: _Record) -> None:
        self._drop(session_id)
        self._records[session_id] = record
        self.bytes += _size(record)
        while len(self._records) > self._max_records or self.bytes > self._max_bytes:
            self._drop(next(iter(self._records)))
            self.dropped += 1

    def _drop(self, session_id: str) -> None:
        record = self._records.pop(session_id, None)
        self.bytes -= _size(record) if record is not None else 0

    def _sweep(self, most: int = 16) -> None:
        """Times to live differ little, so what expired lies at the front, or comes there."""
        now = self._clock()
        for session_id in list(islice(self._records, most)):
            if self._records[session_id].expires_at <= now:
                self._drop(session_id)


def _size(record: _Record) -> int:
    return len(record.snapshot) + 200
