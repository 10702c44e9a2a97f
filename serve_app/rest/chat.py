"""`POST /v1/chat/completions`: the language model by itself, with nothing of the server's own prompt.

Calls of functions are passed on as the model makes them, piece by piece; unlike a session's they are not checked.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal
from uuid import uuid4

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deployments.interfaces import (
    ChatDelta,
    ChatMessage,
    ChatModel,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolCallDelta,
    Tools,
    Usage,
)
from serve_app.observability import unix_time
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.tools import (
    NO_PARAMETERS,
    FunctionName,
    SchemaText,
    check_names,
    object_text,
    tool_choice_of,
)
from serve_app.session.stages import Calls, TimeLimits, paced

from .bodies import Body
from .errors import ApiError, not_supported, of_protocol
from .streams import Event

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "web_search_options": (),
}
"""Fields that would change the answer and cannot: the values that they may have."""


class FunctionCall(Body):
    name: FunctionName
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, arguments: str) -> str:
        return object_text(arguments)


class CalledTool(Body):
    id: str = Field(min_length=1, max_length=512)
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    role: str
    content: str
    """Text parts are joined with line breaks; "" where an assistant only calls."""
    tool_calls: list[CalledTool] = Field(default=[])
    tool_call_id: str = ""

    @model_validator(mode="before")
    @classmethod
    def _calls_without_words(cls, message: Any) -> Any:
        if isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None:
            return message | {"content": ""}
        return message

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise PydanticCustomError("value", "the roles are {known}", {"known": known})
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any) -> Any:
        return "\n".join(_part(part) for part in content) if isinstance(content, list) else content


def _part(part: Any) -> str:
    kind, text = (part.get("type"), part.get("text")) if isinstance(part, dict) else (None, None)
    if kind != "text" or not isinstance(text, str):
        named = repr(str(kind)[:40])
        raise PydanticCustomError(
            "value", "only parts of type 'text', with a 'text', can be read, not {kind}", {"kind": named}
        )
    return text


class Function(Body):
    name: FunctionName
    description: str = Field(default="", max_length=4096)
    parameters: SchemaText = NO_PARAMETERS


class OfferedTool(Body):
    type: Literal["function"]
    function: Function


class StreamOptions(Body):
    include_usage: bool = False


class ChatRequest(Body):
    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(default="", max_length=256)
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    tools: list[OfferedTool] = Field(default=[])
    tool_choice: Any = "auto"
    stop: list[str] = Field(default=[], max_length=4)

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    def sampling(self, default: Sampling, most_tokens: int | None) -> Sampling:
        tokens = self.max_completion_tokens or self.max_tokens or default.max_tokens
        return Sampling(
            min(tokens, most_tokens or tokens),
            default.temperature if self.temperature is None else self.temperature,
            default.top_p if self.top_p is None else self.top_p,
            self.seed,
        )

    def chat(self) -> list[ChatMessage]:
        return [
            ChatMessage(
                _ROLES[message.role],
                message.content,
                tuple(
                    ToolCall(call.id, call.function.name, call.function.arguments)
                    for call in message.tool_calls
                ),
                message.tool_call_id,
            )
            for message in self.messages
        ]

    def offered(self) -> Tools:
        """Raises ApiError for a choice that the tools do not allow. See `conversation._offered` for its meaning."""
        tools = tuple(
            Tool(tool.function.name, tool.function.description, tool.function.parameters)
            for tool in self.tools
        )
        try:
            check_names([tool.name for tool in tools], "tools")
            choice = tool_choice_of(self.tool_choice, "tool_choice")
        except ProtocolError as error:
            raise of_protocol(error) from None
        if choice.function is not None:
            tools = tuple(tool for tool in tools if tool.name == choice.function)
        must_call = choice.function is not None or choice.mode == "required"
        if must_call and not tools:
            message = "Invalid 'tool_choice': there is no such tool."
            raise ApiError(400, message, code="invalid_value", param="tool_choice")
        return Tools() if choice.mode == "none" else Tools(tools, must_call)

    def refuse_unpaired(self) -> None:
        """Raises ApiError for a call without its output right behind, or an output without its call."""
        open_calls: list[str] = []
        for number, message in enumerate(self.messages):
            if message.role != "tool" and open_calls:
                break
            if message.role == "tool":
                if message.tool_call_id not in open_calls:
                    raise _unpaired(
                        f"messages[{number}].tool_call_id", "no call of this id stands right before"
                    )
                open_calls.remove(message.tool_call_id)
            if message.role != "assistant" and message.tool_calls:
                raise _unpaired(f"messages[{number}].tool_calls", "only an assistant calls")
            open_calls += [call.id for call in message.tool_calls]
        if open_calls:
            raise _unpaired("messages", f"the call {open_calls[0][:80]!r} has no output")

    def refuse_unbuilt(self) -> None:
        """Raises ApiError for what would change the answer and cannot."""
        extra: Mapping[str, object] = self.model_extra or {}
        for name, neutral in _NEUTRAL.items():
            if name in extra and extra[name] not in neutral:
                raise not_supported(name, f"'{name}' other than its default")


def _unpaired(param: str, what: str) -> ApiError:
    return ApiError(400, f"Invalid '{param}': {what}.", code="invalid_value", param=param)


class StopSequences:
    """Cuts a stream before the first of some strings; text that may be the beginning of one is held back."""

    def __init__(self, stops: list[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may go out, and whether the stream ends with it."""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            return self._held[: min(found)], True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out, False

    def flush(self) -> str:
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)


async def answer(
    chat: ChatModel, request: ChatRequest, tools: Tools, sampling: Sampling, limits: TimeLimits
) -> AsyncGenerator[ChatDelta, None]:
    """The engine's answer up to the first stop sequence, at which the engine is stopped too; its last delta has a finish reason."""
    stops = StopSequences(request.stop)
    stream = chat.generate(request.chat(), sampling=sampling, tools=tools)
    has_finished = False
    timed = paced(stream, "llm", "token", limits.llm_first_token_s, limits.token_gap_s(tools))
    async with aclosing(timed) as deltas:
        async for delta in deltas:
            text, is_over = stops.push(delta.text)
            if is_over:
                yield ChatDelta(text, "stop", delta.usage)
                return
            has_finished = delta.finish_reason is not None
            if has_finished:
                text += stops.flush()
            if text or has_finished or delta.call:
                yield ChatDelta(text, delta.finish_reason, delta.usage, delta.call)
    if not has_finished:
        yield ChatDelta(stops.flush(), "stop")


class Completion:
    """One answer as OpenAI writes it."""

    def __init__(self, model: str) -> None:
        self._common: dict[str, object] = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": unix_time(),
            "model": model,
        }

    async def whole(self, deltas: AsyncGenerator[ChatDelta, None]) -> dict[str, object]:
        texts: list[str] = []
        calls = Calls()
        finish, usage = "stop", None
        async with aclosing(deltas):
            async for delta in deltas:
                texts.append(delta.text)
                if delta.call is not None:
                    calls.add(delta.call)
                finish, usage = delta.finish_reason or finish, delta.usage or usage
        text, made = "".join(texts), calls.so_far()
        message: dict[str, object] = {
            "role": "assistant",
            "content": text or None if made else text,
            "refusal": None,
        }
        if made:
            message["tool_calls"] = [_whole_call(call) for call in made]
        reason = _finish_reason(finish, has_calls=bool(made))
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(usage),
        }

    async def chunks(
        self, deltas: AsyncGenerator[ChatDelta, None], options: StreamOptions
    ) -> AsyncGenerator[Event, None]:
        """The first chunk, which names the role, comes with the engine's first word: what fails before has a status."""
        extra: dict[str, object] = {"usage": None} if options.include_usage else {}
        usage, is_first = None, True
        begun: set[int] = set()
        """The calls whose first piece was sent."""
        async with aclosing(deltas):
            async for delta in deltas:
                if is_first:
                    yield self._chunk({"role": "assistant", "content": ""}, None) | extra
                    is_first = False
                usage = delta.usage or usage
                if delta.text:
                    yield self._chunk({"content": delta.text}, None) | extra
                if delta.call is not None:
                    piece = _call_piece(delta.call, is_first=delta.call.index not in begun)
                    yield self._chunk({"tool_calls": [piece]}, None) | extra
                    begun.add(delta.call.index)
                if delta.finish_reason:
                    reason = _finish_reason(delta.finish_reason, has_calls=bool(begun))
                    yield self._chunk({}, reason) | extra
        if options.include_usage:
            yield {**self._common, "object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)}

    def _chunk(self, delta: dict[str, object], finish_reason: str | None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}


def _finish_reason(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason


def _whole_call(call: ToolCall) -> dict[str, object]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id or _call_id(), "type": "function", "function": function}


def _call_piece(piece: ToolCallDelta, *, is_first: bool) -> dict[str, object]:
    if not is_first:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {
        "index": piece.index,
        "id": piece.call_id or _call_id(),
        "type": "function",
        "function": function,
    }


def _call_id() -> str:
    return f"call_{uuid4().hex}"


def _usage(usage: Usage | None) -> dict[str, int] | None:
    """None where the engine has not counted: it does not where a stop sequence ended the answer."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
