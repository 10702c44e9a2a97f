"""`/v1/realtime?intent=transcription`: turns are put into words and never answered, whatever becomes of the LLM and the voice."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ingress.asgi import Socket, connected, server_of
from session.calls import append, scripted, tone
from session.faulty import Fault, FaultyTranscriber
from session.virtual import virtual_time

from deployments.options import ScriptedStt
from serve_app.server import VoiceServer
from serve_app.session.stages import Engines

COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"
DELTA = "conversation.item.input_audio_transcription.delta"
LISTENING = {"query": "intent=transcription"}


class Nobody:
    """Neither thinks nor speaks: to be asked is a fault of ours, which ends the session."""

    voices = ()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked for {name}")


def ears(**options: Any) -> Engines:
    return replace(scripted(**options), chat=Nobody(), synthesizer=Nobody())


def listener(engines: Engines | None = None, **config: Any) -> VoiceServer:
    voices = RuntimeError("there is no voice")
    return server_of(engines=engines or ears(), voices=voices, **config)


def utterance(seconds: float = 0.5) -> dict[str, Any]:
    audio = np.concatenate([np.zeros(2400), tone(0, int(24_000 * seconds), 24_000), np.zeros(24_000)])
    return append(audio.astype(np.float32))


def of_responses(socket: Socket) -> list[str]:
    return [event["type"] for event in socket.events if event["type"].startswith("response.")]


@virtual_time
async def test_a_turn_is_put_into_words_and_not_answered() -> None:
    async with connected(listener(), **LISTENING) as socket:
        created = await socket.until("session.created")
        assert created["session"]["type"] == "transcription"
        for count in (1, 2):
            socket.send(utterance())
            heard = await socket.until(COMPLETED, count=count)
            assert heard["transcript"]
            assert heard["usage"]["seconds"] > 0.4
            assert socket.all(DELTA)[-1]["delta"] == heard["transcript"]
        kinds = [event["type"] for event in socket.events]
    assert kinds[1:7] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        DELTA,
    ]
    assert of_responses(socket) == []


@virtual_time
async def test_the_client_may_commit() -> None:
    async with connected(listener(), **LISTENING) as socket:
        session = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        socket.send({"type": "session.update", "session": session})
        updated = await socket.until("session.updated")
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        socket.send(utterance())
        socket.send({"type": "input_audio_buffer.commit"})
        assert (await socket.until(COMPLETED))["transcript"]
    assert of_responses(socket) == []


@virtual_time
async def test_words_are_shown_while_they_are_spoken_where_the_operator_wants_it() -> None:
    said = "one two three four five six seven eight"
    server = listener(ears(stt=ScriptedStt(transcripts=(said,))), turn_taking={"interim_ms": 200})
    async with connected(server, **LISTENING) as socket:
        for start in range(0, 48_000, 480):
            socket.send(append(tone(start, 480, 24_000)))
            await asyncio.sleep(0.02)
        socket.send(append(np.zeros(24_000, dtype=np.float32)))
        heard = await socket.until(COMPLETED)
    assert len(socket.all(DELTA)) > 1
    assert "".join(delta["delta"] for delta in socket.all(DELTA)) == heard["transcript"] == said


@virtual_time
async def test_a_transcriber_that_breaks_is_told_and_the_session_goes_on() -> None:
    engines = ears()
    broken = [Fault("fails"), Fault("fails")]
    engines = replace(engines, transcriber=FaultyTranscriber(engines.transcriber, broken))
    async with connected(listener(engines), **LISTENING) as socket:
        socket.send(utterance())
        failed = await socket.until(FAILED)
        assert failed["error"]["code"] == "engine_failed"
        socket.send(utterance())
        await socket.until(COMPLETED)
    assert of_responses(socket) == []


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"type": "response.create", "event_id": "e1"}, "not_supported"),
        ({"type": "response.cancel", "event_id": "e1"}, "response_cancel_not_active"),
        ({"type": "session.update", "event_id": "e1", "session": {"type": "realtime"}}, "invalid_value"),
    ],
)
@virtual_time
async def test_what_would_make_it_answer_is_refused_and_the_session_goes_on(
    event: dict[str, Any], code: str
) -> None:
    async with connected(listener(), **LISTENING) as socket:
        await socket.until("session.created")
        [error] = await socket.answer_to(event)
        assert (error["error"]["code"], error["error"]["event_id"]) == (code, "e1")
        socket.send(utterance())
        await socket.until(COMPLETED)
    assert of_responses(socket) == []


@virtual_time
async def test_a_session_that_answers_cannot_become_one_that_does_not() -> None:
    async with connected(server_of()) as socket:
        await socket.until("session.created")
        [error] = await socket.answer_to({"type": "session.update", "session": {"type": "transcription"}})
        assert "intent=transcription" in error["error"]["message"]
        assert (await socket.spoken_turn())["status"] == "completed"


@virtual_time
async def test_it_takes_a_place_and_is_counted_as_what_it_is() -> None:
    counts: dict[str, int] = {}
    heard: list[tuple[str, str]] = []

    class Board:
        def sessions(self, kind: str, count: int) -> None:
            counts[kind] = count

        def transcript(self, kind: str, notice: Any) -> None:
            heard.append((kind, notice.text))

        def refused(self, reason: str) -> None:
            counts[reason] = 1

    server = listener(limits={"max_sessions_per_replica": 1}, metrics=Board())
    async with connected(server, **LISTENING) as socket:
        await socket.until("session.created")
        assert counts == {"transcription": 1}
        async with connected(server) as second:
            assert (await second.until_closed())[0] == 1013
        socket.send(utterance())
        text = (await socket.until(COMPLETED))["transcript"]
    assert heard == [("transcription", text)]
    assert counts == {"transcription": 0, "server_full": 1}


@virtual_time
async def test_its_turns_are_in_the_log_without_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="voice_serve")
    async with connected(listener(), **LISTENING) as socket:
        audio = np.concatenate([np.zeros(2400), tone(0, 12_000, 24_000), np.zeros(24_000)])
        for start in range(0, len(audio), 2400):  # live, so that its latency says something
            socket.send(append(audio[start : start + 2400].astype(np.float32)))
            await socket.answer_to()
            await asyncio.sleep(0.1)
        text = (await socket.until(COMPLETED))["transcript"]
    [line] = [record for record in caplog.records if record.getMessage() == "transcript"]
    assert line.outcome == "words"
    assert line.latency_ms >= 500
    assert text not in str(line.__dict__)
    [end] = [record for record in caplog.records if record.getMessage() == "session ended"]
    assert end.kind == "transcription"
