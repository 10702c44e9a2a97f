"""What the engines are asked to call in tests, and a template that lets a model of 135 million parameters do it."""

import json
from collections.abc import Sequence
from pathlib import Path

from deployments.interfaces import ChatDelta, ChatMessage, Tool, ToolCall, Tools

CHAT_TEMPLATE = Path(__file__).with_name("tools.jinja")
"""SmolLM2's own knows no tools: this one writes them as the Hermes models do."""

WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    '{"type":"object","properties":{"city":{"type":"string","enum":["Paris","Rome","Oslo","Bonn"]}},"required":["city"]}',
)
TOOLS = Tools((WEATHER,))
MUST_CALL = Tools((WEATHER,), must_call=True)


def weather_of(city: str) -> list[ChatMessage]:
    """A question, the call that it led to, and its output."""
    call = ToolCall(f"id{city}", "get_weather", json.dumps({"city": city}))
    return [
        ChatMessage("user", f"What is the weather in {city}?"),
        ChatMessage("assistant", "", (call,)),
        ChatMessage("tool", "Sunny.", call_id=call.call_id),
    ]


QUESTION = [
    ChatMessage("system", "You call get_weather."),
    *weather_of("Paris"),
    *weather_of("Oslo"),
    *weather_of("Bonn"),
    ChatMessage("user", "What is the weather in Rome?"),
]
"""Three examples, so that a small model does the same: it calls for Rome."""


def calls_in(deltas: Sequence[ChatDelta]) -> list[ToolCall]:
    """The calls of an answer, whole."""
    whole: dict[int, ToolCall] = {}
    for piece in (delta.call for delta in deltas if delta.call):
        call = whole.get(piece.index, ToolCall("", "", ""))
        arguments = call.arguments + piece.arguments
        whole[piece.index] = ToolCall(call.call_id or piece.call_id, call.name or piece.name, arguments)
    return list(whole.values())
