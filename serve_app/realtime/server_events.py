"""The objects inside server events: items, content parts, responses, usage, metadata.

Each function gives one object as the `openai` SDK's types read it (`openai.types.realtime`, strict literals); the
order of the events and their ids are the `mapper`'s. Where clients need more than the types ask for, the field says so.
"""

from itertools import accumulate, pairwise
from typing import Literal, assert_never

from serve_app.conversation.commands import Heard, Item, Outcome, ResponseDone, ResponseLost, ResponseStarted
from serve_app.conversation.events import Call, Failure, Modality, Usage
from serve_app.conversation.timeline import TurnLatency

from .session_config import AudioFormat

ServerEvent = dict[str, object]
ItemStatus = Literal["in_progress", "completed", "incomplete"]

MAX_METADATA_CHARS = 512
"""OpenAI's limit of one metadata value."""


def message_item(
    item_id: str, role: str, status: ItemStatus, content: list[dict[str, object]]
) -> dict[str, object]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


def call_item(item_id: str, call: Call, status: ItemStatus) -> dict[str, object]:
    """A call; without arguments while it is in progress."""
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "function_call",
        "status": status,
        "call_id": call.call_id,
        "name": call.name,
        "arguments": "" if status == "in_progress" else call.arguments,
    }


def shown_item(item: Item) -> dict[str, object]:
    """An item with its whole content but the audio, which is not kept."""
    if item.call is not None:
        return call_item(item.item_id, item.call, item.status)
    if item.output_of is not None:
        return {
            "id": item.item_id,
            "object": "realtime.item",
            "type": "function_call_output",
            "status": item.status,
            "call_id": item.output_of,
            "output": item.text,
        }
    if item.role == "assistant":
        content = answer_content(item.modality, item.text)
    elif item.modality == "audio":
        content = spoken_content(item.text)
    else:
        content = {"type": "input_text", "text": item.text}
    return message_item(item.item_id, item.role, item.status, [content])


def spoken_content(transcript: str | None) -> dict[str, object]:
    """What the user said; None: not transcribed yet."""
    return {"type": "input_audio", "transcript": transcript}


def answer_content(modality: Modality, text: str) -> dict[str, object]:
    """Content of the assistant's item. A content part of an event (`answer_part`) has other type names."""
    if modality == "audio":
        return {"type": "output_audio", "transcript": text}
    return {"type": "output_text", "text": text}


def answer_part(modality: Modality, text: str) -> dict[str, object]:
    if modality == "audio":
        return {"type": "audio", "transcript": text}
    return {"type": "text", "text": text}


def open_response(
    started: ResponseStarted, conversation_id: str, output_format: AudioFormat
) -> dict[str, object]:
    """The response of `response.created`: in progress, nothing in it yet."""
    return {
        "object": "realtime.response",
        "id": started.response_id,
        "status": "in_progress",
        "status_details": None,
        "output": [],
        "conversation_id": conversation_id,
        "output_modalities": [started.modality],
        "max_output_tokens": started.max_output_tokens or "inf",
        "audio": {"output": {"format": output_format.to_wire(), "voice": started.voice or None}},
        "usage": None,
        "metadata": dict(started.metadata) or None,
    }


def closing_fields(done: ResponseDone, output: list[dict[str, object]]) -> dict[str, object]:
    """What `response.done` says otherwise than `response.created` did."""
    status, details = response_status(done.outcome, done.failure)
    metadata = dict(done.metadata)
    if done.latency is not None:
        metadata |= latency_metadata(done.latency)
    if done.heard is not None:
        metadata |= heard_metadata(done.heard)
    return {
        "status": status,
        "status_details": details,
        "output": output,
        "usage": usage_object(done.usage),
        "metadata": metadata or None,
    }


def lost_response(lost: ResponseLost, conversation_id: str, output_format: AudioFormat) -> dict[str, object]:
    """The response of the `response.done` that its client was still owed when its socket was lost."""
    started = ResponseStarted(lost.response_id, lost.item_id, lost.modality, lost.metadata)
    content = answer_content(lost.modality, lost.text)
    item = message_item(lost.item_id, "assistant", "incomplete", [content])
    metadata = dict(lost.metadata) | (heard_metadata(lost.heard) if lost.heard else {})
    return open_response(started, conversation_id, output_format) | {
        "status": "incomplete",
        "status_details": {"type": "incomplete"},  # OpenAI has no reason for it
        "output": [item] if lost.text else [],
        "usage": usage_object(Usage()),
        "metadata": metadata or None,
    }


def response_status(outcome: Outcome, failure: Failure | None) -> tuple[str, dict[str, object] | None]:
    match outcome:
        case "completed":
            return "completed", None
        case "interrupted":
            return "cancelled", {"type": "cancelled", "reason": "turn_detected"}
        case "client_cancelled":
            return "cancelled", {"type": "cancelled", "reason": "client_cancelled"}
        case "incomplete":
            return "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}
        case "failed":
            assert failure is not None, "a failed response says why"
            return "failed", {"type": "failed", "error": failure_error(failure)}
        case _:
            assert_never(outcome)


def failure_error(failure: Failure) -> dict[str, object]:
    return {"type": "server_error", "code": failure.code, "message": failure.message}


def usage_object(usage: Usage) -> dict[str, object]:
    """All tokens are text: the model reads transcripts. Pipecat refuses a `response.done` without the details."""
    return {
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": 0,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": usage.output_tokens, "audio_tokens": 0},
    }


def latency_metadata(latency: TurnLatency) -> dict[str, str]:
    """Milliseconds with one decimal; the cuts are rounded, not the stages, so the stages written sum to the total."""
    stages = latency.stages()
    stages.pop("total")
    cuts = [round(cut_s * 10_000) for cut_s in accumulate(stages.values(), initial=0.0)]
    tenths = dict(zip(stages, (b - a for a, b in pairwise(cuts)), strict=True))
    tenths["total"] = cuts[-1]
    metadata = {f"latency.{name}_ms": f"{value / 10:.1f}" for name, value in tenths.items()}
    if latency.faster_than_realtime:
        metadata["latency.faster_than_realtime"] = "true"
    return metadata


def heard_metadata(heard: Heard) -> dict[str, str]:
    """What of an interrupted answer was heard; a text too long for a metadata value is cut, and then says so."""
    metadata = {
        "heard.text": heard.text,
        "heard.audio_ms": str(heard.audio_ms),
        "heard.is_estimated": "true" if heard.is_estimated else "false",
    }
    if len(heard.text) > MAX_METADATA_CHARS:
        metadata["heard.text"] = heard.text[: MAX_METADATA_CHARS - 1] + "…"
        metadata["heard.text_is_cut"] = "true"
    return metadata
