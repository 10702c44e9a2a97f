"""What a client sends faster than it can be taken in: its order, how much waits, and where the work begins."""

import asyncio
from contextvars import Context, ContextVar
from typing import Any

import numpy as np
import pytest
from session.calls import Audio, Call, Json, ToneDetector, append, calling, scripted, tone
from session.virtual import the_loop, virtual_time

from deployments.interfaces import Transcript
from serve_app.conversation.events import FrameScored, ItemCreated
from serve_app.session.session import LARGE, MOST_WAITING, UNBROKEN
from serve_app.session.transport import Ending

SCORE_S = 0.01
LIVE_S = 0.1
"""Few enough frames to wait for those of other sessions."""
DETECTOR_RATE = 16_000


class SlowDetector(ToneDetector):
    """Every live frame waits for its score."""

    def hear(self, frame: Audio) -> asyncio.Future[float]:
        scored: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        def settle() -> None:
            if not scored.done():
                scored.set_result(self.probability(frame))

        the_loop().call_later(SCORE_S, settle)
        return scored


def item(name: str, text: str = "x") -> Json:
    content = [{"type": "input_text", "text": text}]
    message = {"type": "message", "role": "user", "id": name, "content": content}
    return {"type": "conversation.item.create", "item": message}


def quiet(seconds: float) -> Json:
    return append(np.zeros(round(seconds * 24_000), dtype=np.float32))


def items_of(call: Call) -> list[str | None]:
    """The clients' items in the order in which the conversation learned of them."""
    return [event.item_id for event, _ in call.recorder.facts if isinstance(event, ItemCreated)]


def heard_before(call: Call, name: str) -> float:
    """Seconds of audio that the conversation had heard when it learned of this item."""
    samples = 0
    for event, _ in call.recorder.facts:
        if isinstance(event, FrameScored):
            samples += event.samples
        elif isinstance(event, ItemCreated) and event.item_id == name:
            return samples / DETECTOR_RATE
    raise AssertionError(f"no item {name}: {items_of(call)}")


# --- order ----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_what_follows_audio_is_taken_in_when_all_of_it_is_scored():
    names = [str(number) for number in range(12)]
    async with calling(microphone=False, make_detector=SlowDetector) as call:
        for name in names:
            call.send(quiet(LIVE_S))
            call.send(item(name))
        await call.until("conversation.item.added", count=len(names))
        assert items_of(call) == names
        for number, name in enumerate(names, start=1):
            assert heard_before(call, name) == pytest.approx(number * LIVE_S, abs=0.04), "a part of a frame"


@virtual_time
async def test_a_recording_is_taken_in_before_what_follows_it():
    async with calling(microphone=False, make_detector=SlowDetector) as call:
        call.send(quiet(60.0))
        call.send(item("behind"))
        await call.until("conversation.item.added")
        assert heard_before(call, "behind") == pytest.approx(60.0, abs=0.04)


@virtual_time
async def test_a_commit_that_is_sent_with_its_audio_takes_all_of_it():
    heard: list[float] = []

    class Measuring:
        active = 0

        async def transcribe(self, pcm: bytes, **_: Any) -> Transcript:
            heard.append(len(pcm) / 2 / DETECTOR_RATE)
            return Transcript("yes")

    engines = scripted(transcriber=Measuring(), make_detector=SlowDetector)
    async with calling(microphone=False, engines=engines) as call:
        size = round(LIVE_S * 24_000)
        for start in range(0, 10 * size, size):
            call.send(append(tone(start, size, 24_000)))
        call.send({"type": "input_audio_buffer.commit"})
        await call.until("conversation.item.input_audio_transcription.completed")
    assert heard[-1] == pytest.approx(1.0, abs=0.04)


# --- bounds ---------------------------------------------------------------------------------------------------------


@virtual_time
async def test_when_much_waits_nothing_more_is_read_until_it_is_taken_in():
    names = [str(number) for number in range(5 * MOST_WAITING)]
    async with calling(microphone=False, make_detector=SlowDetector) as call:
        await call.until("session.created")
        call.send(quiet(LIVE_S))
        for name in names:
            call.send(item(name))
            assert len(call.session._waiting) <= MOST_WAITING
        assert call.transport.is_paused == call.transport.is_direct, "by ASGI it is received one by one"
        await call.until("conversation.item.added", count=len(names))
        assert items_of(call) == names
        await asyncio.sleep(1.0)
        assert not call.transport.is_paused
        call.send(item("later"))
        await call.until("conversation.item.added", count=len(names) + 1)


@virtual_time
async def test_a_large_message_does_not_wait_with_others_behind_it():
    async with calling(microphone=False, make_detector=SlowDetector) as call:
        await call.until("session.created")
        call.send(quiet(LIVE_S))
        for name in "abc":
            call.send(item(name, "x" * LARGE))
            assert len(call.session._waiting) <= 1
        await call.until("conversation.item.added", count=3)
        assert items_of(call) == ["a", "b", "c"]
        await asyncio.sleep(1.0)
        assert not call.transport.is_paused


@virtual_time
async def test_a_client_that_asks_for_much_at_once_lets_the_loop_turn_between_its_answers():
    async with calling(microphone=False) as call:
        await call.until("session.created")
        before = the_loop().steps
        for number in range(200):
            call.send(item(str(number)))
        await call.until("conversation.item.added", count=200)
        assert the_loop().steps - before >= 200
        assert items_of(call) == [str(number) for number in range(200)]


@virtual_time
async def test_a_flood_that_asks_for_nothing_does_not_hold_the_loop():
    async with calling(microphone=False) as call:
        await call.until("session.created")
        before = the_loop().steps
        for _ in range(100 * UNBROKEN):
            call.send(quiet(1 / 24_000))
        call.send(item("behind"))
        await call.until("conversation.item.added")
        assert the_loop().steps - before >= 100


@virtual_time
async def test_of_what_waits_nothing_is_taken_in_once_the_session_is_over():
    async with calling(microphone=False) as call:
        await call.until("session.created")
        learned: list[int] = []

        def end(event: Json) -> None:
            if event["type"] == "conversation.item.added" and not learned:
                call.session.end(Ending(1000, "enough"))
                learned.append(len(call.recorder.facts))

        call.on_event = end
        for number in range(10):
            call.send(item(str(number)))
        await call.until(lambda: call.ending is not None)
        assert learned == [len(call.recorder.facts)]


# --- where its work begins ------------------------------------------------------------------------------------------


@virtual_time
async def test_engines_are_called_in_the_context_of_the_request_whatever_brought_the_message():
    """The transport reads in the loop's own context, in which Ray finds no request."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: dict[str, set[str]] = {}
    engines: Any = scripted()

    def watch(stage: str, engine: Any, method: str) -> None:
        called = getattr(engine, method)

        def noted(*args: Any, **options: Any) -> Any:
            seen.setdefault(stage, set()).add(request.get())
            return called(*args, **options)

        setattr(engine, method, noted)

    watch("stt", engines.transcriber, "transcribe")
    watch("llm", engines.chat, "generate")
    watch("tts", engines.synthesizer, "synthesize")
    request.set("the caller's")
    async with calling(engines=engines, microphone=False) as call:
        await call.until("session.created")
        sound = np.concatenate([tone(0, 24_000, 24_000), np.zeros(24_000, dtype=np.float32)])
        the_loop().call_soon(call.send, append(sound), context=Context())
        await call.until("response.done")
        the_loop().call_soon(call.send, {"type": "response.create"}, context=Context())
        await call.until("response.done", count=2)
    assert seen == {stage: {"the caller's"} for stage in ("stt", "llm", "tts")}
