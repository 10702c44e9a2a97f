"""A hundred callers in one process that costs less than what it measures.

Sound is sent as WebSocket frames that were encoded and masked once; a wheel of twenty slots of 1 ms sends each
session's next frame every 20 ms; of what comes back only the few events that a caller acts on are parsed. How late
the wheel was is part of the result: a client that is late measures itself.

A caller does what people do: noise between turns, a question, the answer heard out or interrupted, `truncate` sent
when the server says that it was interrupted. All times are its own monotonic clock's.
"""

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from serve_app.audio.pcm import Audio
from serve_app.client import FRAME, FRAME_S, RATE
from serve_app.realtime.codec import encode

from .caller import onset_s

SLOTS = 20
"""Of the wheel, 1 ms each."""
PAUSE_MS = 96.0
"""turn_taking.pause_min_ms: `audio_end_ms` lies so far behind the last speech."""
ANSWER_WITHIN_S = 5.0
OPEN_S = 30
OPENED_A_SECOND = 20
WARM_UP_S = 4.0
DELTA = b'{"type":"response.output_audio.delta"'


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording as the frames that a microphone would send."""

    frames: tuple[bytes, ...]
    onset_frame: int


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
    pcm = np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2")
    padded = np.pad(pcm, (0, -len(pcm) % FRAME))
    return Clip(
        tuple(_append_frame(part.tobytes()) for part in padded.reshape(-1, FRAME)),
        int(onset_s(audio, RATE) / FRAME_S),
    )


def _append_frame(pcm: bytes) -> bytes:
    return _text_frame({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})


def _text_frame(event: dict[str, object]) -> bytes:
    return Frame(Opcode.TEXT, encode(event).encode()).serialize(mask=True)


class Line(asyncio.Protocol):
    """One WebSocket: frames out as they are, events in by `on_event`, its end in `closed`."""

    def __init__(self, url: str) -> None:
        self._protocol = ClientProtocol(parse_uri(url), max_size=None)
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The close code."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                continue
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT:
                self.on_event(bytes(event.data))
        self._flush()
        if self._protocol.close_rcvd is not None and not self.closed.done():
            self.closed.set_result(self._protocol.close_rcvd.code)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(1006)

    def on_event(self, text: bytes) -> None:
        raise NotImplementedError

    def write(self, frame: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def hang_up(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self.write(data)


class Caller(Line):
    def __init__(self, task: Task, clock: "Clock", seed: int) -> None:
        super().__init__(task.url)
        self._task = task
        self._clock = clock
        self._dice = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
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

    # --- out --------------------------------------------------------------------------------------------------------

    def _endless(self, frames: tuple[bytes, ...]) -> Iterator[bytes]:
        at = self._dice.randrange(len(frames))
        while True:
            yield frames[at % len(frames)]
            at += 1

    def send_next_frame(self, now: float) -> None:
        self._sent_at.append(now)
        self.write(next(self._speech, None) or next(self._noise))

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
        if interrupted not in self._stopped:
            self._clock.result.missed += self._clock.is_measuring
        elif self._clock.is_measuring:
            onset_at = self._sent_at[first + clip.onset_frame]
            self._clock.result.barge_in_ms.append((self._interrupted_last_at - onset_at) * 1000)

    # --- in ---------------------------------------------------------------------------------------------------------

    def on_event(self, text: bytes) -> None:
        now = time.monotonic()
        if text.startswith(DELTA):
            self._hear(text, now)
        elif b'"type":"input_audio_buffer.speech_' in text[:50]:
            event = json.loads(text)
            if event["type"] == "input_audio_buffer.speech_started":
                self._stop_playing(now)
            else:
                spoken_ms = event["audio_end_ms"] - PAUSE_MS
                self._asked_at = self._sent_at[int(spoken_ms / 1000 / FRAME_S)]
                self._clock.result.unasked += self._clock.is_measuring and self._answered is None
        elif text.startswith(b'{"type":"session.created"'):
            self.opened.set_result(None)

    def _hear(self, text: bytes, now: float) -> None:
        item_id, encoded = _between(text, b'"item_id":"').decode(), _between(text, b'"delta":"')
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
        seconds = len(encoded) * 3 / 4 / 2 / RATE
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
        event = {"item_id": self._playing, "content_index": 0, "audio_end_ms": played_ms}
        self.write(_text_frame({"type": "conversation.item.truncate", **event}))


def _between(text: bytes, mark: bytes) -> bytes:
    start = text.index(mark) + len(mark)
    return text[start : text.index(b'"', start)]


class Refused(Line):
    """A caller who comes while the server is full."""

    def on_event(self, text: bytes) -> None:
        pass


@dataclass(slots=True)
class Clock:
    """What all callers of a process share."""

    result: Result = field(default_factory=Result)
    is_measuring: bool = False
    played_s: float = 0.0


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


async def _open(line: Line, url: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    await asyncio.get_running_loop().create_connection(lambda: line, parts.hostname, parts.port)


async def _knock(task: Task, clock: Clock, seed: int) -> None:
    """Comes, is turned away, comes again."""
    dice = random.Random(seed)
    while True:
        await asyncio.sleep(dice.uniform(0.5, 2.5))
        line, began = Refused(task.url), time.monotonic()
        await _open(line, task.url)
        code = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                code = await line.closed
        if clock.is_measuring:
            clock.result.refused[code] += 1
            clock.result.refused_ms.append((time.monotonic() - began) * 1000)
        line.hang_up()


async def _run(task: Task, pipe: Connection) -> Result:
    clock = Clock()
    slots: list[list[Caller]] = [[] for _ in range(SLOTS)]
    callers: list[Caller] = []
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_wheel(slots, clock))]
        for number in range(task.sessions):
            caller = Caller(task, clock, number)
            await _open(caller, task.url)
            async with asyncio.timeout(OPEN_S):
                await caller.opened
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
    clock.result.lost = Counter(caller.closed.result() for caller in callers if caller.closed.done())
    clock.result.answering_share = clock.played_s / (task.sessions * task.seconds)
    for caller in callers:
        caller.hang_up()
    await asyncio.sleep(0.2)
    return clock.result


def main(task: Task, pipe: Connection) -> None:
    """Says "begun" and "over" through the pipe at the ends of the measured time, then the Result."""
    result: Any
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_run(task, pipe))
    pipe.send(result)
