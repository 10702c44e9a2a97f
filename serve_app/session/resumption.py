"""How a session outlives its socket: a token for the client, a record in a store, and who may write to it.

A record belongs to a session id. It holds the newest snapshot, the hash of the one token that opens it, and a
generation that counts the sockets which the session has had. Claiming it with the token gives the snapshot, a new token
and the next generation, in one step, so of two that come with the same token one gets it; whoever still writes with an
older generation is refused (`Superseded`) and must end. The token itself is known to the client alone.

A store that cannot be reached costs the promise and nothing else: the session goes on without being resumable. Once it
answers again it may have forgotten everything, so every living session writes its record anew, changed or not.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.conversation.plain import NotReadable, from_plain, to_plain
from serve_app.conversation.snapshot import Snapshot
from serve_app.realtime.session_config import AudioFormat, SessionConfig, SessionKind

log = logging.getLogger("voice_serve.resumption")

SECRET_BYTES = 16
"""128 random bits."""


class Superseded(Exception):
    """The session goes on elsewhere; this writer has to end."""


class NotResumable(Exception):
    """There is nothing to claim: the token was never given, was used, or its time is over."""


class StoreUnavailable(Exception):
    """The store does not answer, or not as it should; the message says how."""


@dataclass(frozen=True, slots=True)
class Claimed:
    generation: int
    snapshot: str


class SessionStore(Protocol):
    """Where records lie. Each call raises StoreUnavailable; times are seconds from now."""

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        """Replace the record, or create it. Raises Superseded if it is of a later generation."""
        ...

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        """Raises NotResumable. From here on only the new generation may save, and only the new token opens."""
        ...

    async def forget(self, session_id: str, generation: int, expires_s: float) -> None:
        """Drop the snapshot; older generations stay refused until `expires_s`. Raises Superseded as `save` does."""
        ...


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    within_s: float = 60.0
    """How long after the loss of its socket a session can be resumed."""
    save_gap_s: float = 0.25
    """Saves of one session are at least so far apart; what changes meanwhile goes with the next."""
    store_timeout_s: float = 1.0
    claim_timeout_s: float = 5.0
    """Longer: a claim that is given up may still take place, and then nobody has the token that opens the session."""
    retry_store_s: float = 5.0
    """A store that failed is left alone for so long."""
    max_snapshot_bytes: int = 512 * 1024

    @property
    def refresh_s(self) -> float:
        """A record is saved at least so often while its session lives, so that only the dead expire."""
        return self.within_s / 3


# --- what is kept ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionSnapshot:
    """The conversation, and how its client wants it on the wire."""

    conversation: Snapshot
    input_format: AudioFormat
    output_format: AudioFormat
    model: str
    kind: SessionKind = "realtime"
    last_event_id: str = ""
    """Of the client's events but audio the last one that the conversation knows of; what it sent later is lost."""

    @classmethod
    def of(cls, conversation: Snapshot, config: SessionConfig, last_event_id: str) -> "SessionSnapshot":
        formats = config.input_format, config.output_format
        return cls(conversation, *formats, config.model, config.kind, last_event_id)

    def to_json(self) -> str:
        return json.dumps(to_plain(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "SessionSnapshot":
        """Raises NotReadable, for a snapshot of another schema too."""
        try:
            plain: Any = json.loads(text)
        except ValueError as error:
            raise NotReadable("not JSON") from error
        Snapshot.from_plain(plain.get("conversation") if isinstance(plain, dict) else None)
        snapshot: SessionSnapshot = from_plain(cls, plain)
        return snapshot


# --- tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """`session_id.secret`: the id finds the record, the secret opens it. Never logged, stored as its hash alone."""

    session_id: str
    secret: str

    @classmethod
    def new(cls, session_id: str) -> "Token":
        return cls(session_id, secrets.token_urlsafe(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Raises NotResumable for what is no token."""
        session_id, dot, secret = text.partition(".")
        if not (dot and session_id.isalnum() and session_id.isascii() and 20 <= len(secret) <= 64):
            raise NotResumable
        return cls(session_id[:64], secret)

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.session_id}.{self.secret}".encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.session_id}.{self.secret}"


# --- the store as the sessions of one process see it ----------------------------------------------------------------


class GuardedStore:
    """A store with a time limit, whose failure is announced once and then costs the sessions no time."""

    def __init__(self, store: SessionStore | None, options: ResumeOptions) -> None:
        self._store = store
        self._options = options
        self._retry_at = float("-inf")
        self._on_return: set[Callable[[], None]] = set()
        self.problem = "" if store is not None else "resumption is turned off (resume.store: none)"
        """Why sessions are not resumable now; "": they are."""

    @property
    def is_on(self) -> bool:
        return self._store is not None

    @contextmanager
    def on_return(self, call: Callable[[], None]) -> Iterator[None]:
        """Within the block `call` is called when the store answers after it did not: its records may be gone."""
        self._on_return.add(call)
        try:
            yield
        finally:
            self._on_return.discard(call)

    async def save(
        self, session_id: str, generation: int, token_hash: str, snapshot: str, expires_s: float
    ) -> None:
        async with self._guarded() as store:
            await store.save(session_id, generation, token_hash, snapshot, expires_s)

    async def claim(self, session_id: str, token_hash: str, new_hash: str, expires_s: float) -> Claimed:
        async with _Guard(self, self._options.claim_timeout_s) as store:
            return await store.claim(session_id, token_hash, new_hash, expires_s)

    async def forget(self, session_id: str, generation: int, expires_s: float) -> None:
        async with self._guarded() as store:
            await store.forget(session_id, generation, expires_s)

    def _guarded(self) -> "_Guard":
        return _Guard(self, self._options.store_timeout_s)

    def _enter(self) -> SessionStore:
        if self._store is None or asyncio.get_running_loop().time() < self._retry_at:
            raise StoreUnavailable(self.problem)
        return self._store

    def _note(self, problem: str) -> None:
        if problem:
            self._retry_at = asyncio.get_running_loop().time() + self._options.retry_store_s
        had, self.problem = self.problem, problem
        if problem and not had:
            log.error("sessions cannot be resumed: the store fails", extra={"error": problem})
        elif had and not problem:
            log.warning("sessions can be resumed again")
            for call in self._on_return:
                call()


class _Guard:
    """One call of the store: its time limit, and the news of how it went."""

    def __init__(self, guarded: GuardedStore, limit_s: float) -> None:
        self._guarded = guarded
        self._limit_s = limit_s
        self._timeout = asyncio.timeout(limit_s)

    async def __aenter__(self) -> SessionStore:
        store = self._guarded._enter()
        await self._timeout.__aenter__()
        return store

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            self._guarded._note(f"no answer within {self._limit_s:g} s")
            raise StoreUnavailable(self._guarded.problem) from None
        if isinstance(error, StoreUnavailable):
            self._guarded._note(str(error))
        elif error is None or isinstance(error, Superseded | NotResumable):
            self._guarded._note("")


# --- a session's hold on its record ---------------------------------------------------------------------------------


class Lease:
    """One socket's right to a record. Saves are asynchronous, coalesced and the newest wins: they never wait for one
    another and the conversation never waits for them."""

    def __init__(
        self,
        store: GuardedStore,
        options: ResumeOptions,
        session_id: str,
        *,
        token: Token | None = None,
        generation: int = 1,
        snapshot: SessionSnapshot | None = None,
    ) -> None:
        self.session_id = session_id
        self.generation = generation
        self.snapshot = snapshot
        """What the session goes on from; None for a new one."""
        self._store = store
        self._options = options
        self._token = token or Token.new(session_id)
        self._mark: object = None
        self._changed = asyncio.Event()
        self._is_too_large = False

    def is_opened_by(self, token: Token) -> bool:
        return hmac.compare_digest(token.hash, self._token.hash)

    def note(self, mark: object) -> None:
        """`mark` differs from the last one if there is something to save."""
        if mark != self._mark:
            self._mark = mark
            self._changed.set()

    async def offer(self, snapshot: str) -> dict[str, object] | None:
        """What `session.created` says of it, once the record is there; None: the session cannot be resumed."""
        if not self._store.is_on:
            return None
        try:
            await self._save(snapshot, self._options.within_s + self._options.refresh_s)
        except (StoreUnavailable, Superseded):
            return None
        known = {} if self.snapshot is None else {"last_event_id": self.snapshot.last_event_id}
        return {"token": str(self._token), "within_s": self._options.within_s, **known}

    async def keep(self, take: Callable[[], str]) -> None:
        """Save `take()` whenever it has changed or may be gone, until cancelled. Raises Superseded."""
        options, wait_s = self._options, self._options.refresh_s
        with self._store.on_return(self._changed.set):
            while self._store.is_on:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
                self._changed.clear()
                wait_s = options.refresh_s
                try:
                    await self._save(take(), options.within_s + options.refresh_s)
                except StoreUnavailable:  # announced
                    wait_s = options.retry_store_s
                await asyncio.sleep(options.save_gap_s)

    async def leave(self, snapshot: str | None) -> None:
        """The socket is gone: the last word on the session, or None if it is over. Bounded, and raises nothing."""
        if not self._store.is_on:
            return
        with suppress(StoreUnavailable, Superseded):
            if snapshot is None:
                await self._store.forget(self.session_id, self.generation, self._options.within_s)
            else:
                await self._save(snapshot, self._options.within_s)

    async def _save(self, snapshot: str, expires_s: float) -> None:
        if len(snapshot) > self._options.max_snapshot_bytes:
            await self._give_up(len(snapshot))
            return
        self._is_too_large = False
        await self._store.save(self.session_id, self.generation, self._token.hash, snapshot, expires_s)

    async def _give_up(self, size: int) -> None:
        """An old snapshot would bring back a conversation that was not so: better none."""
        if not self._is_too_large:
            self._is_too_large = True
            log.warning(
                "a session has grown too large to be resumed",
                extra={"session": self.session_id, "bytes": size},
            )
            await self._store.forget(self.session_id, self.generation, self._options.within_s)


async def claim(store: GuardedStore, options: ResumeOptions, text: str) -> Lease:
    """The session that `text` is the token of. Raises NotResumable, NotReadable, StoreUnavailable."""
    old = Token.parse(text)
    new = Token.new(old.session_id)
    claimed = await store.claim(old.session_id, old.hash, new.hash, options.within_s)
    snapshot = SessionSnapshot.from_json(claimed.snapshot)
    return Lease(store, options, old.session_id, token=new, generation=claimed.generation, snapshot=snapshot)
