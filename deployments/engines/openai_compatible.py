"""Any server with OpenAI's `/chat/completions`: Ollama, llama-server, vLLM, SGLang, TensorRT-LLM, or a cloud.

- What the server says becomes a typed error: it cannot be reached or breaks (EngineFailed), has no room (EngineBusy),
  refuses the request as it is (BadRequest). Retrying is not done here.
- A stream is whole when it named a `finish_reason` or ended with `[DONE]`; servers leave out either. One that just
  stops has failed: an answer that was cut off must not look like one that ended.
- Cancelling closes the connection, which is how these servers learn to stop generating.
- With `context_tokens` the oldest turns are dropped by an estimate of their tokens (`context.estimate`), since the
  model's tokenizer is at the server. Without it everything is sent: some servers refuse what is too long
  (BadRequest), and some, Ollama among them, drop the beginning in silence, system prompt first.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

import httpx

from deployments import context, openai_chat
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

_TIMEOUTS = httpx.Timeout(connect=5.0, read=60.0, write=10.0, pool=5.0)
"""Seconds. The session's own time limits for the first and the next token are shorter than `read`."""
_ERRORS: dict[int, type[EngineError]] = {
    400: BadRequest,
    404: BadRequest,
    413: BadRequest,
    422: BadRequest,
    429: EngineBusy,
    503: EngineBusy,
}
"""Status -> error; any other than 200 is EngineFailed."""
_LONGEST_REASON = 300
_NO_TOOLS_WORDS = ("does not support tools", "--jinja", "--enable-auto-tool-choice", "--tool-call-parser")
"""Of the servers' refusals: Ollama for a model without tools, llama-server, vLLM; the last two name the remedy."""


class OpenAICompatibleChatModel:
    """Chat over HTTP at `options.base_url`, with `options.model` as the server names it."""

    def __init__(self, options: LlmOptions) -> None:
        if not options.base_url:
            raise self._failed("no server is configured: write llm.base_url, up to and including /v1")
        if not options.model:
            raise self._failed("no model is configured: write llm.model, the model's name at the server")
        self._model = options.model
        self._window = options.context_tokens
        self._answers = 0
        """Calls of `generate` under way."""
        self._url = f"{options.base_url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        self._client = httpx.AsyncClient(headers=headers, timeout=_TIMEOUTS)

    async def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        if not messages:
            raise BadRequest("there are no messages", stage="llm", engine="openai_compatible")
        self._answers += 1
        try:
            async with aclosing(
                self._stream(self._fitted(messages, sampling, tools), sampling, tools)
            ) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._answers -= 1

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """Asks for one token. Whether the server keeps what it has read is up to it."""
        if self._answers:
            raise EngineBusy("answers come before prefills", stage="llm", engine="openai_compatible")
        prompt = self._fitted(context.with_question(messages), sampling, tools)
        async with aclosing(self._stream(prompt, replace(sampling, max_tokens=1), tools)) as deltas:
            async for _ in deltas:
                pass

    async def _stream(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools
    ) -> AsyncGenerator[ChatDelta, None]:
        answer = _Answer()
        try:
            async with self._client.stream(
                "POST", self._url, json=self._request(messages, sampling, tools)
            ) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    for delta in self._deltas(line, answer):
                        yield delta
                    if answer.is_done:
                        break
        except httpx.PoolTimeout as error:
            message = f"all connections to {self._url} are in use"
            raise EngineBusy(message, stage="llm", engine="openai_compatible") from error
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.UnsupportedProtocol,
            httpx.InvalidURL,
        ) as error:
            message = f"no server answers at {self._url}: start it, or correct llm.base_url"
            raise self._failed(message) from error
        except httpx.HTTPError as error:
            raise self._failed(f"the server broke off ({type(error).__name__}) {error}".rstrip()) from error
        if not answer.is_done and answer.finish_reason is None:
            raise self._failed("the server ended the stream in mid-answer")
        yield ChatDelta("", finish_reason=answer.finish_reason or "stop", usage=answer.usage)

    async def aclose(self) -> None:
        """Closes the connections; running generations fail."""
        await self._client.aclose()

    def _fitted(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools
    ) -> Sequence[ChatMessage]:
        if self._window is None:
            return messages
        return context.fit(
            messages,
            window=self._window,
            reserve=sampling.max_tokens,
            count=lambda some: context.estimate(some, tools),
            engine="openai_compatible",
        )

    def _request(
        self, messages: Sequence[ChatMessage], sampling: Sampling, tools: Tools
    ) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._model,
            "messages": openai_chat.messages_object(messages),
            **openai_chat.tool_fields(tools),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    def _deltas(self, line: str, answer: "_Answer") -> list[ChatDelta]:
        """What a line of the stream adds. Lines that are not data (events, ids, comments) add nothing."""
        if not line.startswith("data:"):
            return []
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            answer.is_done = True
            return []
        try:
            chunk = json.loads(data)
            if error := chunk.get("error"):
                raise self._refusal(_status(error), json.dumps(chunk).encode())
            return answer.take(chunk)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._failed(f"the stream is not one of chat completions: {data[:80]!r}") from error

    def _refusal(self, status: int, body: bytes) -> EngineError:
        if status in (401, 403):
            return self._failed(
                f"the server refuses the key ({status}): check the variable of llm.api_key_env"
            )
        reason = _reason(body)
        kind = _ERRORS.get(status, EngineFailed)
        if any(words in reason for words in _NO_TOOLS_WORDS):
            kind = ToolsNotSupported
        return kind(f"{status}: {reason}", stage="llm", engine="openai_compatible")

    def _failed(self, message: str) -> EngineFailed:
        return EngineFailed(message, stage="llm", engine="openai_compatible")


class _Answer:
    """What one stream has told so far, besides its text."""

    def __init__(self) -> None:
        self.finish_reason: Literal["stop", "length"] | None = None
        self.usage: Usage | None = None
        self.is_done = False
        self._call_ids: list[str] = []

    def take(self, chunk: dict[str, Any]) -> list[ChatDelta]:
        if usage := chunk.get("usage"):
            self.usage = Usage(usage["prompt_tokens"], usage["completion_tokens"])
        deltas = []
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta", {})
            if text := delta.get("content"):
                deltas.append(ChatDelta(text))
            deltas += [ChatDelta("", call=self._numbered(call)) for call in openai_chat.call_deltas(delta)]
            if reason := choice.get("finish_reason"):
                self.finish_reason = "length" if reason == "length" else "stop"
        return deltas

    def _numbered(self, call: ToolCallDelta) -> ToolCallDelta:
        """Servers that send each call whole may give every one the index 0: an id of its own begins another call."""
        if call.call_id and call.call_id not in self._call_ids:
            self._call_ids.append(call.call_id)
        last = len(self._call_ids) - 1 if self._call_ids else call.index
        return replace(call, index=self._call_ids.index(call.call_id) if call.call_id else last)


def _status(error: object) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _reason(body: bytes) -> str:
    """The sentence in an error's body, whichever of the usual shapes it has."""
    text = body.decode(errors="replace").strip()
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return text[:_LONGEST_REASON] or "no reason given"
