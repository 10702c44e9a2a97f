"""The language model reads ahead in the background of a session: nobody is told, and a real answer goes before it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest
from session.calls import FAST_LLM, calling, client_sends, converse, scripted, user_says
from session.faulty import FaultyChatModel
from session.virtual import virtual_time

from deployments.engines.scripted import ScriptedChatModel
from deployments.interfaces import (
    NO_TOOLS,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    Sampling,
    Tools,
)
from deployments.options import LlmOptions, ScriptedLlm
from serve_app.conversation.events import Settings
from serve_app.conversation.parameters import Parameters
from serve_app.session.options import SessionOptions
from serve_app.session.stages import PREFILL_S

INSTRUCTIONS = " ".join(["rule"] * 99)
"""A hundred words with the role: a second at 100 a second."""
READS_AHEAD = SessionOptions(parameters=Parameters(prefill_after_s=0.1))
NEVER = SessionOptions()
LONG = Settings(instructions=INSTRUCTIONS, voice="any")
SLOW = ScriptedLlm(prompt_words_per_s=100.0, first_token_s=0.1, tokens_per_s=30.0, answer_words=24)


class Reader:
    """A chat model that notes what it is told to read ahead, takes its time, and may raise."""

    def __init__(self, takes_s: float = 0.0, error: EngineError | None = None) -> None:
        self._model = ScriptedChatModel(LlmOptions(engine="scripted", scripted=FAST_LLM))
        self._takes_s = takes_s
        self._error = error
        self.prompts: list[list[ChatMessage]] = []
        self.samplings: list[Sampling] = []
        self.asked: list[list[ChatMessage]] = []
        self.reading = 0

    @property
    def active(self) -> int:
        return self._model.active + self.reading

    def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        self.asked.append(list(messages))
        self.samplings.append(sampling)
        return self._model.generate(messages, sampling=sampling, tools=tools)

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        self.prompts.append(list(messages))
        self.samplings.append(sampling)
        self.reading += 1
        try:
            await asyncio.sleep(self._takes_s)
            if self._error is not None:
                raise self._error
        finally:
            self.reading -= 1


@virtual_time
async def test_a_long_prompt_is_read_before_the_question_and_the_answer_comes_sooner() -> None:
    script = [user_says(at=1.5, for_s=0.64)]
    totals = {}
    for name, options in (("cold", NEVER), ("warm", READS_AHEAD)):
        call = await converse(script, until=12.0, engines=scripted(llm=SLOW), options=options, settings=LONG)
        assert call.outcomes() == ["completed"]
        totals[name] = call.latency()["llm_ttft"]
    assert totals["warm"] == pytest.approx(100 + 40, abs=15)
    assert totals["cold"] == pytest.approx(totals["warm"] + 1000, abs=15)


@virtual_time
async def test_it_is_told_what_the_answer_will_be_told() -> None:
    reader = Reader()
    engines = scripted(chat=reader)
    async with calling(engines=engines, options=READS_AHEAD, settings=LONG) as call:
        call.configure(max_output_tokens=50)
        call.says(at=1.0, for_s=0.64)
        await call.until("response.done")
    [prompt], [asked] = reader.prompts, reader.asked
    assert asked[: len(prompt)] == prompt == [ChatMessage("system", INSTRUCTIONS)]
    assert [sampling.max_tokens for sampling in reader.samplings] == [50, 50]
    assert call.recorder.prefills == ["done"]


@virtual_time
async def test_the_client_is_told_nothing_of_it() -> None:
    async with calling(engines=scripted(chat=Reader()), options=READS_AHEAD, settings=LONG) as call:
        await call.sleep_until(2.0)
        assert call.kinds() == ["session.created"]
        assert call.recorder.prefills == ["done"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EngineFailed("it broke", stage="llm", engine="reader"), "failed"),
        (EngineBusy("no room", stage="llm", engine="reader"), "busy"),
    ],
)
def test_its_failure_is_counted_and_the_session_goes_on(
    error: EngineError, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual_time
    async def fails() -> None:
        engines = scripted(chat=Reader(error=error))
        script = [user_says(at=1.0, for_s=0.64)]
        call = await converse(script, until=10.0, engines=engines, options=READS_AHEAD, settings=LONG)
        assert call.recorder.prefills == [outcome]
        assert call.outcomes() == ["completed"]
        assert call.errors() == []

    with caplog.at_level(logging.INFO, "voice_serve.session"):
        fails()
    assert [record.message for record in caplog.records] == ["prefill failed"] * (outcome == "failed")


@virtual_time
async def test_an_answer_ends_what_is_being_read() -> None:
    reader = Reader(takes_s=30.0)
    async with calling(engines=scripted(chat=reader), options=READS_AHEAD, settings=LONG) as call:
        call.says(at=1.0, for_s=0.64)
        await call.sleep_until(1.0)
        assert reader.reading == 1
        await call.until("response.created")
        await call.sleep_until(call.now + 0.001)
        assert reader.reading == 0
        assert call.recorder.prefills == ["superseded"]
        await call.until("response.done")


@virtual_time
async def test_what_changed_again_is_read_instead() -> None:
    reader = Reader(takes_s=30.0)
    async with calling(engines=scripted(chat=reader), options=READS_AHEAD, settings=LONG) as call:
        await call.sleep_until(1.0)
        call.configure(instructions="Be long.")
        await call.sleep_until(2.0)
        assert reader.reading == 1
        assert [prompt[0].content for prompt in reader.prompts] == [INSTRUCTIONS, "Be long."]
        assert call.recorder.prefills == ["superseded"]


@virtual_time
async def test_reading_that_hangs_is_given_up() -> None:
    reader = Reader(takes_s=10_000.0)
    async with calling(engines=scripted(chat=reader), options=READS_AHEAD, settings=LONG) as call:
        await call.sleep_until(PREFILL_S + 1.0)
        assert reader.reading == 0
        assert call.recorder.prefills == ["failed"]


@virtual_time
async def test_a_session_that_ends_stops_reading() -> None:
    reader = Reader(takes_s=30.0)
    async with calling(engines=scripted(chat=reader), options=READS_AHEAD, settings=LONG) as call:
        await call.sleep_until(1.0)
    assert reader.reading == 0


@virtual_time
async def test_an_engine_that_cannot_read_ahead_is_not_asked_to() -> None:
    engines = scripted()
    engines = scripted(chat=FaultyChatModel(engines.chat, []))
    call = await converse(
        [user_says(at=1.0, for_s=0.64)], until=10.0, engines=engines, options=READS_AHEAD, settings=LONG
    )
    assert call.outcomes() == ["completed"]


@virtual_time
async def test_a_request_that_waits_for_its_words_is_taken_back() -> None:
    """On the wire it is a response that was cancelled before its first word."""
    script = [
        client_sends(
            "session.update",
            at=0.0,
            session={"type": "realtime", "audio": {"input": {"turn_detection": None}}},
        ),
        user_says(at=0.1, for_s=0.64),
        client_sends("input_audio_buffer.commit", at=1.0),
        client_sends("response.create", at=1.0),
        client_sends("response.cancel", at=1.05),
    ]
    call = await converse(script, until=4.0)
    assert call.errors() == []
    [response] = call.responses()
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert response["output"] == []
    kinds = call.kinds()
    assert kinds.index("response.created") == kinds.index("response.done") - 1
    assert kinds[-1] == "conversation.item.input_audio_transcription.completed"
    assert call.recorder.done[0].outcome == "client_cancelled"
    assert len(call.history()) == 1
