"""A whole turn on the virtual clock: what is sent when, and what the latency account says of it."""

import asyncio
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from session.calls import (
    FAST_LLM,
    calling,
    client_sends,
    converse,
    scripted,
    user_says,
)
from session.virtual import virtual_time

from deployments.options import ScriptedLlm, ScriptedStt, ScriptedTts
from serve_app.conversation.events import ServerVad, Settings
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions

QUESTION = user_says(at=0.48, for_s=0.96)
"""Begins and ends with a frame of the detector (32 ms) and with an append of the microphone (20 ms)."""
NOT_EARLY = SessionOptions(parameters=Parameters(transcribe_at_pause=False))
MS = pytest.approx


def received_ms(position_ms: float, append_ms: float = 20.0) -> float:
    """When the input up to `position_ms` is known: the resampler's 1.5 ms later, at the end of an append."""
    return math.ceil((position_ms + 1.5) / append_ms - 1e-9) * append_ms


@virtual_time
async def test_every_stage_of_a_turn_takes_what_it_was_set_to():
    call = await converse([QUESTION], until=8.0, options=NOT_EARLY)
    assert call.latency() == MS(
        {
            "endpointing": received_ms(1440 + 512) - received_ms(1440),
            "stt": 100,
            "llm_ttft": 100,
            "first_segment": 100,
            "tts_ttfb": 100,
            "overhead": 0,
            "total": 900,
        },
        abs=0.11,
    )


@virtual_time
async def test_the_total_is_what_the_client_measures():
    call = await converse([QUESTION], until=8.0, options=NOT_EARLY)
    first_audio = call.times("response.output_audio.delta")[0]
    assert call.last_speech_sent_at is not None
    by_client = 1000 * (first_audio - call.last_speech_sent_at)
    assert call.latency()["total"] == MS(by_client, abs=20.1)
    assert call.latency()["total"] == MS(1000 * first_audio - received_ms(1440), abs=0.11)


@pytest.mark.parametrize("end_ms", range(1440, 1600, 13))
@virtual_time
async def test_the_account_is_exact_wherever_the_speech_ends(end_ms: int):
    """The detector knows speech by the frame, so the last speech is received with the frame in which it ended."""
    engines = scripted(llm=replace(FAST_LLM, answer_words=4))
    call = await converse([user_says(at=0.48, for_s=end_ms / 1000 - 0.48)], until=3.5, engines=engines)
    frame_end = math.ceil(end_ms / 32) * 32
    endpointing = received_ms(frame_end + 512) - received_ms(frame_end)
    first_audio = 1000 * call.times("response.output_audio.delta")[0]
    assert call.latency()["endpointing"] == MS(endpointing, abs=0.11)
    assert call.latency()["total"] == MS(endpointing + 300, abs=0.11)
    assert first_audio - received_ms(frame_end) == MS(endpointing + 300, abs=0.01)


@virtual_time
async def test_transcription_at_the_first_silence_saves_its_whole_time():
    early = await converse([QUESTION], until=8.0)
    late = await converse([QUESTION], until=8.0, options=NOT_EARLY)
    assert early.latency()["stt"] == 0
    assert late.latency()["total"] - early.latency()["total"] == MS(100, abs=0.11)


@virtual_time
async def test_a_slow_early_transcription_costs_only_what_is_left_of_it_at_the_endpoint():
    engines = scripted(stt=ScriptedStt(latency_s=0.7))
    call = await converse([QUESTION], until=8.0, engines=engines)
    begun, endpoint = received_ms(1440 + 96), received_ms(1440 + 512)
    assert call.latency()["stt"] == MS(begun + 700 - endpoint, abs=0.11)


@virtual_time
async def test_a_pause_shorter_than_the_endpoint_is_one_turn_with_the_transcript_of_the_whole():
    engines = scripted(stt=ScriptedStt(latency_s=0.05, transcripts=("first half", "all of it")))
    script = [user_says(at=0.48, for_s=0.64), user_says(at=1.44, for_s=0.64)]
    call = await converse(script, until=8.0, engines=engines)
    assert call.kinds().count("input_audio_buffer.committed") == 1
    completed = call.only("conversation.item.input_audio_transcription.completed")
    assert completed["transcript"] == "all of it"
    assert completed["usage"]["seconds"] == MS(0.3 + 1.6 + 0.096, abs=0.001)


@virtual_time
async def test_audio_is_paced_to_the_lead_in_chunks_of_one_length():
    for chunk_ms, lead_s in ((40, 0.3), (80, 0.3), (100, 1.0)):
        options = SessionOptions(parameters=Parameters(playout_lead_s=lead_s), chunk_ms=chunk_ms)
        # A segment of five words ends with 10 ms over, whatever the chunk.
        engines = scripted(tts=ScriptedTts(word_s=0.21))
        call = await converse([QUESTION], until=9.0, options=options, engines=engines)
        lengths = [len(sound.audio) / 24_000 for sound in call.player.sounds]
        assert len(lengths) > 40
        assert min(lengths) >= 0.04
        assert max(lengths) <= chunk_ms / 1000
        assert max(call.player.ahead) <= lead_s + max(lengths) + 1e-6
        assert max(call.player.ahead) > lead_s, "the lead is used"
        gaps = [b.start_s - a.end_s for a, b in pairwise(call.player.sounds)]
        assert max(gaps) < 1e-6, "the answer sounds without a gap"


@virtual_time
async def test_the_sound_of_an_answer_is_what_the_voice_said_word_for_word():
    call = await converse([QUESTION], until=8.0)
    (response,) = call.responses()
    (item,) = response["output"]
    assert call.player.whole_words(item["id"], word_s=0.2) == list(range(24))
    spoken = item["content"][0]["transcript"].split()
    assert [word.strip(",.") for word in spoken] == [f"word{number}" for number in range(24)]


@virtual_time
async def test_words_are_shown_with_their_sound_and_never_before():
    call = await converse([QUESTION], until=8.0)
    kinds = [kind for kind in call.kinds() if kind.startswith("response.output_audio")]
    for kind, after in pairwise(kinds):
        if kind == "response.output_audio_transcript.delta":
            assert after == "response.output_audio.delta"


@virtual_time
async def test_two_turns_follow_each_other_and_the_second_knows_the_first():
    engines = scripted(
        stt=ScriptedStt(transcripts=("one", "two")),
        llm=replace(FAST_LLM, answers=("Right then.", "So be it.")),
    )
    heard: list[list[tuple[str, str]]] = []
    generate = engines.chat.generate

    def listening(messages, *, sampling, tools):
        heard.append([(m.role, m.content) for m in messages])
        return generate(messages, sampling=sampling, tools=tools)

    engines.chat.generate = listening
    call = await converse([QUESTION, user_says(at=5.0, for_s=0.5)], until=9.0, engines=engines)
    assert call.outcomes() == ["completed", "completed"]
    assert heard[1] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "Right then."),
        ("user", "two"),
    ]


@virtual_time
async def test_nothing_said_gives_no_answer():
    engines = scripted(stt=ScriptedStt(transcripts=()))
    call = await converse([QUESTION], until=5.0, engines=engines)
    assert call.only("conversation.item.input_audio_transcription.completed")["transcript"] == ""
    assert "conversation.item.deleted" in call.kinds()
    assert "response.created" not in call.kinds()


@virtual_time
async def test_one_turn_a_log_line_with_the_latencies_of_the_wire():
    call = await converse([QUESTION], until=8.0)
    (done,) = call.recorder.done
    assert done.latency is not None
    on_the_wire = call.latency()
    for stage, seconds in done.latency.stages().items():
        assert on_the_wire[stage] == MS(1000 * seconds, abs=0.11)


# --- settings -------------------------------------------------------------------------------------------------------


@virtual_time
async def test_create_response_false_listens_and_says_nothing():
    settings = Settings(turn_detection=ServerVad(create_response=False))
    async with calling(settings=settings) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("conversation.item.input_audio_transcription.completed")
        await asyncio.sleep(3.0)
        assert "response.created" not in call.kinds()
        call.send({"type": "response.create"})
        await call.until("response.done")
    assert call.outcomes() == ["completed"]


@virtual_time
async def test_interrupt_response_false_lets_the_answer_end_and_then_answers_what_was_said():
    settings = Settings(turn_detection=ServerVad(interrupt_response=False))
    async with calling(settings=settings) as call:
        call.stops_at_speech = False
        call.says(at=0.48, for_s=0.96)
        call.says(at=3.0, for_s=1.0)
        await call.until("response.done", count=2)
    assert call.outcomes() == ["completed", "completed"]
    speech, first_done = call.times("input_audio_buffer.speech_started")[1], call.times("response.done")[0]
    assert speech < first_done
    created = call.times("response.created")
    assert created[1] >= first_done
    first, second = (response["output"][0]["id"] for response in call.responses())
    assert call.player.whole_words(first, word_s=0.2) == list(range(24))
    assert call.player.whole_words(second, word_s=0.2) == list(range(24))


@pytest.mark.parametrize("stall_at", [round(3.0 + 0.02 * k, 2) for k in range(0, 20, 2)])
@virtual_time
async def test_silence_put_in_for_a_stalled_microphone_keeps_the_order_of_the_answer_under_way(
    stall_at: float,
):
    """The stall falls due together with a chunk, or with the last one: commands stay in their order."""
    settings = Settings(turn_detection=ServerVad(interrupt_response=False))
    engines = scripted(llm=ScriptedLlm(answers=("One two three four five six seven.",), first_token_s=0.1))
    options = SessionOptions(parameters=Parameters(playout_lead_s=0.04))
    async with calling(settings=settings, engines=engines, options=options) as call:
        call.stops_at_speech = False
        call.says(at=0.48, for_s=0.96)
        call.says(at=2.2, for_s=30.0)
        await call.sleep_until(stall_at - 0.01)
        call.mic_on = False
        await call.until("response.done", count=2)
    assert call.ending is not None
    assert call.ending.code == 1001


@virtual_time
async def test_a_session_update_in_mid_call_holds_for_the_next_answer():
    spoken: list[tuple[str, float]] = []
    asked: list[str] = []
    engines = scripted()
    synthesize, generate = engines.synthesizer.synthesize, engines.chat.generate

    def speaking(text, *, voice, speed):
        spoken.append((voice, speed))
        return synthesize(text, voice=voice, speed=speed)

    def thinking(messages, *, sampling, tools):
        asked.append(messages[0].content)
        return generate(messages, sampling=sampling, tools=tools)

    engines.synthesizer.synthesize, engines.chat.generate = speaking, thinking
    async with calling(engines=engines) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta")
        call.configure(instructions="Be long.", audio={"output": {"voice": "other", "speed": 1.5}})
        await call.until("session.updated")
        await call.until("response.done")
        assert set(spoken) == {("any", 1.0)}, "an answer keeps the voice that it began with"
        spoken.clear()
        call.says(for_s=0.5)
        await call.until("response.done", count=2)
    assert set(spoken) == {("other", 1.5)}
    assert asked == ["Be brief.", "Be long."]


@virtual_time
async def test_the_server_can_stop_and_start_taking_turns():
    async with calling() as call:
        call.configure(audio={"input": {"turn_detection": None}})
        await call.until("session.updated")
        call.says(for_s=0.5)
        await asyncio.sleep(2.0)
        assert "input_audio_buffer.speech_started" not in call.kinds()
        call.configure(
            audio={"input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}}}
        )
        await call.until("session.updated", count=2)
        call.says(for_s=0.5)
        started = call.now
        await call.until("input_audio_buffer.committed")
        assert call.now - started < 0.5 + 0.2 + 0.1


@virtual_time
async def test_text_is_answered_in_text_at_the_token_rate():
    async with calling(microphone=False) as call:
        call.configure(output_modalities=["text"])
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        call.send({"type": "conversation.item.create", "item": item})
        call.send({"type": "response.create", "response": {"metadata": {"mine": "1"}}})
        await call.until("response.done")
    (response,) = call.responses()
    assert response["output"][0]["content"][0]["type"] == "output_text"
    assert response["metadata"]["mine"] == "1"
    assert response["usage"]["output_tokens"] == 24
    times = call.times("response.output_text.delta")
    assert times[0] == MS(0.1, abs=1e-6)
    assert times[-1] == MS(0.1 + 23 / 30, abs=1e-6)
    assert call.player.sounds == []


@virtual_time
async def test_a_written_question_can_be_answered_aloud_and_a_spoken_one_in_text():
    async with calling() as call:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        call.send({"type": "conversation.item.create", "item": item})
        call.send({"type": "response.create"})
        await call.until("response.done")
        call.configure(output_modalities=["text"])
        call.says(for_s=0.5)
        await call.until("response.done", count=2)
    aloud, written = call.responses()
    assert aloud["output"][0]["content"][0]["type"] == "output_audio"
    assert "latency.total_ms" not in (aloud["metadata"] or {})
    assert written["output"][0]["content"][0]["type"] == "output_text"
    assert call.latency(1)["total"] == MS(500 + 100, abs=20.1)


@virtual_time
async def test_the_token_limit_of_a_response_ends_it_as_incomplete():
    async with calling(microphone=False) as call:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
        call.send({"type": "conversation.item.create", "item": item})
        call.send({"type": "response.create", "response": {"max_output_tokens": 5}})
        await call.until("response.done")
    (response,) = call.responses()
    assert response["status"] == "incomplete"
    assert call.player.whole_words(response["output"][0]["id"], word_s=0.2) == [0, 1, 2, 3, 4]


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["audio/pcm", "audio/pcmu", "audio/pcma"])
@virtual_time
async def test_every_format_goes_in_and_out(name: str):
    from serve_app.realtime.session_config import AudioFormat

    audio_format = AudioFormat(name)
    async with calling() as call:
        call.mic_on = False
        kind = {"type": name}
        call.configure(audio={"input": {"format": kind}, "output": {"format": kind}})
        await call.until("session.updated")
        call.input_format = call.output_format = audio_format
        call.mic_on = True
        call.says(at=1.0, for_s=0.5)
        done = await call.until("response.done")
    (item,) = done["response"]["output"]
    assert done["response"]["audio"]["output"]["format"]["type"] == name
    assert call.player.whole_words(item["id"], word_s=0.2) == list(range(24))
    lengths = [len(sound.audio) / audio_format.rate for sound in call.player.sounds]
    assert min(lengths) >= 0.04 - 1e-6
    assert max(lengths) <= 0.1


@virtual_time
async def test_an_answer_keeps_its_format_when_the_session_changes_it():
    """`response.created` has told the client the format, so all of that answer has it."""
    async with calling() as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.output_audio.delta")
        call.configure(audio={"output": {"format": {"type": "audio/pcmu"}}})
        done = await call.until("response.done")
    (item,) = done["response"]["output"]
    assert call.player.whole_words(item["id"], word_s=0.2) == list(range(24))


@virtual_time
async def test_truncating_after_the_whole_answer_was_played_changes_nothing_it_said():
    call = await converse(
        [
            user_says(at=0.48, for_s=0.96),
            client_sends("conversation.item.truncate", at=9.0, item_id="x", content_index=0, audio_end_ms=5),
        ],
        until=9.5,
    )
    assert [error["code"] for error in call.errors()] == ["item_not_found"]
    assert call.history()[1][1].endswith("word23.")


@virtual_time
async def test_an_answer_drafted_at_the_pause_sounds_at_the_endpoint():
    options = SessionOptions(parameters=Parameters(drafts_per_turn=3))
    async with calling(options=options) as call:
        call.says(at=0.5, for_s=0.5)
        done = await call.until("response.done")
    assert call.recorder.drafts == [None], "one, confirmed"
    metadata = done["response"]["metadata"]
    assert float(metadata["latency.total_ms"]) == pytest.approx(
        float(metadata["latency.endpointing_ms"]), abs=25
    )
    assert call.engines.chat.started == 1


@virtual_time
async def test_a_draft_to_half_a_sentence_is_stopped_in_its_engine_and_counted():
    options = SessionOptions(parameters=Parameters(drafts_per_turn=3))
    async with calling(options=options) as call:
        call.says(at=0.5, for_s=0.5)
        call.says(at=1.4, for_s=0.5)
        await call.until("response.done")
    [wasted, confirmed] = call.recorder.drafts
    assert wasted is not None
    assert wasted > 0
    assert confirmed is None
    assert len([e for _, e in call.events if e["type"] == "response.created"]) == 1
    assert (call.engines.chat.started, call.engines.chat.cancelled) == (2, 1)
