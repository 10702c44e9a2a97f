"""A client's request as a fact for the conversation, or the refusal of what this server cannot do.

`session.update` is not here: it changes the wire's own state too (formats), so `mapper` merges it.
"""

from dataclasses import replace
from typing import assert_never

from serve_app.conversation.events import (
    AudioCleared,
    AudioCommitted,
    Call,
    CallId,
    CancelRequested,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ItemRetrieved,
    ResponseId,
    ResponseRequested,
    Role,
    TruncationRequested,
    Wish,
)

from .client_events import (
    ContentPart,
    ConversationRequest,
    InputAudioClear,
    InputAudioCommit,
    Item,
    ItemCreate,
    ItemDelete,
    ItemRequest,
    ItemRetrieve,
    ItemTruncate,
    OutputAudioClear,
    ResponseAudioOutput,
    ResponseCancel,
    ResponseCreate,
    ResponseParams,
)
from .errors import ProtocolError, not_supported
from .session_config import (
    BETA_RESPONSE_FIELDS,
    SessionConfig,
    check_voice,
    format_of,
    modality_of,
    refuse_beta,
    refuse_unbuilt,
    tools_of,
)
from .tools import check_choice, tool_choice_of

UNBUILT_ITEMS = {
    "item_reference",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
}
UNBUILT_CONTENT = {"input_audio", "input_image", "output_audio"}
TEXT_CONTENT: dict[Role, str] = {"system": "input_text", "user": "input_text", "assistant": "output_text"}


def to_wish(request: ConversationRequest, config: SessionConfig) -> Wish:
    """Raises: ProtocolError, with the request's `event_id`."""
    try:
        return _to_wish(request, config)
    except ProtocolError as error:
        error.event_id = request.event_id
        raise


def _to_wish(request: ConversationRequest, config: SessionConfig) -> Wish:
    event_id = request.event_id
    if config.kind == "transcription" and isinstance(request, ItemCreate | ResponseCreate):
        raise not_supported(
            "type", f"'{request.type}' in a session of type 'transcription'; it never answers"
        )
    match request:
        case InputAudioCommit():
            return AudioCommitted(event_id)
        case InputAudioClear():
            return AudioCleared(event_id)
        case ItemCreate() | ItemRetrieve() | ItemTruncate() | ItemDelete():
            return _item_wish(request)
        case ResponseCreate():
            return _response_requested(request.response or ResponseParams(), config, event_id)
        case ResponseCancel():
            response_id = None if request.response_id is None else ResponseId(request.response_id)
            return CancelRequested(response_id, event_id)
        case OutputAudioClear():
            raise not_supported(
                "type", "'output_audio_buffer.clear' on a WebSocket; the client holds the audio"
            )
        case _:
            assert_never(request)


def _item_wish(request: ItemRequest) -> Wish:
    match request:
        case ItemCreate():
            return _item_created(request)
        case ItemRetrieve():
            return ItemRetrieved(ItemId(request.item_id), request.event_id)
        case ItemTruncate():
            return TruncationRequested(ItemId(request.item_id), request.audio_end_ms, request.event_id)
        case ItemDelete():
            return ItemDeleted(ItemId(request.item_id), request.event_id)
        case _:
            assert_never(request)


def _item_created(request: ItemCreate) -> ItemCreated:
    item, previous = request.item, request.previous_item_id
    wish = ItemCreated(
        role="tool",
        text="",
        item_id=None if item.id is None else ItemId(item.id),
        previous_item_id=None if previous is None else ItemId(previous),
        event_id=request.event_id,
    )
    if item.type == "function_call":
        name, arguments = _given(item.name, "item.name"), _given(item.arguments, "item.arguments")
        call = Call(CallId(_given(item.call_id, "item.call_id")), name, arguments)
        return replace(wish, role="assistant", call=call)
    if item.type == "function_call_output":
        output_of = CallId(_given(item.call_id, "item.call_id"))
        return replace(wish, text=_given(item.output, "item.output"), output_of=output_of)
    role = _role_of(item)
    if not item.content:
        raise ProtocolError(
            "missing_required_parameter", "An item needs at least one part of content.", "item.content"
        )
    texts = [_text_of(part, role, f"item.content[{n}]") for n, part in enumerate(item.content)]
    return replace(wish, role=role, text="\n".join(texts))


def _given(value: str | None, param: str) -> str:
    if value is None:
        raise ProtocolError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    return value


def _role_of(item: Item) -> Role:
    if item.type in UNBUILT_ITEMS:
        raise not_supported("item.type", f"items of type '{item.type}'")
    if item.type != "message":
        message = "Invalid 'item.type': must be 'message', 'function_call' or 'function_call_output'."
        raise ProtocolError("invalid_value", message, "item.type")
    match item.role:
        case "system" | "user" | "assistant":
            return item.role
        case None:
            raise ProtocolError("missing_required_parameter", "A message needs a role.", "item.role")
        case _:
            message = "Invalid 'item.role': must be 'system', 'user' or 'assistant'."
            raise ProtocolError("invalid_value", message, "item.role")


def _text_of(part: ContentPart, role: Role, path: str) -> str:
    if part.type in UNBUILT_CONTENT:
        raise not_supported(f"{path}.type", f"content of type '{part.type}' from a client; send its text")
    if part.type != TEXT_CONTENT[role]:
        message = f"Invalid '{path}.type': in a message of role '{role}' it must be '{TEXT_CONTENT[role]}'."
        raise ProtocolError("invalid_value", message, f"{path}.type")
    if part.text is None:
        raise ProtocolError(
            "missing_required_parameter", f"Missing required parameter: '{path}.text'.", f"{path}.text"
        )
    return part.text


def _response_requested(
    params: ResponseParams, config: SessionConfig, event_id: str | None
) -> ResponseRequested:
    refuse_beta(params.model_extra, BETA_RESPONSE_FIELDS, "response")
    refuse_unbuilt({"prompt": params.prompt, "reasoning": params.reasoning}, "response")
    if params.input is not None:  # an empty list too asks for a context of its own
        raise not_supported("response.input", "a context of its own for one response")
    if params.conversation not in (None, "auto"):
        raise not_supported("response.conversation", "responses outside the conversation")
    modality = None
    if params.output_modalities is not None:
        modality = modality_of(params.output_modalities, "response.output_modalities")
    output = (params.audio and params.audio.output) or ResponseAudioOutput()
    if output.format is not None:
        path = "response.audio.output.format"
        if format_of(output.format, path) is not config.output_format:
            raise not_supported(path, "another audio format than the session's for one response")
    voice = output.voice
    if voice is not None:
        voice = check_voice(config, voice, "response.audio.output.voice")
    tools = None if params.tools is None else tools_of(params.tools, "response.tools")
    choice = None
    if params.tool_choice is not None:
        choice = tool_choice_of(params.tool_choice, "response.tool_choice")
        check_choice(choice, config.settings.tools if tools is None else tools, "response.tool_choice")
    limit = params.max_output_tokens
    return ResponseRequested(
        instructions=params.instructions,
        modality=modality,
        voice=voice,
        max_output_tokens=None if limit == "inf" else limit,
        tools=tools,
        tool_choice=choice,
        metadata=tuple((params.metadata or {}).items()),
        event_id=event_id,
    )
