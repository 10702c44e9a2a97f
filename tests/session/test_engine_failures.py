"""Engines that hang, end early, break or refuse, in each stage: one more try while nothing was shown, then an answer
that has failed and says why; and the next turn works."""

from dataclasses import replace
from typing import Any

import pytest
from session.calls import Call, calling, scripted
from session.faulty import Fault, FaultyChatModel, FaultySynthesizer, FaultyTranscriber
from session.virtual import virtual_time

from deployments.options import ScriptedLlm, ScriptedTts
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions
from serve_app.session.stages import Engines, TimeLimits

LIMIT_S = 0.5
OPTIONS = SessionOptions(
    parameters=Parameters(transcribe_at_pause=False),
    time_limits=TimeLimits(LIMIT_S, LIMIT_S, LIMIT_S, LIMIT_S, LIMIT_S),
)
LLM = ScriptedLlm(first_token_s=0.1, tokens_per_s=30.0, answer_words=6)
TTS = ScriptedTts(first_audio_s=0.1, word_s=0.1)
STAGES = ["stt", "llm", "tts"]
FAILURES = [
    (stage, kind)
    for stage in STAGES
    for kind in ("hangs", "fails", "ends")
    if (stage, kind) != ("stt", "ends")  # an empty transcript is no failure
]


def engines_with(stage: str, *faults: Fault | None, **options: Any) -> Engines:
    engines = scripted(llm=LLM, tts=TTS)
    match stage:
        case "stt":
            return scripted(llm=LLM, tts=TTS, transcriber=FaultyTranscriber(engines.transcriber, faults))
        case "llm":
            return scripted(llm=LLM, tts=TTS, chat=FaultyChatModel(engines.chat, faults, **options))
        case _:
            return scripted(
                llm=LLM, tts=TTS, synthesizer=FaultySynthesizer(engines.synthesizer, faults, **options)
            )


def calls_made(engines: Any, stage: str) -> int:
    made: int = {"stt": engines.transcriber, "llm": engines.chat, "tts": engines.synthesizer}[stage].started
    return made


async def asks(call: Call) -> dict[str, Any]:
    """A turn; the response that it got."""
    count = len(call.all("response.done")) + 1
    call.says(at=call.now + 0.1, for_s=0.5)
    done = await call.until("response.done", count=count)
    response: dict[str, Any] = done["response"]
    return response


async def assert_next_turn_works(call: Call) -> None:
    await call.sleep_until(call.now + 1.0)
    assert (await asks(call))["status"] == "completed"


@pytest.mark.parametrize(("stage", "kind"), FAILURES)
@virtual_time
async def test_one_more_try_is_made_and_nobody_notices(stage: str, kind: Any):
    engines = engines_with(stage, Fault(kind))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        assert response["status"] == "completed"
        assert "failed" not in str(call.kinds())
        transcript = response["output"][0]["content"][0]["transcript"]
        assert transcript == "word0 word1 word2, word3 word4 word5."
        assert call.player.whole_words(response["output"][0]["id"], word_s=0.1) == list(range(6))
        await assert_next_turn_works(call)


@virtual_time
async def test_the_second_try_speaks_in_the_format_that_the_client_was_told():
    async with calling(engines=engines_with("llm", Fault("hangs")), options=OPTIONS, append_s=0.1) as call:
        call.says(at=0.1, for_s=0.5)
        created = await call.until("response.created")
        assert created["response"]["audio"]["output"]["format"]["type"] == "audio/pcm"
        call.configure(audio={"output": {"format": {"type": "audio/pcmu"}}})
        done = await call.until("response.done")
        assert done["response"]["status"] == "completed"
        assert call.player.whole_words(done["response"]["output"][0]["id"], word_s=0.1) == list(range(6))


@pytest.mark.parametrize(("stage", "kind"), FAILURES)
@virtual_time
async def test_a_second_failure_ends_the_answer_with_a_reason(stage: str, kind: Any):
    engines = engines_with(stage, Fault(kind), Fault(kind))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        assert call.now < 0.6 + 0.6 + 2 * LIMIT_S + 1.0, "the total is bounded"
        assert response["status"] == "failed"
        assert response["output"] == []
        error = response["status_details"]["error"]
        assert error["code"] == "engine_failed"
        assert {"hangs": "within 0.5 s", "fails": "it broke", "ends": "gave no"}[kind] in error["message"]
        assert calls_made(engines, stage) == 2
        assert call.player.sounds == []
        failed = call.all("conversation.item.input_audio_transcription.failed")
        assert len(failed) == (stage == "stt")
        await assert_next_turn_works(call)


@pytest.mark.parametrize("stage", STAGES)
@virtual_time
async def test_what_can_never_succeed_is_not_tried_again(stage: str):
    engines = engines_with(stage, Fault("refuses"))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "engine_bad_request"
        assert calls_made(engines, stage) == 1
        await assert_next_turn_works(call)


@pytest.mark.parametrize("stage", STAGES)
@virtual_time
async def test_an_engine_that_is_broken_for_good_fails_every_turn_and_ends_no_session(stage: str):
    engines = engines_with(stage, *[Fault("fails")] * 6)
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        assert [(await asks(call))["status"] for _ in range(3)] == ["failed"] * 3
        await assert_next_turn_works(call)


APOLOGY = "Sorry about that."
APOLOGETIC = replace(OPTIONS, parameters=replace(OPTIONS.parameters, apology=APOLOGY))


@pytest.mark.parametrize(("stage", "kind"), [(stage, kind) for stage, kind in FAILURES if stage != "tts"])
@virtual_time
async def test_an_answer_that_cannot_be_given_ends_in_a_spoken_apology(stage: str, kind: Any):
    engines = engines_with(stage, Fault(kind), Fault(kind))
    async with calling(engines=engines, options=APOLOGETIC, append_s=0.1) as call:
        response = await asks(call)
        assert call.now < 0.6 + 0.6 + 2 * LIMIT_S + 2.0, "the total is bounded"
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "engine_failed"
        (item,) = response["output"]
        assert item["content"][0]["transcript"] == APOLOGY
        assert len(call.player.whole_words(item["id"], word_s=0.1)) == 3
        await assert_next_turn_works(call)


@virtual_time
async def test_a_model_that_dies_in_the_middle_of_an_answer_is_apologised_for_after_what_was_said():
    slow = scripted(llm=ScriptedLlm(first_token_s=0.1, tokens_per_s=5.0, answer_words=12), tts=TTS)
    engines = scripted(tts=TTS, chat=FaultyChatModel(slow.chat, [Fault("fails", at=5)]))
    async with calling(engines=engines, options=APOLOGETIC, append_s=0.1) as call:
        response = await asks(call)
        assert response["status"] == "failed"
        assert response["output"][0]["content"][0]["transcript"] == f"word0 word1 word2, {APOLOGY}"
        await assert_next_turn_works(call)


@virtual_time
async def test_a_voice_that_dies_in_the_middle_of_an_answer_comes_back_to_apologise():
    engines = engines_with("tts", None, Fault("fails"))
    async with calling(engines=engines, options=APOLOGETIC, append_s=0.1) as call:
        response = await asks(call)
        assert response["output"][0]["content"][0]["transcript"] == f"word0 word1 word2, {APOLOGY}"
        await assert_next_turn_works(call)


@virtual_time
async def test_without_a_voice_the_answer_ends_as_failed_and_says_so():
    engines = engines_with("tts", *[Fault("fails")] * 4)
    async with calling(engines=engines, options=APOLOGETIC, append_s=0.1) as call:
        response = await asks(call)
        assert (response["status"], response["output"]) == ("failed", [])
        assert calls_made(engines, "tts") == 2


@pytest.mark.parametrize("kind", ["hangs", "fails"])
@pytest.mark.parametrize("item", [1, 2, 5])
@virtual_time
async def test_a_model_that_stops_half_way_is_tried_again_only_if_nothing_was_shown(item: int, kind: Any):
    """The first words are shown with their sound, 200 ms after the model has given four tokens."""
    slow = scripted(llm=ScriptedLlm(first_token_s=0.1, tokens_per_s=5.0, answer_words=12), tts=TTS)
    engines = scripted(tts=TTS, chat=FaultyChatModel(slow.chat, [Fault(kind, at=item)]))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        is_shown = item == 5
        assert response["status"] == ("failed" if is_shown else "completed")
        assert calls_made(engines, "llm") == (1 if is_shown else 2)
        text = response["output"][0]["content"][0]["transcript"]
        if is_shown:
            assert text == "word0 word1 word2,"
            assert response["status_details"]["error"]["code"] == "engine_failed"
        else:
            assert text.endswith("word11.")
        await assert_next_turn_works(call)


@pytest.mark.parametrize("kind", ["hangs", "fails", "ends"])
@virtual_time
async def test_a_voice_that_fails_in_its_second_segment_ends_the_answer_after_what_was_said(kind: Any):
    engines = engines_with("tts", None, Fault(kind))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        assert response["status"] == "failed"
        assert response["output"][0]["content"][0]["transcript"] == "word0 word1 word2,"
        assert len(call.player.whole_words(response["output"][0]["id"], word_s=0.1)) <= 3
        await assert_next_turn_works(call)


@virtual_time
async def test_a_voice_that_hangs_in_mid_segment_fails_within_its_limit():
    engines = engines_with("tts", Fault("hangs", at=1))
    async with calling(engines=engines, options=OPTIONS, append_s=0.1) as call:
        response = await asks(call)
        first_audio = call.times("response.output_audio.delta")[0]
        assert response["status"] == "failed"
        assert call.now - first_audio <= LIMIT_S + 0.11
        await assert_next_turn_works(call)


@pytest.mark.parametrize("kind", ["hangs", "fails", "refuses"])
@virtual_time
async def test_an_early_transcription_that_fails_is_left_to_the_endpoint(kind: Any):
    options = SessionOptions(time_limits=TimeLimits(0.2, LIMIT_S, LIMIT_S, LIMIT_S, LIMIT_S))
    engines = engines_with("stt", Fault(kind))
    async with calling(engines=engines, options=options) as call:
        response = await asks(call)
        assert response["status"] == "completed"
        assert call.only("conversation.item.input_audio_transcription.completed")


@virtual_time
async def test_an_engine_that_is_slow_to_let_go_delays_nobody():
    """It is not waited for: the next turn begins while it still holds its cancelled call."""
    engines = engines_with("llm", Fault("hangs", at=1), release_s=3.0)
    options = SessionOptions(time_limits=TimeLimits(8, 8, 8, 8, 8))
    async with calling(engines=engines, options=options) as call:
        call.says(at=0.5, for_s=0.5)
        await call.until("response.created")
        call.says(at=call.now + 0.5, for_s=0.5)
        done = await call.until("response.done", count=2)
        assert done["response"]["status"] == "completed"
        assert call.now < 6.0
        await call.sleep_until(8.0)
