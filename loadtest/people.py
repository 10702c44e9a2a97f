"""A simulated caller who does what people do: thinks, asks, listens, now and then breaks in, and calls again if cut off.

Everything is the caller's own observation. The microphone is never closed: 20 ms every 20 ms, room noise where nothing
is said. What happened goes to `report` as `Outcome`s, whose names are the rows of a load test's table.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from .line import Ended, NotOpened, OnText, open_line, sound_in
from .pacing import Lateness
from .voices import Clip

FRAME_S = 0.02
PAUSE_MS = 96.0
"""turn_taking.pause_min_ms: the server's `audio_end_ms` lies so far behind the last speech."""
STAGES = ("endpointing", "stt", "llm_ttft", "first_segment", "tts_ttfb", "overhead")
FULL = 1013
"""RFC 6455 7.4.1: try again later."""
NOT_RESUMED = 4004
"""The server's word that a token opens nothing, and never will."""
CREATED_WITHIN_S = 10.0
ANSWER_WITHIN_S = 60.0
CLEAR_ONSET_S = 0.05
"""A recording that is quiet for so long before it is heard: its onset can be told."""

OPENED, REFUSED, LOST, RESUMED = "session opened", "session refused (1013)", "session lost", "session resumed"
CUT = "the session was lost"
"""The failure of a turn whose line ended."""
TURN, BARGE_IN, STALE = "turn", "barge-in stop", "sound after speech_started"
BROKEN_OFF = "answer broken off"
STAGE = "turn stage: "

ServerEvent = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Habits:
    think_s: tuple[float, float] = (3.0, 9.0)
    """Between an answer and the next question; with answers of 5 s about 30% of the time is the agent's."""
    barge_in_share: float = 0.2
    """Of the answers."""
    barge_in_after_s: tuple[float, float] = (0.6, 2.0)
    missed_after_s: float = 10.0
    """A turn without a sound so long after its question is missed."""
    again_after_s: tuple[float, float] = (1.0, 3.0)
    """A lost or refused caller waits so long before the next try."""


@dataclass(frozen=True, slots=True)
class Outcome:
    at: float
    """Seconds of the monotonic clock."""
    person: str
    name: str
    ms: float = 0.0
    failure: str = ""
    """What went wrong, in words that do not vary from one case to the next."""


class Wire(Protocol):
    """What a person needs of a `Line`."""

    ended: asyncio.Future[Ended]

    def send(self, message: bytes) -> None: ...

    def tell(self, type_: str, **fields: Any) -> None: ...

    async def close(self) -> None: ...


Connect = Callable[[str, OnText], Awaitable[Wire]]


class Listener(Protocol):
    """Is told of every event but sound, and of every turn once it has its first sound or has failed."""

    def heard(self, at: float, event: ServerEvent) -> None: ...

    def turn_over(self, turn: "Turn") -> None: ...


@dataclass(slots=True)
class Turn:
    """A question, and what came of it."""

    clip: Clip
    first_frame: int
    """Of the clip, on the session's microphone."""
    began_at: float
    stopped_ms: float | None = None
    """Where the server saw the last speech end, on the session's audio."""
    item_id: str = ""
    first_sound_at: float | None = None
    last_sound_at: float = 0.0
    plays_until: float = 0.0
    received_s: float = 0.0
    is_cut: bool = False
    """The server said that the caller interrupts."""
    is_done: bool = False
    failure: str = ""
    given_up_at: float = 0.0
    """When it was clear that it had failed."""

    def hear(self, seconds: float, at: float) -> None:
        self.last_sound_at = at
        self.plays_until = max(self.plays_until, at) + seconds
        self.received_s += seconds

    def played_ms(self, at: float) -> int:
        return int(1000 * (self.received_s - max(0.0, self.plays_until - at)))


class Person:
    def __init__(
        self,
        name: str,
        url: str,
        clips: Sequence[Clip],
        noise: Sequence[bytes],
        habits: Habits,
        report: Callable[[Outcome], None],
        lateness: Lateness,
        listener: Listener | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        connect: Connect = open_line,
    ) -> None:
        """`clock`: what times are told in; the loop's own is too coarse on uvloop."""
        self.name = name
        self.is_open = False
        self.line: Wire | None = None
        self._token = ""
        """With which the last session can be gone on with, where the server gives one."""
        self._session_id = ""
        self._url = url
        self._clips = clips
        self._clear = [clip for clip in clips if clip.onset_s >= CLEAR_ONSET_S]
        self._noise = noise
        self._habits = habits
        self._report = report
        self._lateness = lateness
        self._listener = listener
        self._clock = clock
        self._connect = connect
        self._dice = random.Random(name)
        self._is_leaving = False
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        """What belongs to one session."""
        self._is_greeted = self._is_resumed = False
        self._turn: Turn | None = None
        self._interrupted: Turn | None = None
        """The answer that the question under way breaks into."""
        self._frame = 0
        self._began_at = 0.0
        self._spoken: tuple[Clip, int] | None = None

    # --- sessions ---------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Hang up between two turns, and do not call again; who is cut off just then comes back for it."""
        self._is_leaving = True
        self._changed.set()

    async def live(self) -> None:
        """Until told to leave, or cancelled: one session after the other, each for as long as it lasts; a lost one is
        gone on with."""
        while not self._is_leaving or self._token:
            ended = await self._one_session()
            if ended is not None and ended.code != FULL:
                self._tell(LOST, failure=f"closed with {ended.code}")
            if not self._is_leaving or self._token:
                await asyncio.sleep(self._dice.uniform(*self._habits.again_after_s))

    async def _one_session(self) -> Ended | None:
        """How it ended; None if it did not begin, or was left."""
        self._begin()
        began = self._clock()
        token, self._token = self._token, ""
        try:
            line = await self._connect(self._address(token), self._on_text)
        except NotOpened as error:
            self._token = token  # nobody was there to take it
            self._tell(OPENED, since=began, failure=f"no session: {error}"[:80])
            return None
        self.line = line
        line.ended.add_done_callback(lambda _: self._changed.set())
        try:
            await self._until(lambda: self._is_greeted, CREATED_WITHIN_S)
            if not self._is_greeted:
                is_useless = line.ended.done() and line.ended.result().code == NOT_RESUMED
                self._token = "" if is_useless else token  # another try may find it unused
                return self._not_greeted(line, began)
            self._tell(RESUMED if self._is_resumed else OPENED, since=began)
            return await self._talk(line)
        finally:
            self.is_open = False
            if self._timer is not None:
                self._timer.cancel()
            await line.close()

    def _address(self, token: str) -> str:
        """With the token of the session that was lost, where the server gave one; each serves once."""
        if not token:
            return self._url
        return f"{self._url}{'&' if '?' in self._url else '?'}resume={quote(token)}"

    def _not_greeted(self, line: Wire, began: float) -> Ended | None:
        if not line.ended.done():
            self._tell(OPENED, since=began, failure=f"no session.created within {CREATED_WITHIN_S:g} s")
            return None
        ended = line.ended.result()
        if ended.code == FULL:
            self._tell(REFUSED, since=began)
            return ended
        self._tell(OPENED, since=began, failure=f"closed with {ended.code} before it began")
        return None

    async def _talk(self, line: Wire) -> Ended | None:
        self.is_open, self._began_at = True, self._clock()
        self._tick()
        while not line.ended.done():
            await self._until(lambda: self._is_leaving, self._dice.uniform(*self._habits.think_s))
            if line.ended.done():
                break
            if self._is_leaving:
                self._token = ""
                return None
            turn = await self._ask(self._dice.choice(self._clips))
            while self._clear and turn.item_id and self._dice.random() < self._habits.barge_in_share:
                await self._pause(self._dice.uniform(*self._habits.barge_in_after_s))
                if turn.is_done or line.ended.done():
                    break
                turn = await self._ask(self._dice.choice(self._clear), into=turn)
            await self._hear_out(turn)
        return line.ended.result()

    async def _hear_out(self, turn: Turn) -> None:
        await self._until(lambda: turn.is_done or bool(turn.failure), ANSWER_WITHIN_S)
        await self._pause(turn.plays_until - self._clock())

    # --- a turn -----------------------------------------------------------------------------------------------------

    async def _ask(self, clip: Clip, *, into: Turn | None = None) -> Turn:
        """A question and its first sound, or its failure; `into`: the answer that it breaks into."""
        turn = Turn(clip, self._frame, self._clock())
        self._interrupted, self._turn, self._spoken = into, turn, (clip, 0)
        limit = clip.duration_s + self._habits.missed_after_s
        await self._until(lambda: turn.first_sound_at is not None or bool(turn.failure), limit)
        assert self.line is not None
        if self.line.ended.done():
            turn.failure = turn.failure or CUT
        elif turn.first_sound_at is None:
            how = "" if turn.stopped_ms is not None else ", nor was its end heard"
            turn.failure = turn.failure or f"missed: no sound within {self._habits.missed_after_s:g} s{how}"
        turn.given_up_at = self._clock()
        if into is not None and not self.line.ended.done():
            self._tell_of_barge_in(turn, into)
        self._tell_of_turn(turn)
        return turn

    def _tell_of_turn(self, turn: Turn) -> None:
        if turn.failure:
            self._tell(TURN, since=turn.began_at + turn.clip.duration_s, failure=turn.failure)
        elif turn.stopped_ms is not None and turn.first_sound_at is not None:
            spoken_at = self._sent_at(turn.stopped_ms - PAUSE_MS)
            self._tell(TURN, ms=(turn.first_sound_at - spoken_at) * 1000)
        if self._listener is not None:
            self._listener.turn_over(turn)

    def _tell_of_barge_in(self, turn: Turn, into: Turn) -> None:
        onset_at = self._began_at + turn.first_frame * FRAME_S + turn.clip.onset_s
        if (
            into.is_cut and into.last_sound_at >= onset_at
        ):  # else all of it had been sent: nothing was stopped
            self._tell(BARGE_IN, ms=(into.last_sound_at - onset_at) * 1000)
        elif not into.is_cut and not into.is_done:
            self._tell(BARGE_IN, failure="speech over the answer did not interrupt it")

    def _sent_at(self, audio_ms: float) -> float:
        return self._began_at + (audio_ms / 1000) // FRAME_S * FRAME_S

    # --- out --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """A frame at its own time, whatever became of the one before: the stream never drifts from the clock."""
        line, now = self.line, self._clock()
        if line is None or line.ended.done():
            return
        self._lateness.note(now - self._began_at - self._frame * FRAME_S)
        line.send(self._next_message())
        self._frame += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + self._began_at + self._frame * FRAME_S - now, self._tick)

    def _next_message(self) -> bytes:
        if self._spoken is None:
            return self._noise[self._frame % len(self._noise)]
        clip, index = self._spoken
        self._spoken = (clip, index + 1) if index + 1 < len(clip.frames) else None
        return clip.frames[index]

    # --- in ---------------------------------------------------------------------------------------------------------

    def _on_text(self, at: float, text: bytes) -> None:
        if (sound := sound_in(text)) is not None:
            self._hear(*sound, at)
            return
        event: ServerEvent = json.loads(text)
        self._take_in(event, at)
        if self._listener is not None:
            self._listener.heard(at, event)
        self._changed.set()

    def _hear(self, item_id: str, seconds: float, at: float) -> None:
        old, turn = self._interrupted, self._turn
        if old is not None and old.item_id == item_id:
            if old.is_cut:
                self._tell(STALE, failure="a chunk of the interrupted answer")
            old.hear(seconds, at)
        elif turn is not None:
            if turn.first_sound_at is None:
                turn.first_sound_at, turn.item_id = at, item_id
                self._changed.set()
            turn.hear(seconds, at)

    def _take_in(self, event: ServerEvent, at: float) -> None:
        turn = self._turn
        match event["type"]:
            case "session.created":
                self._is_greeted = True
                session_id = event["session"]["id"]
                self._is_resumed, self._session_id = session_id == self._session_id, session_id
                self._token = event.get("resume", {}).get("token", "")
            case "input_audio_buffer.speech_started":
                self._give_way(at)
            case "input_audio_buffer.speech_stopped" if turn is not None:
                turn.stopped_ms = float(event["audio_end_ms"])
            case "response.done":
                self._response_done(event["response"])
            case _:
                pass

    def _give_way(self, at: float) -> None:
        """What is playing stops, and the server is told how much of it was heard."""
        turn, old = self._turn, self._interrupted
        cut = old if old is not None and not old.is_cut else turn
        if cut is None or not cut.item_id or cut.plays_until <= at:
            return
        cut.is_cut = True
        played_ms = cut.played_ms(at)
        cut.plays_until = at
        assert self.line is not None
        self.line.tell(
            "conversation.item.truncate", item_id=cut.item_id, content_index=0, audio_end_ms=played_ms
        )
        if (
            cut is turn and self._spoken is not None
        ):  # it was answered before its end: what counts is the last answer
            turn.first_sound_at, turn.item_id, turn.is_cut = None, "", False

    def _response_done(self, response: dict[str, Any]) -> None:
        metadata = response.get("metadata") or {}
        for stage in STAGES:
            value = metadata.get(f"latency.{stage}_ms")
            if value is not None:
                self._tell(STAGE + stage, ms=float(value))
        done_items = {item["id"] for item in response["output"]}
        for turn in (self._interrupted, self._turn):
            if turn is not None and turn.item_id in done_items:
                turn.is_done = True
        turn = self._turn
        if turn is not None and response["status"] == "failed" and (not done_items or turn.is_done):
            code = response["status_details"]["error"]["code"]
            turn.is_done = True
            turn.failure = turn.failure or f"failed: {code}"
            if turn.first_sound_at is not None:
                self._tell(BROKEN_OFF, failure=turn.failure)
            self._changed.set()

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _tell(self, name: str, *, ms: float = 0.0, since: float | None = None, failure: str = "") -> None:
        now = self._clock()
        self._report(Outcome(now, self.name, name, ms if since is None else (now - since) * 1000, failure))

    async def _pause(self, seconds: float) -> None:
        """Or until the line ends."""
        await self._until(lambda: False, seconds)

    async def _until(self, is_so: Callable[[], bool], within_s: float) -> None:
        """Returns when it is so, when the line has ended, or in time."""
        assert self.line is not None
        try:
            async with asyncio.timeout(within_s):
                while not is_so() and not self.line.ended.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return
