"""`voice-serve talk` against the scripted server, by a loopback port of the system's choice: the socket is the point."""

import argparse
import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from driver import babble
from stub_server import ANSWER, LATENCY_MS, LINES, StubServer

from serve_app import talk, talk_live
from serve_app.client.microphone import FRAME


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    talk.add_parser(parser.add_subparsers(), api_key="from-the-environment")
    return parser.parse_args(["talk", *words])


async def run_talk(*words: str) -> int:
    """As the command line does, which owns its event loop."""
    return await asyncio.to_thread(talk.run, arguments(*words))


@pytest.fixture
def question(tmp_path: Path) -> Path:
    path = tmp_path / "question.flac"
    soundfile.write(path, np.tile(babble(1.0)[:, np.newaxis] * 0.5, (1, 2)), 48_000)
    return path


async def test_a_recording_is_answered(
    stub: StubServer, question: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answer_s = 1.0
    out = tmp_path / "answer.wav"
    assert (
        await run_talk("--url", stub.realtime_url, "--file", str(question), "--json", "--out", str(out)) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    [turn] = printed["turns"]
    assert printed["answered"] is True
    assert (turn["question"], turn["answer"], turn["status"]) == (LINES[0], ANSWER, "completed")
    assert turn["latency_ms"] == LATENCY_MS
    assert turn["audio_s"] == pytest.approx(1.0)
    assert 500 < turn["first_sound_after_end_ms"] < 1200
    heard, rate = soundfile.read(out, dtype="int16")
    assert (len(heard) / rate, rate) == (pytest.approx(1.0, abs=0.1), 24_000)


async def test_a_recording_is_sent_at_the_pace_of_the_clock(stub: StubServer, question: Path) -> None:
    stub.answer_s = 0.5
    await run_talk("--url", stub.realtime_url, "--file", str(question))
    times = [at for at, event in stub.received if event["type"] == "input_audio_buffer.append"]
    assert (times[-1] - times[0]) / (len(times) - 1) == pytest.approx(0.02, rel=0.05)
    assert all(
        len(event["audio"]) == FRAME * 2 * 4 / 3 for event in stub.of_type("input_audio_buffer.append")
    )


async def test_typed_turns_are_printed_with_their_answers(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answer_s = 0.3
    assert await run_talk("--url", stub.realtime_url, "--text", "Hello?", "--text", "Again [red]?") == 0
    printed = capsys.readouterr().out
    assert "Hello?" in printed
    assert "Again [red]?" in printed
    assert "windy" in printed
    assert stub.of_type("input_audio_buffer.append") == []


async def test_speech_that_goes_on_after_a_pause_stops_the_answer_and_truncates(
    stub: StubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.answer_s = 3.0
    path = tmp_path / "pause.wav"
    soundfile.write(path, np.concatenate((babble(1.0), np.zeros(72_000), babble(1.0))), 48_000)
    assert await run_talk("--url", stub.realtime_url, "--file", str(path), "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["turns"]
    assert (first["status"], second["status"]) == ("cancelled", "completed")
    [cut] = stub.of_type("conversation.item.truncate")
    assert 0 < cut["audio_end_ms"] < 1500
    assert ANSWER.startswith(first["heard"])


async def test_a_lost_connection_is_come_back_from(
    stub: StubServer, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of the first of two answers; the stub is full twice before it lets the client in again."""
    stub.is_resumable, stub.answer_s, stub.refusals_before_resume = True, 3.0, 2
    talking = asyncio.create_task(
        run_talk("--url", stub.realtime_url, "--file", str(question), "--text", "And?", "--json")
    )
    await until(lambda: len(stub.sent_of_type("response.output_audio.delta")) > 10)
    await stub.drop_clients()
    assert await talking == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    first, second = told["turns"]
    assert (first["status"], second["status"], told["resumed"]) == ("incomplete", "completed", 1)
    assert "The connection was lost." in printed.err
    assert "The session goes on." in printed.err
    assert [shown["resume"] for shown in stub.returns] == ["sess_1.token1"] * 3
    assert 100 < int(stub.returns[-1]["audio_end_ms"]) < 2000
    assert stub.returns[-1]["item_id"]
    words = stub.answer.split(" ")
    heard = first["heard"].split(" ")
    assert heard == words[: int(len(words) * int(stub.returns[-1]["audio_end_ms"]) / 1000 / stub.answer_s)]
    assert len(stub.sessions) == 2


async def test_a_session_that_is_gone_is_said_in_words(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.is_resumable, stub.refuses_to_resume, stub.answer_s = True, True, 3.0
    talking = asyncio.create_task(run_talk("--url", stub.realtime_url, "--text", "Hello?"))
    await until(lambda: len(stub.sent_of_type("response.output_audio.delta")) > 5)
    await stub.drop_clients()
    assert await talking == 2
    assert "this token is used" in capsys.readouterr().out


async def test_what_was_being_said_when_the_connection_was_lost_is_asked_for_again(
    stub: StubServer, question: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.is_resumable = True
    talking = asyncio.create_task(
        run_talk("--url", stub.realtime_url, "--file", str(question), "--timeout-s", "3", "--json")
    )
    await until(lambda: bool(stub.sent_of_type("input_audio_buffer.speech_started")))
    await stub.drop_clients()
    await talking
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert "The connection was lost while you spoke; please say it again." in problems


async def until(condition: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_no_answer_is_a_failure(
    stub: StubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(24_000), 24_000)
    assert await run_talk("--url", stub.realtime_url, "--file", str(path), "--timeout-s", "1") == 1
    assert "No answer within 1 s." in capsys.readouterr().out


async def test_a_full_server_is_said_in_words(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.is_full = True
    assert await run_talk("--url", stub.realtime_url, "--text", "Hello?") == 2
    assert "the server is full (4 sessions" in capsys.readouterr().out


async def test_the_key_is_sent(stub: StubServer, capsys: pytest.CaptureFixture[str]) -> None:
    stub.api_key, stub.answer_s = "from-the-environment", 0.3
    assert await run_talk("--url", stub.realtime_url, "--text", "Hello?") == 0
    assert await run_talk("--url", stub.realtime_url, "--text", "Hello?", "--api-key", "wrong") == 2
    assert "a valid API key is needed" in capsys.readouterr().out


async def test_nobody_there_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_talk("--url", "ws://127.0.0.1:9/v1/realtime", "--text", "Hello?") == 2
    assert "Nobody answers" in capsys.readouterr().err


async def test_a_missing_recording_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_talk("--file", "nowhere.wav") == 2
    assert "nowhere.wav" in capsys.readouterr().err


def test_a_machine_without_sound_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk_live, "_portaudio", no_portaudio)
    assert talk.run(arguments()) == 2
    assert "--file question.wav" in capsys.readouterr().err.replace("\n", " ")


def no_portaudio() -> None:
    raise talk_live.NoDevice(talk_live.NO_DEVICE.format(what="sound", why="no library"))


def test_the_loudspeaker_knows_what_it_played() -> None:
    speaker = talk_live.Loudspeaker()
    samples = np.arange(1, 2401, dtype=np.int16)
    speaker.push("a", samples)
    assert np.array_equal(speaker.take(1200), samples[:1200])
    stopped = speaker.flush()
    assert stopped is not None
    assert (stopped.item_id, stopped.played_s) == ("a", 0.05)
    assert not speaker.take(480).any()


def test_the_loudspeaker_stops_nothing_that_was_played_to_its_end() -> None:
    speaker = talk_live.Loudspeaker()
    speaker.push("a", np.ones(480, dtype=np.int16))
    speaker.finish("a")
    assert speaker.take(960).sum() == 480
    assert speaker.flush() is None
