"""The callers of `bench sessions`: what they send is what a client sends, and they count rightly what they get."""

import asyncio

import numpy as np
import pytest
from websockets.frames import Frame
from websockets.streams import StreamReader

from loadtest.lean_callers import Caller, Clip, Clock, Task, clip_of
from serve_app.realtime.client_events import InputAudio, ItemTruncate
from serve_app.realtime.codec import decode, encode, encode_audio_delta

CHUNK = bytes(3840)
"""80 ms."""
TASK = Task("ws://nowhere/v1/realtime", 1, 1.0, (), Clip((b"noise",), 0), explained_ms=700.0)


def payload(frame: bytes) -> str:
    reader = StreamReader()
    reader.feed_data(frame)
    parsing = Frame.parse(reader.read_exact, mask=True)
    with pytest.raises(StopIteration) as parsed:
        next(parsing)
    return bytes(parsed.value.value.data).decode()


def test_a_clip_is_the_frames_of_a_microphone() -> None:
    audio = np.concatenate([np.zeros(1000), 0.5 * np.ones(1000)]).astype(np.float32)
    clip = clip_of(audio)
    events = [decode(payload(frame)) for frame in clip.frames]
    heard = b"".join(event.encoded for event in events if isinstance(event, InputAudio))
    assert len(clip.frames) == 5
    assert len(heard) == 5 * 960
    assert np.array_equal(np.frombuffer(heard, dtype="<i2")[:2000], np.rint(audio * 32767).astype("<i2"))
    assert clip.onset_frame == 2


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.sent.append(data)

    def is_closing(self) -> bool:
        return False


class Call:
    """A caller whose clock the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("loadtest.lean_callers.time.monotonic", lambda: self.now)
        self.clock = Clock(is_measuring=True)
        self.caller = Caller(TASK, self.clock, seed=1)
        self.wire = Wire()
        self.caller.connection_made(self.wire)
        self.wire.sent.clear()

    def sends_for(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.caller.send_next_frame(self.now)
            self.now += 0.02

    def gets(self, kind: str, **fields: object) -> None:
        self.caller.on_event(encode({"type": kind, "event_id": "event_1", **fields}).encode())

    def hears(self, item_id: str) -> None:
        self.caller.on_event(encode_audio_delta("event_2", "resp_1", item_id, CHUNK).encode())

    def asks(self) -> "asyncio.Task[bool]":
        return asyncio.Task(self.caller._ask(Clip((b"word",) * 10, 1)))


@pytest.fixture
async def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    return Call(monkeypatch)


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
    assert not await call.caller._ask(Clip((), 0))
    assert (call.clock.result.turns, call.clock.result.missed) == (1, 1)


async def test_what_is_said_goes_out_in_order_and_noise_fills_the_rest(call: Call) -> None:
    call.caller._say(Clip((b"one", b"two"), 0))
    call.sends_for(0.08)
    assert call.wire.sent == [b"one", b"two", b"noise", b"noise"]
