"""SGLang in this replica: batches of many conversations on a GPU, prefixes shared between them and kept between turns.

`sglang.Engine` runs its tokenizer in this process and the model in two others (scheduler, detokenizer).

- Each generation has an id of ours, a full UUID: ids are matched by prefix (sglang #39461). Leaving the stream aborts
  it by that id, at once and whatever the event loop does with the generator: 9 ms until the scheduler has freed it.
- All calls must come from one event loop, that of the replica: the engine binds itself to the first that it sees.
- The engine must be made in a thread that lives as long as the process: its processes die with the thread that made
  them (PR_SET_PDEATHSIG). Serve makes replicas in such a thread.
- A scheduler that crashes takes the replica with it (SIGQUIT, within a second), and Serve makes a new one. One that
  hangs is found by `check_health`.
- `mem_fraction_static` is the share of the GPU memory *that is free when the engine starts* that it takes for weights
  and contexts together, whether it needs it or not. Left out, SGLang takes nearly all, so it must be given where the
  GPU carries other deployments. Make it so small that they fit even if the engine starts first: what is left must
  hold them and a fifth of the weights on top, for the engine's own activations and CUDA graphs.
- Calls of functions are text to a model, written in a way of its own: `engine_args.tool_call_parser` names it ("qwen25",
  "llama3"), and SGLang's parser of that name reads them out of the answer. Calls that must come are a JSON array
  instead, held to the tools' schemas by SGLang's grammar.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from deployments import context, models, openai_chat
from deployments.interfaces import (
    NO_TOOLS,
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    Sampling,
    ToolCallDelta,
    Tools,
    ToolsNotSupported,
    Usage,
)
from deployments.options import LlmOptions

log = logging.getLogger("ray.serve")

_HEALTH_S = 20.0
"""Seconds that one token may take, behind all that runs and waits; Serve gives a health check 30."""
_FIRST_TOKEN_S = 120.0
"""The same for the very first, at which kernels may be compiled."""
_RECENT_S = 10.0
"""An engine that gave a token within so many seconds is not asked for one."""
_TELL_EVERY_S = 10.0
_ERRORS: dict[int, type[EngineError]] = {400: BadRequest, 429: EngineBusy, 503: EngineBusy}
"""Status of an aborted generation -> error; any other is EngineFailed."""


class SglangChatModel:
    """Chat with any model that SGLang serves, by the chat template of its tokenizer.

    `options.engine_args` go to `sglang.Engine` as they are. The oldest turns are dropped to stay in the window, which
    is the least of `context_tokens`, the model's own and the room that the engine has; raises BadRequest when the
    newest does not fit alone. A seed counts only with `enable_deterministic_inference`.
    """

    def __init__(self, options: LlmOptions) -> None:
        folder = models.locate(options)
        if folder is None:
            raise _failed(models.missing(options))
        self._engine = _start(folder, options)
        self._tokenizer = self._engine.tokenizer_manager.tokenizer
        if not getattr(self._tokenizer, "chat_template", None):
            self._engine.shutdown()
            raise _failed(
                f"{options.model} has no chat template: take an instruct model, or give engine_args.chat_template"
            )
        self._window = _window(self._engine, options)
        self._call_parser = str(options.engine_args.get("tool_call_parser") or "")
        # One thread: a tokenizer may not be used by two at once, and a long text takes longer than the loop may wait.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="sglang-tokenizer")
        system = [ChatMessage("system", options.system_prompt)] if options.system_prompt else []
        self._probe = self._tokens([*system, ChatMessage("user", "Hello")])
        self._last_token_at: float | None = None
        self._parallel = options.parallel
        self._answers = 0
        """Calls of `generate` under way."""

    async def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        if tools.offered and not self._call_parser:
            message = (
                "how this model calls functions is not configured: write llm.engine_args.tool_call_parser"
            )
            raise ToolsNotSupported(message, stage="llm", engine="sglang")
        if not messages or sampling.max_tokens < 1:
            raise _refused(f"{len(messages)} messages, {sampling.max_tokens} tokens: at least one of each")
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._tokenizing, self._prompt, messages, sampling, tools)
        parameters = _parameters(sampling, min(sampling.max_tokens, self._window - len(prompt)))
        reader = self._reader(tools)
        parameters |= reader.sampling if reader else {}
        self._answers += 1
        try:
            async with aclosing(self._stream(prompt, parameters)) as deltas:
                async for delta in deltas:
                    for piece in reader.read(delta) if reader else (delta,):
                        yield piece
        finally:
            self._answers -= 1

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """Into the radix cache, one chunk of it between two tokens of those who are being answered."""
        if self._answers >= self._parallel:
            raise EngineBusy(f"{self._answers} answers are under way", stage="llm", engine="sglang")
        loop = asyncio.get_running_loop()
        asked = context.with_question(messages)
        prompt = await loop.run_in_executor(self._tokenizing, self._prompt, asked, sampling, tools)
        async with aclosing(self._stream(prompt, _parameters(sampling, max_tokens=1))) as deltas:
            async for _ in deltas:
                pass

    def _reader(self, tools: Tools) -> "_NativeCalls | _DemandedCalls | None":
        """What finds the calls in the model's text; None where there are none to be found."""
        if not tools.offered:
            return None
        return _DemandedCalls(tools) if tools.must_call else _NativeCalls(tools, self._call_parser)

    async def check_health(self) -> None:
        """Raises EngineFailed when the engine gives no token. The first call warms it up with the system prompt."""
        limit_s = _FIRST_TOKEN_S
        if self._last_token_at is not None:
            limit_s = _HEALTH_S
            if asyncio.get_running_loop().time() - self._last_token_at < _RECENT_S:
                return
        parameters = _parameters(Sampling(temperature=0.0), max_tokens=1)
        try:
            async with asyncio.timeout(limit_s), aclosing(self._stream(self._probe, parameters)) as deltas:
                async for _ in deltas:
                    pass
        except TimeoutError as error:
            raise _failed(f"no token within {limit_s:g} s: the engine hangs or is dead") from error

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()

    async def _stream(
        self, prompt: list[int], parameters: Mapping[str, object]
    ) -> AsyncGenerator[ChatDelta, None]:
        request_id = str(uuid4())
        said, finish = "", None
        try:
            stream = await self._engine.async_generate(
                input_ids=prompt, sampling_params=parameters, stream=True, rid=request_id
            )
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    self._last_token_at = asyncio.get_running_loop().time()
                    meta = chunk["meta_info"]
                    finish = meta.get("finish_reason")
                    if finish and finish["type"] == "abort":
                        raise _aborted(finish)
                    # `text` is the whole answer so far.
                    added, said = chunk["text"][len(said) :], chunk["text"]
                    if added:
                        yield ChatDelta(added)
                    if finish:
                        usage = Usage(meta["prompt_tokens"], meta["completion_tokens"])
                        was_cut = finish["type"] == "length"
                        yield ChatDelta("", finish_reason="length" if was_cut else "stop", usage=usage)
        except ValueError as error:
            raise _refused(str(error)) from error
        finally:
            if finish is None:
                self._engine.tokenizer_manager.abort_request(request_id)
        if finish is None:
            raise _failed("the answer broke off")

    def _prompt(self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools) -> list[int]:
        """The tokens of what fits of `messages`."""
        kept = context.fit(
            messages,
            window=self._window,
            reserve=sampling.max_tokens,
            count=lambda some: len(self._tokens(some, tools)),
            engine="sglang",
        )
        return self._tokens(kept, tools)

    def _tokens(self, messages: Sequence[ChatMessage], tools: Tools = NO_TOOLS) -> list[int]:
        """Raises BadRequest where the model's template refuses them. Reasoning, where a model has it, is turned off."""
        from jinja2 import TemplateError

        conversation = openai_chat.messages_object(messages)
        for message in conversation:
            for call in message.get("tool_calls", ()):  # templates write the object: text would be quoted
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        offered = {"tools": openai_chat.tools_object(tools)} if tools.offered else {}
        try:
            tokens = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, return_dict=False, enable_thinking=False, **offered
            )
        except TemplateError as error:
            raise _refused(f"the model's chat template refuses the conversation: {error}") from error
        return list(tokens)


class _NativeCalls:
    """Calls as the model writes them among its words, read out of the text by SGLang's parser for that model."""

    def __init__(self, tools: Tools, parser: str) -> None:
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        described = [Tool(**tool) for tool in openai_chat.tools_object(tools)]
        try:
            self._parser = FunctionCallParser(described, parser)
        except ValueError as error:
            message = f"SGLang has no tool_call_parser {parser!r}"
            raise ToolsNotSupported(message, stage="llm", engine="sglang") from error
        self.sampling: dict[str, object] = {"skip_special_tokens": False}
        """The marks around a call are special tokens in many vocabularies."""

    def read(self, delta: ChatDelta) -> Iterator[ChatDelta]:
        if delta.text:
            yield from self._deltas(self._parser.parse_stream_chunk(delta.text))
        if delta.finish_reason:
            yield from self._deltas(self._parser.parse_stream_end())
            yield ChatDelta("", delta.finish_reason, delta.usage)

    def _deltas(self, parsed: tuple[str, Sequence[Any]]) -> Iterator[ChatDelta]:
        text, calls = parsed
        if text:
            yield ChatDelta(text)
        for call in calls:
            piece = ToolCallDelta(call.tool_index, name=call.name or "", arguments=call.parameters)
            yield ChatDelta("", call=piece)


class _DemandedCalls:
    """Calls that must come: the whole answer is held to a JSON array of them by SGLang's grammar, for any model."""

    def __init__(self, tools: Tools) -> None:
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": json.loads(tool.parameters)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools.offered
        ]
        schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
        self.sampling: dict[str, object] = {"json_schema": json.dumps(schema)}
        self._text = ""

    def read(self, delta: ChatDelta) -> Iterator[ChatDelta]:
        self._text += delta.text
        if delta.finish_reason is None:
            return
        try:
            calls = json.loads(self._text)
        except ValueError:
            calls = []  # cut by the token limit; or, without a grammar backend, words
            if delta.finish_reason == "stop":
                raise _failed(
                    "a call was demanded and none came: is engine_args.grammar_backend off?"
                ) from None
        for index, call in enumerate(calls):
            piece = ToolCallDelta(index, name=call["name"], arguments=json.dumps(call["arguments"]))
            yield ChatDelta("", call=piece)
        yield ChatDelta("", delta.finish_reason, delta.usage)


def _start(folder: Path, options: LlmOptions) -> Any:
    try:
        import sglang
    except ImportError as error:
        raise _failed(
            "sglang is not installed: it has an environment of its own, constraints-gpu.txt"
        ) from error
    arguments = {"log_level": "warning", **options.engine_args}
    # These two are what this file relies on.
    arguments |= {"model_path": str(folder), "incremental_streaming_output": False}
    log.info(
        "sglang: starting with %s; it loads the weights, takes its memory and captures CUDA graphs, about a minute: %s",
        options.model,
        options.engine_args or "its own defaults",
    )
    started = time.monotonic()
    try:
        with _telling("sglang: still starting after %d s"):
            engine = sglang.Engine(**arguments)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        message = (
            f"{options.model} cannot be started: {error}. On a machine without a GPU it needs CPU arguments"
        )
        raise _failed(f"{message} (tests/engines/test_sglang.py has them)") from error
    log.info("sglang: ready after %d s", time.monotonic() - started)
    return engine


@contextmanager
def _telling(message: str) -> Iterator[None]:
    """Logs `message`, with the seconds that have gone by, for as long as the block takes."""
    is_done = threading.Event()

    def tell() -> None:
        seconds = _TELL_EVERY_S
        while not is_done.wait(_TELL_EVERY_S):
            log.info(message, seconds)
            seconds += _TELL_EVERY_S

    teller = threading.Thread(target=tell, name="sglang-start", daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_done.set()
        teller.join()


def _window(engine: Any, options: LlmOptions) -> int:
    """Tokens of one conversation, and a line in the log on how many there is room for."""
    facts = engine._scheduler_init_result.scheduler_infos[0]
    own, room = int(facts["max_req_input_len"]), int(facts["max_total_num_tokens"])
    window = min(own, options.context_tokens or own)
    log.info("sglang: a conversation may have %d tokens; there is room for %d at once", window, room)
    return window


def _parameters(sampling: Sampling, max_tokens: int) -> dict[str, object]:
    parameters: dict[str, object] = {
        "max_new_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        parameters["sampling_seed"] = sampling.seed
    return parameters


def _aborted(finish: Mapping[str, Any]) -> EngineError:
    kind = _ERRORS.get(int(finish.get("status_code") or 500), EngineFailed)
    return kind(str(finish.get("message", "aborted")), stage="llm", engine="sglang")


def _refused(message: str) -> BadRequest:
    return BadRequest(message, stage="llm", engine="sglang")


def _failed(message: str) -> EngineFailed:
    return EngineFailed(message, stage="llm", engine="sglang")
