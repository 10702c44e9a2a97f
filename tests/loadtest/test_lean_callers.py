"""The callers of `bench sessions`: what they send is what a client sends, and they count rightly what they get."""

import asyncio
from contextlib import suppress

import numpy as np
import pytest
from memory_line import payload
from websockets.asyncio.server import ServerConnection, serve

from loadtest.application import free_port
from loadtest.lean_callers import NO_CLOSE, Caller, Clip, Clock, Task, _knock, clip_of
from loadtest.line import Line
from serve_app.audio.pcm import encode_pcm
from serve_app.realtime.client_events import InputAudio, ItemTruncate
from serve_app.realtime.codec import decode, encode, encode_audio_delta

CHUNK = bytes(3840)
"""80 ms."""
TASK = Task("ws://nowhere/v1/realtime", 1, 1.0, (), Clip("", (b"noise",), 0.0), explained_ms=700.0)


def test_a_clip_is_the_frames_of_a_microphone() -> None:
    audio = np.concatenate([np.zeros(1000), 0.5 * np.ones(1000)]).astype(np.float32)
    clip = clip_of(audio)
    events = [decode(payload(frame)) for frame in clip.frames]
    heard = b"".join(event.encoded for event in events if isinstance(event, InputAudio))
    assert len(clip.frames) == 5
    assert len(heard) == 5 * 960
    assert heard.startswith(encode_pcm(audio))
    assert clip.onset_s == pytest.approx(0.04)


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.sent.append(data)

    def get_write_buffer_size(self) -> int:
        return 0


class Call:
    """A caller whose clock the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.clock = Clock(is_measuring=True)
        self.caller = Caller(TASK, self.clock, seed=1)
        self.wire = Wire()
        self.caller.line = Line(TASK.url, self.caller.on_text)
        self.caller.line.connection_made(self.wire)
        self.wire.sent.clear()

    def sends_for(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.caller.send_next_frame(self.now)
            self.now += 0.02

    def gets(self, kind: str, **fields: object) -> None:
        self.caller.on_text(self.now, encode({"type": kind, "event_id": "event_1", **fields}).encode())

    def hears(self, item_id: str) -> None:
        self.caller.on_text(self.now, encode_audio_delta("event_2", "resp_1", item_id, CHUNK).encode())

    def asks(self) -> "asyncio.Task[bool]":
        return asyncio.Task(self.caller._ask(Clip("", (b"word",) * 10, 0.02)))


@pytest.fixture
async def call() -> Call:
    return Call()


async def test_overhead_is_what_the_set_stages_do_not_explain(call: Call) -> None:
    asking = call.asks()
    await asyncio.sleep(0)
    call.sends_for(2.0)
    call.gets("input_audio_buffer.speech_stopped", item_id="item_1", audio_end_ms=1096)
    call.now = 100.0 + 1.0 + 0.7 + 0.033
    call.hears("item_2")
    call.hears("item_2")
    assert await asking
    assert call.clock.result.overhead_ms == pytest.approx([33.0])
    assert (call.clock.result.turns, call.clock.result.missed, call.clock.result.unasked) == (1, 0, 0)


async def test_a_turn_that_nobody_took_is_counted(call: Call) -> None:
    call.sends_for(1.0)
    call.gets("input_audio_buffer.speech_stopped", item_id="item_1", audio_end_ms=500)
    assert call.clock.result.unasked == 1


async def test_a_barge_in_is_timed_to_the_last_chunk_and_truncated(call: Call) -> None:
    call.hears("item_1")
    call.now += 0.08
    call.hears("item_1")
    call.now += 0.02
    call.gets("input_audio_buffer.speech_started", item_id="item_9", audio_start_ms=0)
    (truncate,) = (decode(payload(frame)) for frame in call.wire.sent)
    assert isinstance(truncate, ItemTruncate)
    assert (truncate.item_id, truncate.audio_end_ms) == ("item_1", pytest.approx(100, abs=1))
    assert call.caller._interrupted_last_at == pytest.approx(100.08)
    assert call.clock.result.stale_chunks == 0
    call.hears("item_1")
    assert call.clock.result.stale_chunks == 1
    assert call.clock.played_s == pytest.approx(0.1)


async def test_speech_after_an_answer_was_played_interrupts_nothing(call: Call) -> None:
    call.hears("item_1")
    call.now += 5.0
    call.gets("input_audio_buffer.speech_started", item_id="item_9", audio_start_ms=0)
    assert call.wire.sent == []


async def test_a_question_without_an_answer_is_missed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.lean_callers.ANSWER_WITHIN_S", 0.0)
    assert not await call.caller._ask(Clip("", (), 0.0))
    assert (call.clock.result.turns, call.clock.result.missed) == (1, 1)


async def test_what_is_said_goes_out_in_order_and_noise_fills_the_rest(call: Call) -> None:
    call.caller._say(Clip("", (b"one", b"two"), 0.0))
    call.sends_for(0.08)
    assert call.wire.sent == [b"one", b"two", b"noise", b"noise"]


async def test_a_barge_in_lasts_from_the_onset_of_speech_to_the_last_stale_chunk(call: Call) -> None:
    call.hears("item_1")
    call.sends_for(0.02)
    interrupting = asyncio.Task(call.caller._interrupt(Clip("", (b"word",) * 10, 0.04)))
    await asyncio.sleep(0)
    call.sends_for(0.06)
    call.gets("input_audio_buffer.speech_started", item_id="item_9", audio_start_ms=0)
    call.now += 0.03
    call.hears("item_1")
    call.now += 1.0
    call.hears("item_2")
    await interrupting
    onset_at, stale_at = 100.0 + 0.02 + 0.04, 100.0 + 0.08 + 0.03
    assert call.clock.result.barge_in_ms == pytest.approx([(stale_at - onset_at) * 1000])
    assert call.clock.result.missed == 0


async def test_speech_that_did_not_interrupt_is_missed(call: Call) -> None:
    call.hears("item_1")
    interrupting = asyncio.Task(call.caller._interrupt(Clip("", (b"word",) * 10, 0.0)))
    await asyncio.sleep(0)
    call.sends_for(0.2)
    call.hears("item_2")
    await interrupting
    assert (call.clock.result.barge_in_ms, call.clock.result.missed) == ([], 1)


async def test_what_interrupted_before_the_speech_began_was_not_the_speech(call: Call) -> None:
    call.hears("item_1")
    interrupting = asyncio.Task(call.caller._interrupt(Clip("", (b"word",) * 10, 0.1)))
    await asyncio.sleep(0)
    call.sends_for(0.04)
    call.gets("input_audio_buffer.speech_started", item_id="item_9", audio_start_ms=0)
    call.hears("item_2")
    await interrupting
    assert (call.clock.result.barge_in_ms, call.clock.result.missed) == ([], 1)


# --- over a socket --------------------------------------------------------------------------------------------------


def task_for(port: int) -> Task:
    return Task(f"ws://127.0.0.1:{port}/", 1, 1.0, (), clip_of(np.zeros(480, np.float32)), explained_ms=0.0)


async def test_a_caller_is_greeted_is_heard_and_is_answered() -> None:
    said = clip_of(np.full(960, 0.5, np.float32))

    async def answer(socket: ServerConnection) -> None:
        await socket.send(encode({"type": "session.created", "event_id": "event_1"}))
        while not (isinstance(event := decode(await socket.recv()), InputAudio) and any(event.encoded)):
            pass
        await socket.send(encode_audio_delta("event_2", "resp_1", "item_1", CHUNK))
        await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0) as server:
        clock = Clock(is_measuring=True)
        caller = Caller(task_for(server.sockets[0].getsockname()[1]), clock, seed=1)
        await caller.open()
        asking = asyncio.Task(caller._ask(said))
        await asyncio.sleep(0)
        for _ in range(3):
            caller.send_next_frame(0.0)
        assert await asking
        await caller.line.close()
    assert (clock.result.turns, clock.result.missed) == (1, 0)
    assert clock.played_s == pytest.approx(0.08)
    assert caller.line.ended.result().code == 1000


@pytest.mark.parametrize("code", [1013, NO_CLOSE])
async def test_who_is_turned_away_counts_the_close_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.lean_callers.KNOCK_S", (0.0, 0.0))
    tries = asyncio.Semaphore(0)

    async def refuse(socket: ServerConnection) -> None:
        tries.release()
        if code == NO_CLOSE:
            socket.transport.abort()
        else:
            await socket.close(code)

    async with serve(refuse, "127.0.0.1", 0) as server:
        clock = Clock(is_measuring=True)
        knocking = asyncio.Task(_knock(task_for(server.sockets[0].getsockname()[1]), clock, seed=1))
        for _ in range(3):
            await tries.acquire()
        knocking.cancel()
        with suppress(asyncio.CancelledError):
            await knocking
    assert set(clock.result.refused) == {code}
    assert clock.result.refused.total() == len(clock.result.refused_ms) >= 2


async def test_where_nobody_listens_every_try_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.lean_callers.KNOCK_S", (0.0, 0.0))
    clock = Clock(is_measuring=True)
    knocking = asyncio.Task(_knock(task_for(free_port()), clock, seed=1))
    async with asyncio.timeout(10):
        while clock.result.refused.total() < 2:
            await asyncio.sleep(0)
    knocking.cancel()
    assert set(clock.result.refused) == {NO_CLOSE}
