"""How sessions end: whatever it was, in bounded time, with no task and no engine call left."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from session.calls import Call, Faults, active_calls, append, calling, scripted, tone
from session.faulty import FaultyChatModel, FaultySynthesizer
from session.virtual import run, the_loop, virtual_time

from deployments.options import ScriptedLlm, ScriptedStt, ScriptedTts
from serve_app.conversation.events import (
    AudioSent,
    FrameScored,
    ServerVad,
    Settings,
    SpeechSynthesized,
    TokensGenerated,
)
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions
from serve_app.session.stages import Engines
from serve_app.session.transport import Ending

BRISK = Settings(instructions="Be brief.", turn_detection=ServerVad(silence_duration_ms=200))
SEND_S, IDLE_S = 1.0, 2.0
OPTIONS = SessionOptions(send_s=SEND_S, idle_timeout_s=IDLE_S, max_session_s=60.0)
SHORT_TURN_S = 2.0


def quick_engines() -> Engines:
    """A whole turn in few steps of the loop."""
    return scripted(
        stt=ScriptedStt(latency_s=0.05),
        llm=ScriptedLlm(first_token_s=0.05, tokens_per_s=100.0, answer_words=8),
        tts=ScriptedTts(first_audio_s=0.05, word_s=0.1),
    )


def short_call(engines: Engines, **options: Any) -> Any:
    return calling(engines=engines, settings=BRISK, append_s=0.1, **({"options": OPTIONS} | options))


async def short_turn(call: Call) -> None:
    """A turn, its answer, a barge-in and the beginning of the next answer."""
    call.says(at=0.1, for_s=0.3)
    call.says(at=1.1, for_s=0.2)
    await call.sleep_until(SHORT_TURN_S)


def steps_of_a_turn() -> int:
    async def count() -> int:
        async with short_call(quick_engines()) as call:
            before = the_loop().steps
            await short_turn(call)
            assert call.outcomes() == ["cancelled"]
            assert len(call.player.sounds) > len(call.all("response.created")) == 2
            return the_loop().steps - before

    return run(count())


# --- the peer -------------------------------------------------------------------------------------------------------


def leaves(call: Call) -> None:
    call.transport.hang_up()


def resets(call: Call) -> None:
    """Nothing says so but the next send."""
    call.transport.is_lost = True


def vanishes(call: Call) -> None:
    """Nothing says so at all; sends hang."""
    call.transport.has_left = True
    call.mic_on = False


@pytest.mark.parametrize(
    ("gone", "within_s", "codes"),
    [(leaves, 0.0, {1001}), (resets, IDLE_S, {1001, 1000}), (vanishes, IDLE_S, {1008, 1000})],
)
def test_hanging_up_at_any_await_of_a_turn_leaves_nothing_behind(
    gone: Callable[[Call], None], within_s: float, codes: set[int], caplog: pytest.LogCaptureFixture
):
    async def hang_up_after(steps: int) -> None:
        engines: Any = quick_engines()
        async with short_call(engines) as call:
            at: list[float] = []

            def now() -> None:
                at.append(call.now)
                gone(call)
                if gone is resets:
                    call.mic_on = False

            the_loop().at_step[the_loop().steps + steps] = now
            await short_turn(call)
            await call.sleep_until(at[0] + within_s + 0.1)
            assert call.ending is not None, f"it goes on after step {steps}"
            assert call.ending.code in codes
            assert call.ended_at is not None
            assert call.ended_at - at[0] <= within_s + 1e-6
            assert active_calls(engines) == 0
            assert (call.transport.closed is None) == call.ending.is_peer_gone

    total = steps_of_a_turn()
    assert total > 100
    every = 1 if gone is leaves else 3
    for steps in range(1, total, every):
        run(hang_up_after(steps))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("number", range(0, 12))
@virtual_time
async def test_a_socket_that_breaks_in_a_send_or_a_receive(number: int):
    for faults in (Faults(lose_at_send=number), Faults(lose_at_receive=number)):
        async with short_call(quick_engines(), faults=faults) as call:
            await short_turn(call)
            assert call.ending is not None
            assert (call.ending.code, call.ending.is_peer_gone) == (1001, True)
            assert call.transport.closed is None, "there is nobody to tell"


@virtual_time
async def test_nothing_is_begun_for_a_peer_that_is_gone_while_an_engine_lets_go_slowly():
    """The microphone stalled in mid-speech a moment before: the silence that is due must not start a turn."""
    good: Any = quick_engines()
    slow = FaultyChatModel(good.chat, [], release_s=3.0)
    engines: Any = scripted(
        transcriber=good.transcriber,
        synthesizer=good.synthesizer,
        chat=slow,
        llm=ScriptedLlm(tokens_per_s=1.0),
    )
    async with short_call(engines) as call:
        call.says(at=0.1, for_s=0.3)
        await call.until("response.created")
        call.says(at=call.now, for_s=3.0)
        await call.until("response.done")
        call.mic_on = False
        begun = good.transcriber.started, good.chat.started, good.synthesizer.started
        assert slow.active == 1
        call.transport.hang_up()
        await call.sleep_until(call.now + 5.0)
        assert (good.transcriber.started, good.chat.started, good.synthesizer.started) == begun
        assert call.ended_at is not None


# --- a client that reads slowly -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", range(0, 40, 3))
@virtual_time
async def test_a_client_that_stops_reading_is_let_go(frame: int):
    async with short_call(quick_engines(), faults=Faults(block_at_send=frame)) as call:
        call.says(at=0.1, for_s=0.3)
        await call.sleep_until(5.0)
        if call.ending is None:  # there were fewer frames to read
            assert len(call.events) <= frame
            return
        assert call.ending.code == 1008
        assert call.ending.reason == "the client has read nothing for 1 s"
        assert call.transport.closed == (1008, call.ending.reason)
        last_read = call.events[-1][0] if call.events else 0.0
        assert call.ended_at is not None
        assert call.ended_at <= max(last_read, 1.5) + SEND_S + 0.6


@virtual_time
async def test_a_client_that_asks_for_more_than_it_reads_is_let_go():
    options = SessionOptions(max_outbox_bytes=64 * 1024, send_s=5.0)
    async with calling(microphone=False, options=options, faults=Faults(block_at_send=5)) as call:
        content = [{"type": "input_text", "text": "x" * 5000}]
        item = {"type": "message", "role": "user", "id": "big", "content": content}
        call.send({"type": "conversation.item.create", "item": item})
        for _ in range(100):
            call.send({"type": "conversation.item.retrieve", "item_id": "big"})
        await call.sleep_until(0.1)
        assert call.ending is not None
        assert call.transport.closed == (1008, "the client reads too slowly: 65536 bytes wait for it")


@virtual_time
async def test_a_client_that_reads_what_it_asks_for_may_ask_for_much():
    options = SessionOptions(max_outbox_bytes=64 * 1024)
    async with calling(microphone=False, options=options) as call:
        content = [{"type": "input_text", "text": "x" * 5000}]
        item = {"type": "message", "role": "user", "id": "big", "content": content}
        call.send({"type": "conversation.item.create", "item": item})
        for _ in range(100):
            call.send({"type": "conversation.item.retrieve", "item_id": "big"})
        await call.until("conversation.item.retrieved", count=100)
        assert call.ending is None


# --- limits and rules -----------------------------------------------------------------------------------------------


@virtual_time
async def test_a_binary_frame_is_not_of_this_protocol():
    async with calling() as call:
        call.send(b"\x00\x01")
        await call.sleep_until(0.5)
        assert call.transport.closed is not None
        assert call.transport.closed[0] == 1003
        assert call.ended_at == 0.0


@virtual_time
async def test_a_session_ends_at_its_greatest_length_with_a_sentence():
    async with calling(options=SessionOptions(max_session_s=3.0), append_s=0.1) as call:
        call.says(at=0.5, for_s=0.5)
        await call.sleep_until(4.0)
        assert call.transport.closed == (
            1000,
            "the session has lasted 3 s, the most that this server allows",
        )
        assert call.ended_at == pytest.approx(3.0)


@virtual_time
async def test_a_session_ends_when_nothing_comes_from_the_client():
    async with calling(options=SessionOptions(idle_timeout_s=2.0), append_s=0.1) as call:
        await call.sleep_until(5.0)
        assert call.ending is None, "a live microphone is something"
        call.mic_on = False
        await call.sleep_until(8.0)
        assert call.transport.closed == (1000, "nothing came from the client for 2 s")
        assert call.ended_at == pytest.approx(7.0, abs=0.11)


@virtual_time
async def test_the_first_reason_counts():
    async with calling(microphone=False) as call:
        call.send(b"")
        call.session.end(Ending(1000, "too late"))
        call.session.end(Ending(1008, "and again"))
        await call.sleep_until(0.1)
        assert call.transport.closed == (1000, "too late")


async def cancelled_while_thinking(engines: Engines) -> None:
    async with short_call(engines) as call:
        call.says(at=0.1, for_s=0.3)
        await call.until("response.created")
        assert active_calls(engines) == 1
        (running,) = [task for task in asyncio.all_tasks() if task.get_name() == "session"]
        running.cancel()
        await asyncio.wait([running])
        assert active_calls(engines) == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().endswith("-test")]


@virtual_time
async def test_cancelling_the_session_ends_it_with_all_that_it_began():
    with pytest.raises(asyncio.CancelledError):
        await cancelled_while_thinking(quick_engines())


# --- our own mistakes -----------------------------------------------------------------------------------------------


class Bug(Exception):
    """What must not reach the client."""


def facts_of_a_turn() -> list[int]:
    """The numbers of all facts, but of the detector's only every fourth."""

    async def numbers() -> list[int]:
        async with short_call(quick_engines()) as call:
            await short_turn(call)
            facts = enumerate(call.recorder.facts, start=1)
            return [n for n, (fact, _) in facts if n % 4 == 0 or not isinstance(fact, FrameScored)]

    return run(numbers())


def test_a_mistake_of_ours_at_any_fact_ends_the_session_with_1011_and_one_log_line(
    caplog: pytest.LogCaptureFixture,
):
    """Whichever task had learned the fact: the reader, an engine's, the writer, the timer."""
    kinds: set[str] = set()

    async def fail_at(number: int) -> None:
        engines = quick_engines()
        async with short_call(engines) as call:
            handled = call.recorder.event_handled

            def broken(session_id: str, event: Any, now: float) -> None:
                handled(session_id, event, now)
                if len(call.recorder.facts) == number:
                    kinds.add(type(event).__name__)
                    raise Bug("secret words")

            call.recorder.event_handled = broken  # type: ignore[method-assign]
            await short_turn(call)
            assert call.transport.closed == (1011, "internal error")
            assert active_calls(engines) == 0
            assert "secret" not in str(call.events)
            assert call.ended_at == call.recorder.facts[number - 1][1] - call.began, "at once"

    for number in facts_of_a_turn():
        caplog.clear()
        run(fail_at(number))
        loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.message for record in loud] == ["session failed"]
        assert loud[0].exc_info is not None
        assert "Bug" in (loud[0].exc_text or logging.Formatter().formatException(loud[0].exc_info))
    assert {"NoneType", "FrameScored", "AudioSent", "TokensGenerated", "SpeechSynthesized"} <= kinds


@virtual_time
async def test_an_engine_that_breaks_its_promise_is_our_mistake(caplog: pytest.LogCaptureFixture):
    """It raises something else than EngineError."""
    engines: Any = quick_engines()

    async def transcribe(pcm: bytes, **_: Any) -> Any:
        raise KeyError("secret")

    engines.transcriber.transcribe = transcribe
    async with short_call(engines) as call:
        await short_turn(call)
        assert call.transport.closed == (1011, "internal error")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "session failed"
    ]


@pytest.mark.parametrize("fact", [TokensGenerated, SpeechSynthesized])
@virtual_time
async def test_a_mistake_of_ours_waits_for_the_engines_to_let_go(fact: type):
    """The stream in whose midst it came is closed before the session is over, not when somebody collects garbage."""
    good: Any = quick_engines()
    engines = scripted(
        transcriber=good.transcriber,
        chat=FaultyChatModel(good.chat, [], release_s=0.04),
        synthesizer=FaultySynthesizer(good.synthesizer, [], release_s=0.04),
    )
    async with short_call(engines) as call:
        handled = call.recorder.event_handled

        def broken(session_id: str, event: Any, now: float) -> None:
            handled(session_id, event, now)
            if isinstance(event, fact):
                raise Bug

        call.recorder.event_handled = broken  # type: ignore[method-assign]
        ended: list[int] = []
        close = call.transport.close

        async def closing(code: int, reason: str) -> None:
            ended.append(active_calls(engines))
            await close(code, reason)

        call.transport.close = closing  # type: ignore[method-assign]
        await short_turn(call)
        assert ended == [0]


@virtual_time
async def test_a_detector_that_fails_ends_only_its_own_session():
    class Broken:
        def probabilities(self, detectors: Any, frames: Any) -> list[float]:
            raise RuntimeError("no model")

    async with short_call(quick_engines(), make_detector=Broken) as call:
        await short_turn(call)
        assert call.transport.closed == (1011, "internal error")


# --- order under a late timer ---------------------------------------------------------------------------------------


@virtual_time
async def test_what_a_tick_learns_waits_until_its_commands_are_carried_out():
    """The loop was held for a while, so a chunk and the silence for a stalled microphone fall due in one tick."""
    settings = Settings(turn_detection=ServerVad(silence_duration_ms=200, interrupt_response=False))
    options = SessionOptions(parameters=Parameters(playout_lead_s=0.1, stall_s=1.0))
    engines = scripted(llm=ScriptedLlm(first_token_s=0.05, tokens_per_s=100.0, answer_words=20))
    async with calling(settings=settings, engines=engines, options=options) as call:
        call.stops_at_speech = False
        call.says(at=0.1, for_s=0.3)
        await call.until("response.output_audio.delta")
        call.says(at=call.now, for_s=5.0)
        await call.until("input_audio_buffer.speech_started", count=2)
        await call.sleep_until(call.now + 0.3)
        call.mic_on = False
        handled = call.session._conversation.tick
        seen: list[list[str]] = []

        def ticking(now: float) -> Any:
            commands = handled(now)
            seen.append([type(command).__name__ for command in commands])
            return commands

        call.session._conversation.tick = ticking  # type: ignore[method-assign]
        stalled_at = call.session._conversation._hearing.deadline
        assert stalled_at is not None
        await call.sleep_until(stalled_at - call.began - 0.005)
        the_loop().now += 0.2
        sent_before = len(call.events)
        await call.until("input_audio_buffer.committed", count=2)
        both = next(commands for commands in seen if {"InsertSilence", "Play"} <= set(commands))
        assert both.index("InsertSilence") < both.index("Play")
        kinds = [event["type"] for _, event in call.events[sent_before:]]
        assert kinds.index("response.output_audio.delta") < kinds.index("input_audio_buffer.speech_stopped")
        facts = [event for event, _ in call.recorder.facts]
        assert any(isinstance(event, FrameScored) for event in facts)
        assert any(isinstance(event, AudioSent) for event in facts)


@virtual_time
async def test_an_append_that_arrives_after_the_end_is_not_taken():
    async with calling(microphone=False) as call:
        call.send(b"binary")
        call.send(append(tone(0, 24_000, 24_000)))
        await call.sleep_until(0.2)
        assert [fact for fact, _ in call.recorder.facts if fact is not None] == []
