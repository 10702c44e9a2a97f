"""Every client event of the protocol, small and with all its fields, as the `openai` SDK's types spell them."""

from typing import Any

from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter

SESSION: dict[str, Any] = {
    "type": "realtime",
    "model": "voice",
    "instructions": "Be brief.",
    "output_modalities": ["audio"],
    "max_output_tokens": "inf",
    "tools": [],
    "tool_choice": "auto",
    "truncation": "auto",
    "tracing": None,
    "include": None,
    "prompt": None,
    "parallel_tool_calls": True,
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": None,
            "transcription": {"model": "whisper-1", "language": "en", "prompt": "voice-serve, Ray"},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.6,
                "prefix_padding_ms": 200,
                "silence_duration_ms": 400,
                "create_response": True,
                "interrupt_response": False,
                "idle_timeout_ms": None,
            },
        },
        "output": {"format": {"type": "audio/pcmu"}, "voice": "af_heart", "speed": 1.25},
    },
}
RESPONSE: dict[str, Any] = {
    "instructions": "Greet the user.",
    "output_modalities": ["text"],
    "max_output_tokens": 200,
    "metadata": {"client_event_id": "a"},
    "conversation": "auto",
    "tools": [],
    "tool_choice": "none",
    "audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": {"id": "bm_george"}}},
}
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "f",
    "description": "Does it.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
_UNSUPPORTED_ITEMS: dict[str, dict[str, Any]] = {
    "image": {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}],
    },
    "audio": {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_audio", "audio": "AAAA", "transcript": "hi"}],
    },
}


def message(role: str, kind: str, *texts: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": kind, "text": text} for text in texts]
    return {"type": "message", "role": role, "content": content} | fields


_EXAMPLES: dict[str, dict[str, Any]] = {
    "session.update": {"type": "session.update", "session": {"type": "realtime"}},
    "session.update, all": {"type": "session.update", "event_id": "e1", "session": SESSION},
    "session.update, transcription": {"type": "session.update", "session": {"type": "transcription"}},
    "session.update, semantic": {
        "type": "session.update",
        "session": {
            "type": "realtime",
            "tracing": "auto",
            "audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "high"}}},
        },
    },
    "append": {"type": "input_audio_buffer.append", "event_id": "e1", "audio": "AAAA" * 4},
    "commit": {"type": "input_audio_buffer.commit", "event_id": "e1"},
    "clear": {"type": "input_audio_buffer.clear", "event_id": "e1"},
    "create": {"type": "conversation.item.create", "item": message("user", "input_text", "Hello.")},
    "create, all": {
        "type": "conversation.item.create",
        "event_id": "e1",
        "previous_item_id": "root",
        "item": message(
            "assistant", "output_text", "Hi.", "There.", id="i", object="realtime.item", status="completed"
        ),
    },
    "create, call": {
        "type": "conversation.item.create",
        "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    },
    "create, output": {
        "type": "conversation.item.create",
        "event_id": "e1",
        "item": {"type": "function_call_output", "id": "i", "call_id": "c", "output": "1"},
    },
    "session.update, tools": {
        "type": "session.update",
        "session": {"type": "realtime", "tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
    },
    "response.create, tools": {
        "type": "response.create",
        "response": {"tools": [TOOL], "tool_choice": "required"},
    },
    "create, system": {
        "type": "conversation.item.create",
        "item": message("system", "input_text", "You are a clock."),
    },
    "retrieve": {"type": "conversation.item.retrieve", "event_id": "e1", "item_id": "i"},
    "truncate": {
        "type": "conversation.item.truncate",
        "event_id": "e1",
        "item_id": "i",
        "content_index": 0,
        "audio_end_ms": 1200,
    },
    "delete": {"type": "conversation.item.delete", "event_id": "e1", "item_id": "i"},
    "response.create": {"type": "response.create"},
    "response.create, all": {"type": "response.create", "event_id": "e1", "response": RESPONSE},
    "response.create, with input": {
        "type": "response.create",
        "response": {"input": [message("user", "input_text", "Hello.")], "conversation": "none"},
    },
    "cancel": {"type": "response.cancel"},
    "cancel, all": {"type": "response.cancel", "event_id": "e1", "response_id": "resp_1"},
    "output clear": {"type": "output_audio_buffer.clear", "event_id": "e1"},
    **{
        f"create, {name}": {"type": "conversation.item.create", "item": item}
        for name, item in _UNSUPPORTED_ITEMS.items()
    },
}

_SDK = TypeAdapter(RealtimeClientEvent)
EXAMPLES: dict[str, dict[str, Any]] = {
    name: _SDK.validate_python(event).model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name, event in _EXAMPLES.items()
}
"""Gone through the SDK's own models, so none of them is only our idea of an event."""
