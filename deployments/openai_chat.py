"""Messages, tools and calls as OpenAI's chat completions write them: what llama.cpp, SGLang's templates and servers take."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .interfaces import ChatMessage, ToolCallDelta, Tools


def messages_object(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    written: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        written["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.calls
        ]
    if message.role == "tool":
        written["tool_call_id"] = message.call_id
    return written


def tools_object(tools: Tools) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in tools.offered
    ]


def tool_fields(tools: Tools) -> dict[str, Any]:
    """What a request says of them: nothing where there are none, as some servers refuse an empty list."""
    if not tools.offered:
        return {}
    return {"tools": tools_object(tools), "tool_choice": "required" if tools.must_call else "auto"}


def call_deltas(delta: Mapping[str, Any]) -> Iterator[ToolCallDelta]:
    """The pieces of calls in the `delta` of a streamed choice. Raises what a malformed one brings about."""
    for number, piece in enumerate(delta.get("tool_calls") or ()):
        function = piece.get("function") or {}
        yield ToolCallDelta(
            index=piece.get("index", number),  # servers that send calls whole may leave it out
            call_id=piece.get("id") or "",
            name=function.get("name") or "",
            arguments=_text(function.get("arguments")),
        )


def _text(arguments: object) -> str:
    """Arguments are text; some servers send the object itself."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
