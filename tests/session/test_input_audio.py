"""Audio as clients give it: a recording at once, a microphone that stalls, a turn without end, push to talk."""

import asyncio

import numpy as np
import pytest
from session.calls import Call, append, calling, converse, scripted, tone, user_says
from session.virtual import the_loop, virtual_time

from deployments.interfaces import Transcript
from serve_app.conversation.events import Settings
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions

MS = pytest.approx
QUESTION = user_says(at=0.48, for_s=0.96)
NOT_EARLY = SessionOptions(parameters=Parameters(transcribe_at_pause=False))


# --- audio that is not live -----------------------------------------------------------------------------------------


def _minute(speech: list[tuple[float, float]], seconds: float = 60.0) -> np.ndarray:
    audio = np.zeros(round(seconds * 24_000), dtype=np.float32)
    for start, stop in speech:
        first, last = round(start * 24_000), min(round(stop * 24_000), len(audio))
        audio[first:last] = tone(first, last - first, 24_000)
    return audio


async def _appended_at_once(call: Call, audio: np.ndarray, piece_s: float) -> int:
    """Returns how often something else had its turn meanwhile."""
    size = round(piece_s * 24_000)
    for start in range(0, len(audio), size):
        call.send(append(audio[start : start + size]))
    turns = 0
    while call.session._input.end / 16_000 < len(audio) / 24_000 - 0.04:  # a frame may wait for its end
        turns += 1
        await asyncio.sleep(0)
        assert turns < 10_000, f"not all was taken: {call.errors()[-1:]}"
    return turns


@pytest.mark.parametrize("piece_s", [60.0, 1.0, 0.02])
@virtual_time
async def test_a_minute_at_once_never_holds_the_loop(piece_s: float):
    async with calling(microphone=False) as call:
        turns = await _appended_at_once(call, _minute([]), piece_s)
        assert turns >= 60, "others have their turn at least once a second of audio"
        assert the_loop().time() - call.began < 0.001


@virtual_time
async def test_of_a_quiet_minute_only_the_end_is_held():
    async with calling(microphone=False) as call:
        await _appended_at_once(call, _minute([]), 0.02)
        end = call.session._input.end
        assert call.session._input.read(0, end - 4 * 16_000) == b""
        assert len(call.session._input.read(0, end)) >= 2 * 16_000


@virtual_time
async def test_latencies_of_a_turn_that_was_not_live_are_marked():
    async with calling(microphone=False) as call:
        await _appended_at_once(call, _minute([(1.0, 3.0)], 6.0), 6.0)
        done = await call.until("response.done")
    assert done["response"]["metadata"]["latency.faster_than_realtime"] == "true"
    live = await converse([QUESTION], until=8.0)
    assert "latency.faster_than_realtime" not in live.responses()[0]["metadata"]


@virtual_time
async def test_every_turn_of_a_recording_sent_at_once_is_transcribed_whole():
    """Turns wait for the transcriber in order: what they said must still be held when their time comes."""
    lengths: list[float] = []

    class Measuring:
        active = 0

        async def transcribe(self, pcm, *, language, prompt, is_interim=False):
            lengths.append(len(pcm) / 32_000)
            await asyncio.sleep(1.0)
            return Transcript("yes")

    speech = [(at, at + 8.0) for at in range(2, 110, 10)]
    async with calling(
        engines=scripted(transcriber=Measuring()), microphone=False, options=NOT_EARLY
    ) as call:
        await _appended_at_once(call, _minute(speech, 115.0), 115.0)
        await call.until("conversation.item.input_audio_transcription.completed", count=len(speech))
    assert min(lengths) > 8.0


@virtual_time
async def test_more_than_the_backlog_is_refused_and_taken_later():
    options = SessionOptions(input_backlog_s=10.0)
    async with calling(microphone=False, options=options) as call:
        for number in range(15):
            call.send(append(_minute([], 1.0), event_id=f"piece-{number}"))
        await call.until("error", count=1)
        await asyncio.sleep(0.1)
        errors = call.errors()
        assert {error["code"] for error in errors} == {"input_audio_too_fast"}
        assert [error["event_id"] for error in errors] == [f"piece-{number}" for number in range(10, 15)]
        assert {error["param"] for error in errors} == {"audio"}
        await asyncio.sleep(3.0)
        call.send(append(_minute([], 1.0), event_id="later"))
        await asyncio.sleep(0.1)
        assert len(call.errors()) == len(errors)


@virtual_time
async def test_an_append_longer_than_the_backlog_is_refused():
    async with calling(microphone=False, options=SessionOptions(input_backlog_s=10.0)) as call:
        call.send(append(_minute([], 11.0), event_id="long"))
        error = (await call.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_too_fast", "long")


@virtual_time
async def test_a_silent_hour_buys_no_hour_at_once():
    async with calling(
        microphone=False, options=SessionOptions(input_backlog_s=10.0, idle_timeout_s=9e9)
    ) as call:
        call.send(append(_minute([], 0.1)))
        await asyncio.sleep(3000)
        for _ in range(15):
            call.send(append(_minute([], 1.0)))
        await call.until("error")
        assert call.errors()[0]["code"] == "input_audio_too_fast"


# --- a microphone that stalls ---------------------------------------------------------------------------------------


@virtual_time
async def test_a_microphone_that_stalls_in_mid_speech_ends_the_turn():
    async with calling() as call:
        call.says(at=0.5, for_s=5.0)
        await call.sleep_until(2.0)
        call.mic_on = False
        await call.until("response.done", within=10.0)
        (stopped,) = call.times("input_audio_buffer.speech_stopped")
        assert 2.0 + 1.0 - 0.06 <= stopped <= 2.0 + 1.0
    assert call.outcomes() == ["completed"]


@virtual_time
async def test_a_microphone_that_comes_back_is_heard_again():
    async with calling() as call:
        call.says(at=0.5, for_s=1.5)
        await call.sleep_until(1.5)
        call.mic_on = False
        await call.until("response.done")
        call.mic_on = True
        call.says(at=call.now + 0.5, for_s=0.5)
        await call.until("response.done", count=2)
    assert call.outcomes() == ["completed", "completed"]


# --- endless speech -------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_turn_is_committed_at_its_greatest_length():
    options = SessionOptions(parameters=Parameters(max_turn_s=3.0))
    call = await converse([user_says(at=0.5, for_s=4.0)], until=5.0, options=options)
    committed = call.times("input_audio_buffer.committed")
    assert committed[0] == MS(0.5 - 0.3 + 3.0, abs=0.06)


# --- the client commits ---------------------------------------------------------------------------------------------

PUSH_TO_TALK = Settings(turn_detection=None, instructions="Be brief.")


@virtual_time
async def test_push_to_talk_commits_exactly_what_was_appended():
    lengths: list[float] = []
    engines = scripted()
    transcribe = engines.transcriber.transcribe

    async def measuring(pcm, *, language, prompt, is_interim=False):
        lengths.append(len(pcm) / 32_000)
        return await transcribe(pcm, language=language, prompt=prompt)

    engines.transcriber.transcribe = measuring
    async with calling(settings=PUSH_TO_TALK, engines=engines, microphone=False) as call:
        call.send(append(_minute([(0.0, 1.5)], 1.5)))
        call.send({"type": "input_audio_buffer.commit"})
        await call.until("conversation.item.input_audio_transcription.completed")
        assert "response.created" not in call.kinds(), "the client asks for the answer"
        call.send({"type": "response.create"})
        await call.until("response.done")
        call.send(append(_minute([(0.0, 2.0)], 2.0)))
        call.send({"type": "input_audio_buffer.commit"})
        await call.until("conversation.item.input_audio_transcription.completed", count=2)
    assert lengths == [MS(1.5, abs=0.033), MS(2.0, abs=0.033)]
    assert "input_audio_buffer.speech_started" not in call.kinds()


@pytest.mark.parametrize(
    ("ms", "is_enough"), [(0, False), (20, False), (90, False), (100, True), (140, True)]
)
@virtual_time
async def test_less_than_100_ms_cannot_be_committed(ms: int, is_enough: bool):
    async with calling(settings=PUSH_TO_TALK, microphone=False) as call:
        if ms:
            call.send(append(_minute([(0.0, 1.0)], ms / 1000)))
        call.send({"type": "input_audio_buffer.commit", "event_id": "c1"})
        await asyncio.sleep(0.01)
        assert ("input_audio_buffer.committed" in call.kinds()) == is_enough
        wanted = [] if is_enough else [("input_audio_buffer_commit_empty", "c1")]
        assert [(error["code"], error["event_id"]) for error in call.errors()] == wanted


@virtual_time
async def test_cleared_audio_is_in_no_turn():
    async with calling(settings=PUSH_TO_TALK, microphone=False) as call:
        call.send(append(_minute([(0.0, 1.0)], 1.0)))
        call.send({"type": "input_audio_buffer.clear"})
        call.send({"type": "input_audio_buffer.commit"})
        await call.until("error")
        assert "input_audio_buffer.cleared" in call.kinds()
        assert call.errors()[0]["code"] == "input_audio_buffer_commit_empty"


@virtual_time
async def test_a_commit_in_mid_speech_ends_the_turn_at_once():
    async with calling() as call:
        call.says(at=0.5, for_s=5.0)
        await call.sleep_until(1.5)
        call.send({"type": "input_audio_buffer.commit"})
        await call.until("input_audio_buffer.committed")
        assert call.now == MS(1.5, abs=0.001)
