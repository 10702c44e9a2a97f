"""The user takes the floor: how fast, what stops, and what of the answer was heard by a listener who decodes the sound."""

import random
from typing import Any

import pytest
from session.calls import Call, Faults, active_calls, calling, scripted, user_says
from session.virtual import virtual_time

from deployments.options import ScriptedLlm, ScriptedTts
from serve_app.conversation.events import ServerVad, Settings
from serve_app.session.stages import Engines

WORD_S = 0.2
INTERRUPTION_S = 0.096
QUESTION = user_says(at=0.48, for_s=0.96)
ANSWER_BEGINS_S = 2.4
SLOW_LLM = ScriptedLlm(first_token_s=0.1, tokens_per_s=6.0, answer_words=24)
"""Busy for 4 s, and slower than the voice: the answer has gaps."""
SLOW_TTS = ScriptedTts(first_audio_s=0.1, word_s=WORD_S, realtime_factor=0.5)


def slow_engines() -> Engines:
    return scripted(llm=SLOW_LLM, tts=SLOW_TTS)


async def interrupted(call: Call, *, at: float) -> None:
    """A question, its answer, and speech over it from `at` on; ends shortly after it was noticed."""
    call.says(at=QUESTION.at, for_s=QUESTION.for_s)
    call.says(at=at, for_s=0.5)
    await call.until("input_audio_buffer.speech_started", count=2)


async def transcript(call: Call, item_id: str) -> str:
    """What the server holds of an item, asked for over the wire."""
    count = len(call.all("conversation.item.retrieved")) + 1
    call.send({"type": "conversation.item.retrieve", "item_id": item_id})
    shown = await call.until("conversation.item.retrieved", count=count)
    text: str = shown["item"]["content"][0]["transcript"]
    return text


def words(text: str) -> list[int]:
    return [int(word.strip(",.").removeprefix("word")) for word in text.split()]


CUTS = random.Random(2).sample(range(2_450, 6_200), 40)


@pytest.mark.parametrize("cut_ms", CUTS)
@virtual_time
async def test_a_barge_in_stops_everything_and_keeps_only_the_words_heard(cut_ms: int):
    engines: Any = slow_engines()
    async with calling(engines=engines) as call:
        await interrupted(call, at=cut_ms / 1000)
        noticed = call.now
        was_busy = engines.chat.active
        await call.sleep_until(noticed + 0.05)
        assert active_calls(engines) == 0, "the callers are released within 50 ms"
        assert engines.chat.cancelled == was_busy or engines.chat.cancelled == 1

        # One frame until it is all speech, the policy's length, the resampler, the microphone's append.
        assert noticed - cut_ms / 1000 <= 0.032 + INTERRUPTION_S + 0.0015 + 0.02
        (response,) = call.responses()
        assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert call.times("response.done") == [noticed], "in one step"
        assert max(call.times("response.output_audio.delta")) <= noticed

        item_id = response["output"][0]["id"]
        played = call.player.whole_words(item_id, word_s=WORD_S)
        held = words(await transcript(call, item_id))
        assert played == list(range(len(played)))
        assert held == list(range(len(held)))
        by_player = 1000 * call.player.played_s(item_id)
        into_word = by_player % (1000 * WORD_S)
        is_at_an_edge = into_word < 15 or into_word > 1000 * WORD_S - 15
        assert abs(len(held) - len(played)) <= is_at_an_edge, "exact, but within milliseconds of a word's end"
        assert words(response["metadata"]["heard.text"]) == held
        assert float(response["metadata"]["heard.audio_ms"]) == pytest.approx(by_player, abs=1.0)
        assert words(response["output"][0]["content"][0]["transcript"])[: len(held)] == held


@virtual_time
async def test_the_interrupting_speech_becomes_the_next_turn_and_is_answered():
    async with calling(engines=slow_engines()) as call:
        await interrupted(call, at=4.0)
        await call.until("response.done", count=2)
    assert call.outcomes() == ["cancelled", "completed"]
    assert [role for role, _ in call.history()] == ["user", "assistant", "user", "assistant"]


@virtual_time
async def test_a_cough_over_the_agent_changes_nothing():
    async with calling() as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        call.says(at=3.2, for_s=0.064)
        done = await call.until("response.done")
    assert call.outcomes() == ["completed"]
    assert len(call.all("input_audio_buffer.speech_started")) == 1
    item_id = done["response"]["output"][0]["id"]
    assert call.player.whole_words(item_id, word_s=WORD_S) == list(range(24))


@virtual_time
async def test_speech_between_the_last_chunk_and_its_sound_still_truncates():
    """The agent speaks until the end of playout: `response.done` comes a lead earlier and has nothing to cancel."""
    async with calling() as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        done = await call.until("response.done")
        call.says(for_s=0.5)
        await call.until("input_audio_buffer.speech_started", count=2)
        item_id = done["response"]["output"][0]["id"]
        played = call.player.whole_words(item_id, word_s=WORD_S)
        assert len(played) in (22, 23)
        assert words(await transcript(call, item_id)) == played
    assert call.outcomes()[0] == "completed"
    assert "status_details" not in done["response"] or done["response"]["status_details"] is None


@virtual_time
async def test_speech_after_the_playout_cuts_nothing():
    async with calling() as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        done = await call.until("response.done")
        call.says(at=call.now + 0.45, for_s=0.5)
        await call.until("input_audio_buffer.speech_started", count=2)
        item_id = done["response"]["output"][0]["id"]
        assert words(await transcript(call, item_id)) == list(range(24))


@pytest.mark.parametrize("at", [1.72, 1.88, 2.0, 2.08, 2.16])
@virtual_time
async def test_speech_before_the_first_sound_cancels_an_answer_of_which_nothing_stays(at: float):
    engines: Any = slow_engines()
    async with calling(engines=engines) as call:
        await interrupted(call, at=at) if at > 1.9 else None
        if at <= 1.9:  # the turn is not over yet: it goes on
            call.says(at=QUESTION.at, for_s=QUESTION.for_s)
            call.says(at=at, for_s=0.5)
        await call.until(lambda: "completed" in call.outcomes())
    assert call.outcomes()[:-1] == (["cancelled"] if at > 1.9 else [])
    assert all(response["output"] == [] for response in call.responses()[:-1])
    assert [role for role, _ in call.history()][-1] == "assistant"
    assert [role for role, _ in call.history()].count("assistant") == 1


@virtual_time
async def test_a_slow_reader_does_not_delay_the_decision():
    """Each frame takes the socket 60 ms: the words are late, the interruption is not."""
    async with calling(engines=slow_engines(), faults=Faults(send_s=0.06)) as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        call.says(at=4.0, for_s=0.5)
        await call.until("input_audio_buffer.speech_started", count=2)
        decided = next(done for done in call.recorder.done if done.outcome == "interrupted")
        assert decided.heard is not None
        assert call.now <= 4.0 + 0.15 + 2 * 0.06
        await call.until("response.done")
        item_id = call.responses()[0]["output"][0]["id"]
        played = call.player.whole_words(item_id, word_s=WORD_S)
        assert abs(len(words(decided.heard.text)) - len(played)) <= 1


@virtual_time
async def test_ten_interruptions_in_a_row():
    async with calling(engines=slow_engines()) as call:
        call.says(at=0.48, for_s=0.5)
        for number in range(10):
            await call.until(
                "response.output_audio.delta", count=len(call.all("response.output_audio.delta")) + 5
            )
            call.says(for_s=0.3)
            await call.until("response.done", count=number + 1)
        await call.until(lambda: call.outcomes()[-1] == "completed")
    assert call.outcomes() == ["cancelled"] * 10 + ["completed"]
    roles = [role for role, _ in call.history()]
    assert roles.count("user") == 11


@virtual_time
async def test_sound_that_waits_for_the_socket_is_dropped_by_a_cancel():
    """The reader takes 0.3 s a frame: at the cancel the first chunk stands behind the words that go with it."""
    async with calling(faults=Faults(send_s=0.3)) as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        await call.until("response.content_part.added")
        call.send({"type": "response.cancel"})
        done = await call.until("response.done")
        assert done["response"]["status"] == "cancelled"
        assert call.player.sounds == []
        assert words(await transcript(call, done["response"]["output"][0]["id"])) == []


@virtual_time
async def test_sound_that_is_never_played_is_not_kept():
    async with calling() as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        await call.until("response.output_audio.delta", count=20)
        assert len(call.session._calls.chunks) > 10
        call.says(for_s=0.5)
        await call.until("response.done")
        assert call.session._calls.chunks == {}


# --- the client's own word ------------------------------------------------------------------------------------------


async def truncated(call: Call, item_id: str, audio_end_ms: Any) -> dict[str, Any]:
    """The answer to a truncation, `truncated` or `error`."""
    before = len(call.events)
    call.send(
        {
            "type": "conversation.item.truncate",
            "event_id": "cut",
            "item_id": item_id,
            "content_index": 0,
            "audio_end_ms": audio_end_ms,
        }
    )
    kinds = ("conversation.item.truncated", "error")
    await call.until(lambda: any(event["type"] in kinds for _, event in call.events[before:]))
    return next(event for _, event in call.events[before:] if event["type"] in kinds)


@virtual_time
async def test_the_clients_truncation_supersedes_the_servers_up_and_down():
    async with calling() as call:
        await interrupted(call, at=4.0)
        item_id = call.responses()[0]["output"][0]["id"]
        for end_ms, heard in ((700, 3), (1399, 6), (1401, 7), (0, 0), (1000, 5)):
            assert (await truncated(call, item_id, end_ms))["audio_end_ms"] == end_ms
            assert words(await transcript(call, item_id)) == list(range(heard))


@virtual_time
async def test_a_truncation_past_the_end_is_clamped_to_the_audio_sent():
    async with calling() as call:
        await interrupted(call, at=4.0)
        item_id = call.responses()[0]["output"][0]["id"]
        sent_s = sum(
            (len(event["delta"]) * 3 // 4 - event["delta"].count("=")) / 48_000
            for event in call.all("response.output_audio.delta")
        )
        answer = await truncated(call, item_id, 10_000_000)
        assert answer["audio_end_ms"] == round(1000 * sent_s)
        assert words(await transcript(call, item_id)) == list(range(int(sent_s / WORD_S + 1e-6)))


@pytest.mark.parametrize("value", [-1, 1.5, "10", None])
@virtual_time
async def test_a_truncation_that_is_no_length_is_an_error_and_changes_nothing(value: Any):
    async with calling() as call:
        await interrupted(call, at=4.0)
        item_id = call.responses()[0]["output"][0]["id"]
        before = await transcript(call, item_id)
        error = (await truncated(call, item_id, value))["error"]
        assert (error["type"], error["param"], error["event_id"]) == (
            "invalid_request_error",
            "audio_end_ms",
            "cut",
        )
        assert await transcript(call, item_id) == before


@virtual_time
async def test_a_cancelled_answer_sounds_on_until_the_client_says_where_it_stopped():
    async with calling(engines=slow_engines()) as call:
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        await call.sleep_until(4.0)
        call.send({"type": "response.cancel"})
        done = await call.until("response.done")
        assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert call.now == pytest.approx(4.0)
        await call.sleep_until(4.05)
        assert active_calls(call.engines) == 0
        assert max(call.times("response.output_audio.delta")) <= 4.0
        item_id = done["response"]["output"][0]["id"]
        call.player.stop(call.now)
        end_ms = int(1000 * call.player.played_s(item_id))
        assert (await truncated(call, item_id, end_ms))["audio_end_ms"] == end_ms
        assert words(await transcript(call, item_id)) == call.player.whole_words(item_id, word_s=WORD_S)
        call.says(at=call.now + 0.5, for_s=0.5)
        await call.until(lambda: call.outcomes() == ["cancelled", "completed"])


@virtual_time
async def test_there_is_nothing_to_cancel_and_never_two_answers():
    async with calling(engines=slow_engines()) as call:
        call.send({"type": "response.cancel", "event_id": "c0"})
        assert (await call.until("error"))["error"]["code"] == "response_cancel_not_active"
        call.says(at=QUESTION.at, for_s=QUESTION.for_s)
        await call.until("response.output_audio.delta")
        call.send({"type": "response.create", "event_id": "r1"})
        error = (await call.until("error", count=2))["error"]
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "r1")
        call.send({"type": "response.cancel", "response_id": "another", "event_id": "c1"})
        error = (await call.until("error", count=3))["error"]
        assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "c1")
        await call.until("response.done")
    assert call.outcomes() == ["completed"]


@virtual_time
async def test_with_short_silences_the_user_can_interrupt_at_any_speed():
    settings = Settings(turn_detection=ServerVad(silence_duration_ms=200))
    async with calling(settings=settings, engines=slow_engines()) as call:
        for number in range(6):
            call.says(at=0.5 + 0.7 * number, for_s=0.3)
        await call.until(lambda: call.outcomes()[-1:] == ["completed"])
    assert call.kinds().count("input_audio_buffer.committed") == 6
    assert set(call.outcomes()[:-1]) <= {"cancelled"}
