"""llama.cpp in this process, through xllamacpp: any GGUF, several conversations at once, prefixes kept between turns.

xllamacpp's `Server` is llama.cpp's HTTP server as a library: its loop decodes all running generations in one batch
(continuous batching) on its own thread, and keeps each slot's last prompt, so a turn only prefills what is new.

- A `handle_*` call blocks its thread for the whole generation and calls back for every token. There is one thread a
  slot (`options.parallel`); the executor's queue is the queue for a slot, and a cancelled call in it is never begun.
- The callback's return value is the only way to stop a generation: True. It is asked at every token and, because of
  `return_progress`, after every batch of the prefill. The caller does not wait for it.
- A prompt continues in the slot that holds the longest beginning of it, *if that slot is free*: so a call waits for the
  slots of those that were cancelled just before (a draft, a prompt read ahead), a batch or two, rather than have all
  of its prompt computed again in another.
- The server also listens on a free port of 127.0.0.1, which cannot be turned off: it gets a random key. What a prompt
  counts is asked there, since the library passes on no tokenizer: 4 ms, without waiting for a slot.
"""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx

from deployments import context, gguf, models, openai_chat
from deployments.interfaces import (
    NO_TOOLS,
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    EngineError,
    EngineFailed,
    Sampling,
    Tools,
    ToolsNotSupported,
    Usage,
)
from deployments.options import DEFAULT_CONTEXT_TOKENS, LlmOptions

_BATCH = 64
"""Prompt tokens in one forward. It bounds how long a cancelled prefill, and every other conversation's next token,
waits. 1,235 tokens took 6.0 s at 64, 5.9 s at 256 and 6.0 s at 2,048 (SmolLM2-135M Q4_1, one thread)."""
_PROMPT_CACHE_MIB = 512
"""Memory for the prompts of conversations that have no slot now; the library's default is 8 GiB."""
_QUIET = -1
_LEAVE_S = 2.0
"""Seconds that a cancelled call is given to leave its slot."""
_LONGEST_REASON = 300
_COUNT_S = 5.0
"""Seconds that counting may take; 14,000 tokens take 35 ms."""


class LlamaCppChatModel:
    """Chat with any GGUF, by the model's own template. `context_tokens` is capped to what the model was trained with.

    The same messages with the same seed give the same answer. The oldest turns are dropped to stay in the context;
    raises BadRequest when the newest does not fit alone, and an answer that fills it ends with `length`. Reasoning,
    where a model has it, is turned off. Functions are called by models whose chat template knows tools.
    """

    def __init__(self, options: LlmOptions) -> None:
        path = models.locate(options)
        if path is None:
            raise self._failed(models.missing(options))
        self._window = min(options.context_tokens or DEFAULT_CONTEXT_TOKENS, _trained_context(path))
        key = secrets.token_urlsafe()
        self._server = self._load(path, options, key)
        self._http = httpx.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_COUNT_S,
            limits=httpx.Limits(max_keepalive_connections=0),  # an engine is dropped, not closed
            trust_env=False,  # a proxy does not know this machine's loopback
        )
        self._slots = ThreadPoolExecutor(options.parallel, thread_name_prefix="llama")
        self._running: dict[Future[None], _Generation] = {}
        self._answers = 0
        """Calls of `generate` under way."""
        self._warm_up(options.system_prompt)
        self._can_call = self._template_knows_tools()

    async def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        if tools.offered and not self._can_call:  # llama.cpp would drop them without a word
            message = (
                "this model's chat template does not know tools; take another, or write llm.chat_template"
            )
            raise ToolsNotSupported(message, stage="llm", engine="llama_cpp")
        if not messages or sampling.max_tokens < 1:
            message = f"{len(messages)} messages, {sampling.max_tokens} tokens: at least one of each"
            raise BadRequest(message, stage="llm", engine="llama_cpp")
        self._answers += 1
        try:
            for generation in self._running.values():
                if generation.is_prefill:
                    generation.cancelled.set()
            await self._until_left()
            async with aclosing(self._deltas(messages, sampling, tools, sampling.max_tokens)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._answers -= 1

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """An answer that comes ends it; what was read by then stays read."""
        if self._answers:
            raise EngineBusy("answers come before prefills", stage="llm", engine="llama_cpp")
        await self._until_left()
        prompt, one = context.with_question(messages), replace(sampling, max_tokens=1)
        is_read = False
        async with aclosing(self._deltas(prompt, one, tools, sampling.max_tokens, is_prefill=True)) as deltas:
            async for delta in deltas:
                is_read |= delta.finish_reason is not None
        if not is_read:
            raise EngineBusy("an answer came before the prefill", stage="llm", engine="llama_cpp")

    async def _until_left(self) -> None:
        """Until the calls that were cancelled have left their slots."""
        self._running = {call: generation for call, generation in self._running.items() if not call.done()}
        leaving = [call for call, generation in self._running.items() if generation.cancelled.is_set()]
        if leaving:
            await asyncio.wait([asyncio.wrap_future(call) for call in leaving], timeout=_LEAVE_S)

    async def _deltas(
        self,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        tools: Tools,
        reserve: int,
        *,
        is_prefill: bool = False,
    ) -> AsyncGenerator[ChatDelta, None]:
        generation = _Generation(asyncio.get_running_loop(), is_prefill=is_prefill)
        call = self._slots.submit(self._run, messages, sampling, tools, reserve, generation)
        self._running[call] = generation
        try:
            while (item := await generation.items.get()) is not None:
                if isinstance(item, EngineError):
                    raise item
                yield item
        finally:
            generation.cancelled.set()
            call.cancel()

    def _load(self, path: Path, options: LlmOptions, key: str) -> Any:
        try:
            import xllamacpp
        except ImportError as error:
            raise self._failed(
                f"xllamacpp is not here or lacks a library ({error}): pip install xllamacpp"
            ) from error
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = options.parallel
        params.n_ctx = options.parallel * self._window
        params.n_batch = params.n_ubatch = _BATCH
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.cache_ram_mib = _PROMPT_CACHE_MIB
        params.enable_reasoning = 0
        # Fitting layers into a GPU's memory doubles the time to load (0.2 s to 0.4 s); the context is set above.
        params.fit_params = False
        params.api_keys = [key]
        params.n_threads_http = 1
        params.ui = False
        params.verbosity = _QUIET
        if options.chat_template:
            params.chat_template = _template(options.chat_template)
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            message = f"{path.name} cannot be loaded: llama.cpp does not know this model, or memory is short"
            if options.chat_template:
                message += f"; or {options.chat_template} is no chat template"
            raise self._failed(message) from error

    def _warm_up(self, system_prompt: str) -> None:
        """Leaves the system prompt in the cache, for the first turn.

        It also makes sure that the server's loop runs: a server that is destroyed before it does hangs for ever.
        """
        messages = [ChatMessage("system", system_prompt)] if system_prompt else []
        errors: list[EngineError] = []

        def on_chunk(chunk: str) -> None:
            if error := _error(json.loads(chunk)):
                errors.append(error)

        request = _request([*messages, ChatMessage("user", "Hello")], Sampling(max_tokens=1))
        self._server.handle_chat_completions(json.dumps(request), on_chunk)
        if errors:
            raise self._failed(f"the first answer failed: {errors[0].message}") from errors[0]

    def _template_knows_tools(self) -> bool:
        try:
            facts = self._http.get("/props").raise_for_status().json()
        except httpx.HTTPError as error:
            raise self._failed(f"the model could not be asked ({type(error).__name__})") from error
        return bool(facts["chat_template_caps"]["supports_tools"])

    def _run(
        self,
        messages: Sequence[ChatMessage],
        sampling: Sampling,
        tools: Tools,
        reserve: int,
        generation: "_Generation",
    ) -> None:
        try:
            if generation.cancelled.is_set():
                return
            kept = context.fit(
                messages,
                window=self._window,
                reserve=reserve,
                count=lambda some: self._count(some, tools),
                engine="llama_cpp",
            )
            request = json.dumps(_request(kept, sampling, tools))
            self._server.handle_chat_completions(request, generation.on_chunk)
        except EngineError as error:
            generation.fail(error)
        except ValueError as error:  # no grammar can be made of a tool's schema, or the template raised
            generation.fail(BadRequest(str(error)[:_LONGEST_REASON], stage="llm", engine="llama_cpp"))
        except RuntimeError as error:
            generation.fail(self._failed(f"the generation broke: {error}"))
        finally:
            generation.end()

    def _count(self, messages: Sequence[ChatMessage], tools: Tools = NO_TOOLS) -> int:
        """The tokens of a prompt, by the model's own template and tokenizer."""
        body = _request(messages, Sampling(max_tokens=1), tools)
        try:
            answer = self._http.post("/v1/chat/completions/input_tokens", json=body)
        except httpx.HTTPError as error:
            raise self._failed(f"the prompt could not be counted ({type(error).__name__})") from error
        counted = answer.json()
        if refused := _error(counted):
            raise refused
        return int(counted["input_tokens"])

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="llm", engine="llama_cpp")


class _Generation:
    """One answer on its way from the callback's thread to the event loop.

    `items` are deltas, an error, and None at the end. It is not bounded: it holds at most `max_tokens` deltas, and
    a callback that waited would hold up every other conversation's batch.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, is_prefill: bool) -> None:
        self.is_prefill = is_prefill
        self.items: asyncio.Queue[ChatDelta | EngineError | None] = asyncio.Queue()
        self.cancelled = threading.Event()
        self._loop = loop
        self._finish_reason: Literal["stop", "length"] | None = None
        self._usage: Usage | None = None
        self._has_failed = False

    def on_chunk(self, chunk: str) -> bool:
        """Takes one chunk of the stream; True stops the generation."""
        if self.cancelled.is_set():
            return True
        message = json.loads(chunk)
        if error := _error(message):
            self.fail(error)
            return True
        if usage := message.get("usage"):
            self._usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])
        for choice in message["choices"]:
            if reason := choice["finish_reason"]:
                self._finish_reason = "length" if reason == "length" else "stop"
            deltas = [ChatDelta("", call=call) for call in openai_chat.call_deltas(choice["delta"])]
            if text := choice["delta"].get("content"):
                deltas.insert(0, ChatDelta(text))
            if not all(map(self._give, deltas)):
                return True
        return False

    def fail(self, error: EngineError) -> None:
        self._has_failed = True
        self._give(error)

    def end(self) -> None:
        if self._finish_reason:
            self._give(ChatDelta("", finish_reason=self._finish_reason, usage=self._usage))
        elif not self._has_failed and not self.cancelled.is_set():
            self._give(EngineFailed("the answer broke off", stage="llm", engine="llama_cpp"))
        self._give(None)

    def _give(self, item: ChatDelta | EngineError | None) -> bool:
        """False when nobody listens any more: the event loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self.items.put_nowait, item)
        except RuntimeError:
            return False
        return True


def _request(
    messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools = NO_TOOLS
) -> dict[str, object]:
    body: dict[str, object] = {
        "messages": openai_chat.messages_object(messages),
        **openai_chat.tool_fields(tools),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": True,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def _error(message: dict[str, Any]) -> EngineError | None:
    """The error that a chunk carries, by the HTTP status that llama.cpp gives it."""
    error = message.get("error")
    if error is None:
        return None
    kinds: dict[int, type[EngineError]] = {400: BadRequest, 429: EngineBusy, 503: EngineBusy}
    kind = kinds.get(error.get("code", 500), EngineFailed)
    return kind(error.get("message", "unknown error"), stage="llm", engine="llama_cpp")


def _template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        message = f"llm.chat_template cannot be read: {error}"
        raise EngineFailed(message, stage="llm", engine="llama_cpp") from error


def _trained_context(path: Path) -> int:
    """The context length in the header of a GGUF file. Raises EngineFailed when it is not one."""
    try:
        header = gguf.read(path)
    except gguf.Unreadable as error:
        message = f"{path.name} is cut short or unreadable: delete it and run `{models.PULL_COMMAND}`"
        raise EngineFailed(message, stage="llm", engine="llama_cpp") from error
    if header.context_length is None:
        raise EngineFailed(f"{path.name} is not a chat model in GGUF", stage="llm", engine="llama_cpp")
    return header.context_length
