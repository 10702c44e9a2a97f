"""A hundred callers in one process that costs less than what it measures.

A wheel of twenty slots of 1 ms sends each session's next frame every 20 ms (`line`: encoded and masked once); of
what comes back only the few events that a caller acts on are parsed. How late the wheel was is part of the result: a
client that is late measures itself.

A caller does what people do: noise between turns, a question, the answer heard out or interrupted, `truncate` sent
when the server says that it was interrupted. All times are its own monotonic clock's.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from serve_app.audio.pcm import Audio
from serve_app.client.connection import RATE
from serve_app.client.microphone import FRAME_S

from .caller import onset_s
from .line import Line, NotOpened, open_line, sound_in
from .people import PAUSE_MS
from .voices import Clip, messages

SLOTS = 20
"""Of the wheel, 1 ms each."""
ANSWER_WITHIN_S = 5.0
OPEN_S = 30
OPENED_A_SECOND = 20
WARM_UP_S = 4.0
KNOCK_S = (0.5, 2.5)
"""Between two tries to come in while the server is full."""
NO_CLOSE = 1006
"""RFC 6455 7.4.1: the connection ended without a close frame."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one client process is to do."""

    url: str
    sessions: int
    seconds: float
    questions: tuple[Clip, ...]
    noise: Clip
    explained_ms: float
    """From the last speech to the first sound: what the set stages take."""
    barge_in_share: float = 0.3
    think_s: tuple[float, float] = (4.0, 8.0)
    knocking: int = 0
    """More callers, who try again and again to come in while the others talk."""


@dataclass(slots=True)
class Result:
    """Of the measured seconds only. Milliseconds."""

    overhead_ms: list[float] = field(default_factory=list)
    barge_in_ms: list[float] = field(default_factory=list)
    """From the onset of speech to the last chunk of the answer that it interrupted."""
    turns: int = 0
    missed: int = 0
    """Questions without an answer, and interruptions that did not interrupt."""
    unasked: int = 0
    """Turns that the server heard where nobody spoke."""
    stale_chunks: int = 0
    """Of an answer after `speech_started` had interrupted it."""
    lost: Counter[int] = field(default_factory=Counter)
    """Sessions that the server ended, by close code."""
    answering_share: float = 0.0
    """Of the time, in which the agent's sound was played."""
    late_ms: list[float] = field(default_factory=list)
    """How far behind its time each slot of the wheel was."""
    refused: Counter[int] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)
    """From the connection's opening to the close frame."""


def clip_of(audio: Audio) -> Clip:
    """Its onset is the first sound above the floor: these recordings are cut close to the speech."""
    return Clip("", messages(audio), onset_s(audio, RATE))


class Caller:
    def __init__(self, task: Task, clock: "Clock", seed: int) -> None:
        self.line: Line
        self._task = task
        self._clock = clock
        self._dice = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._sent_at: list[float] = []
        self._noise = self._endless(task.noise.frames)
        self._speech: Iterator[bytes] = iter(())
        self._answered: asyncio.Future[None] | None = None
        """A question waits for its answer."""
        self._asked_at: float | None = None
        """When the last speech of the turn that the server has just ended was sent."""
        self._playing: str | None = None
        """The item of the answer that sounds, or was last to."""
        self._playing_from = 0.0
        self._plays_until = 0.0
        self._last_chunk_at = 0.0
        self._stopped: set[str] = set()

    async def open(self) -> None:
        """Raises NotOpened, and TimeoutError if the server takes no more sessions."""
        self.line = await open_line(self._task.url, self.on_text)
        async with asyncio.timeout(OPEN_S):
            await self._greeted

    # --- out --------------------------------------------------------------------------------------------------------

    def _endless(self, frames: tuple[bytes, ...]) -> Iterator[bytes]:
        at = self._dice.randrange(len(frames))
        while True:
            yield frames[at % len(frames)]
            at += 1

    def send_next_frame(self, now: float) -> None:
        self._sent_at.append(now)
        self.line.send(next(self._speech, None) or next(self._noise))

    def _say(self, clip: Clip) -> int:
        """Returns the number of its first frame in the session's audio."""
        self._speech = iter(clip.frames)
        return len(self._sent_at)

    async def converse(self) -> None:
        """Turn after turn, until cancelled."""
        while True:
            await asyncio.sleep(self._dice.uniform(*self._task.think_s))
            if not await self._ask(self._dice.choice(self._task.questions)):
                continue
            if self._dice.random() < self._task.barge_in_share:
                await asyncio.sleep(self._dice.uniform(0.6, 2.0))
                await self._interrupt(self._dice.choice(self._task.questions))
            await asyncio.sleep(max(0.0, self._plays_until - time.monotonic()))

    async def _ask(self, clip: Clip) -> bool:
        """Whether it was answered."""
        self._say(clip)
        self._answered = self._loop.create_future()
        self._clock.result.turns += self._clock.is_measuring
        try:
            async with asyncio.timeout(len(clip.frames) * FRAME_S + ANSWER_WITHIN_S):
                await self._answered
        except TimeoutError:
            self._clock.result.missed += self._clock.is_measuring
            return False
        finally:
            self._answered = None
        return True

    async def _interrupt(self, clip: Clip) -> None:
        interrupted, first = self._playing, len(self._sent_at)
        if not await self._ask(clip):
            return
        spoken = first + int(clip.onset_s / FRAME_S)
        if interrupted not in self._stopped or spoken >= len(self._sent_at):  # something before it did
            self._clock.result.missed += self._clock.is_measuring
        elif self._clock.is_measuring:
            self._clock.result.barge_in_ms.append((self._interrupted_last_at - self._sent_at[spoken]) * 1000)

    # --- in ---------------------------------------------------------------------------------------------------------

    def on_text(self, now: float, text: bytes) -> None:
        if (sound := sound_in(text)) is not None:
            self._hear(*sound, now)
        elif b'"type":"input_audio_buffer.speech_' in text[:50]:
            event = json.loads(text)
            if event["type"] == "input_audio_buffer.speech_started":
                self._stop_playing(now)
            else:
                spoken_ms = event["audio_end_ms"] - PAUSE_MS
                self._asked_at = self._sent_at[int(spoken_ms / 1000 / FRAME_S)]
                self._clock.result.unasked += self._clock.is_measuring and self._answered is None
        elif text.startswith(b'{"type":"session.created"'):
            self._greeted.set_result(None)

    def _hear(self, item_id: str, seconds: float, now: float) -> None:
        result, is_measuring = self._clock.result, self._clock.is_measuring
        if item_id in self._stopped:
            result.stale_chunks += is_measuring
            self._interrupted_last_at = now
            return
        if self._playing != item_id:
            self._playing, self._playing_from = item_id, now
            if self._asked_at is not None and is_measuring:
                result.overhead_ms.append((now - self._asked_at) * 1000 - self._task.explained_ms)
            self._asked_at = None
            if self._answered is not None and not self._answered.done():
                self._answered.set_result(None)
        self._plays_until = max(self._plays_until, now) + seconds
        self._clock.played_s += seconds * is_measuring
        self._last_chunk_at = now

    def _stop_playing(self, now: float) -> None:
        if self._playing is None or self._playing in self._stopped or self._plays_until <= now:
            return
        self._stopped.add(self._playing)
        self._interrupted_last_at = self._last_chunk_at
        self._clock.played_s -= (self._plays_until - now) * self._clock.is_measuring
        self._plays_until = now
        played_ms = int((now - self._playing_from) * 1000)
        self.line.tell(
            "conversation.item.truncate", item_id=self._playing, content_index=0, audio_end_ms=played_ms
        )


@dataclass(slots=True)
class Clock:
    """What all callers of a process share."""

    result: Result = field(default_factory=Result)
    is_measuring: bool = False
    played_s: float = 0.0

    def note_refusal(self, code: int, began: float) -> None:
        if self.is_measuring:
            self.result.refused[code] += 1
            self.result.refused_ms.append((time.monotonic() - began) * 1000)


async def _wheel(slots: list[list[Caller]], clock: Clock) -> None:
    began = time.monotonic()
    slot_s = FRAME_S / SLOTS
    number = 0
    while True:
        due = began + number * slot_s
        wait = due - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        now = time.monotonic()
        if clock.is_measuring and slots[number % SLOTS]:
            clock.result.late_ms.append((now - due) * 1000)
        for caller in slots[number % SLOTS]:
            caller.send_next_frame(now)
        number += 1
        if wait <= 0:
            await asyncio.sleep(0)


async def _knock(task: Task, clock: Clock, seed: int) -> None:
    """Comes, is turned away, comes again."""
    dice = random.Random(seed)
    while True:
        await asyncio.sleep(dice.uniform(*KNOCK_S))
        began = time.monotonic()
        try:
            line = await open_line(task.url, lambda at, text: None)
        except NotOpened:
            clock.note_refusal(NO_CLOSE, began)
            continue
        await asyncio.wait([line.ended], timeout=ANSWER_WITHIN_S)
        clock.note_refusal(line.ended.result().code if line.ended.done() else 0, began)
        await line.close()


async def _run(task: Task, pipe: Connection) -> Result:
    clock = Clock()
    slots: list[list[Caller]] = [[] for _ in range(SLOTS)]
    callers: list[Caller] = []
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_wheel(slots, clock))]
        for number in range(task.sessions):
            caller = Caller(task, clock, number)
            await caller.open()
            callers.append(caller)
            slots[number % SLOTS].append(caller)
            running.append(tasks.create_task(caller.converse()))
            await asyncio.sleep(1 / OPENED_A_SECOND)
        running += [tasks.create_task(_knock(task, clock, 10_000 + n)) for n in range(task.knocking)]
        await asyncio.sleep(WARM_UP_S)
        pipe.send("begun")
        clock.is_measuring = True
        await asyncio.sleep(task.seconds)
        clock.is_measuring = False
        pipe.send("over")
        for one in running:
            one.cancel()
    endings = [caller.line.ended for caller in callers]
    clock.result.lost = Counter(ended.result().code for ended in endings if ended.done())
    clock.result.answering_share = clock.played_s / (task.sessions * task.seconds)
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.line.close())
    return clock.result


def main(task: Task, pipe: Connection) -> None:
    """Says "begun" and "over" through the pipe at the ends of the measured time, then the Result."""
    result: Any
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_run(task, pipe))
    pipe.send(result)
