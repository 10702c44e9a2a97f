"""What a client may send: the eleven events of OpenAI Realtime, their shapes, types and ranges.

Decided here: whether an event is well formed. Not decided here: whether this server can do what it asks
(`session_config`, `wishes`), so a field of a feature that is not built has the type `object`: whatever stands in it,
the answer is `not_supported` and names the field.

Fields that nobody here knows are dropped: clients send what newer servers understand. Two models keep them
(`extra="allow"`), because the names of the protocol's beta are known and must be answered.

`input_audio_buffer.append` has no model: it comes 50 times a second a session and `codec` reads it by hand.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from .tools import NO_PARAMETERS, FunctionName, SchemaText, object_text

MAX_TEXT_CHARS = 65_536
"""Of instructions and of the text of an item: four times the context of the models that a laptop runs."""
MAX_PROMPT_CHARS = 4_096
MAX_ID_CHARS = 512
MAX_VOICE_CHARS = 256
"""Room for a mixture of ten."""
MAX_AUDIO_MS = 2**31 - 1
"""24 days: past every session, and small enough for float arithmetic on it."""


def _without_nul(text: str) -> str:
    """Lone surrogates need no check: pydantic refuses a string that is not Unicode text."""
    if "\0" in text:
        raise PydanticCustomError("nul_character", "must not contain the character U+0000")
    return text


def _token_limit(value: object) -> int | Literal["inf"] | None:
    if value is None or (type(value) is int and 1 <= value <= 4096):
        return value
    if value == "inf":
        return "inf"
    raise PydanticCustomError("token_limit", "must be an integer from 1 to 4096, or 'inf'")


def _voice_name(value: object) -> str | None:
    """OpenAI takes a name, or an object with the id of a custom voice: the name here is that id."""
    name = value.get("id") if isinstance(value, dict) else value
    if value is None:
        return None
    if isinstance(name, str) and 0 < len(name) <= MAX_VOICE_CHARS and name.isprintable():
        return name
    raise PydanticCustomError("voice_name", "must be the name of a voice, of 1 to 256 printable characters")


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS), AfterValidator(_without_nul)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(_without_nul)]
Description = Annotated[str, Field(max_length=MAX_PROMPT_CHARS), AfterValidator(_without_nul)]
Arguments = Annotated[Text, AfterValidator(object_text)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS), AfterValidator(_without_nul)]
TokenLimit = Annotated[int | Literal["inf"] | None, PlainValidator(_token_limit)]
VoiceName = Annotated[str | None, PlainValidator(_voice_name)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_without_nul)]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_without_nul)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


# --- tools ---


class FunctionTool(_Wire):
    """Other types than "function" are refused where the tools are used, so nothing is required of them here."""

    type: str
    name: FunctionName | None = None
    description: Description | None = None
    parameters: SchemaText = NO_PARAMETERS


# --- the session object ---------------------------------------------------------------------------------------------


class Format(_Wire):
    type: str
    rate: int | None = None


class Transcription(_Wire):
    model: Annotated[str, Field(max_length=128)] | None = None
    language: Annotated[str, Field(min_length=2, max_length=35)] | None = None
    """35 characters: the longest language tag that RFC 5646 4.4.1 asks to be able to hold."""
    prompt: Prompt | None = None
    languages: object = None
    keywords: object = None
    delay: object = None


class TurnDetection(_Wire):
    """`server_vad` and `semantic_vad` in one: which fields count is decided by `type`."""

    type: str
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5_000)] | None = None
    silence_duration_ms: Annotated[int, Field(ge=50, le=10_000)] | None = None
    """50: under two frames of the detector a pause between two syllables would end the turn."""
    create_response: bool | None = None
    interrupt_response: bool | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    idle_timeout_ms: object = None


class AudioInput(_Wire):
    format: Format | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    noise_reduction: object = None


class AudioOutput(_Wire):
    format: Format | None = None
    voice: VoiceName = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None


class Audio(_Wire):
    input: AudioInput | None = None
    output: AudioOutput | None = None


class Session(_Wire):
    model_config = ConfigDict(extra="allow")

    type: str | None = None
    model: Annotated[str, Field(max_length=256)] | None = None
    instructions: Text | None = None
    output_modalities: list[str] | None = None
    max_output_tokens: TokenLimit = None
    audio: Audio | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: object = None
    truncation: object = None
    tracing: object = None
    include: object = None
    prompt: object = None
    reasoning: object = None


# --- items and responses --------------------------------------------------------------------------------------------


class ContentPart(_Wire):
    type: str
    text: Text | None = None


class Item(_Wire):
    type: str
    id: Id | None = None
    role: str | None = None
    content: list[ContentPart] | None = None
    call_id: Id | None = None
    name: FunctionName | None = None
    arguments: Arguments | None = None
    output: Text | None = None


class ResponseAudioOutput(_Wire):
    format: Format | None = None
    voice: VoiceName = None


class ResponseAudio(_Wire):
    output: ResponseAudioOutput | None = None


class ResponseParams(_Wire):
    model_config = ConfigDict(extra="allow")

    instructions: Text | None = None
    output_modalities: list[str] | None = None
    max_output_tokens: TokenLimit = None
    audio: ResponseAudio | None = None
    metadata: Metadata | None = None
    conversation: str | None = None
    input: object = None
    tools: list[FunctionTool] | None = None
    tool_choice: object = None
    prompt: object = None
    reasoning: object = None


# --- the events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InputAudio:
    """`input_audio_buffer.append`: `encoded` in the session's input format, not yet decoded to pcm."""

    encoded: bytes
    event_id: str | None = None


class _Event(_Wire):
    event_id: Id | None = None


class SessionUpdate(_Event):
    type: Literal["session.update"]
    session: Session


class InputAudioCommit(_Event):
    type: Literal["input_audio_buffer.commit"]


class InputAudioClear(_Event):
    type: Literal["input_audio_buffer.clear"]


class ItemCreate(_Event):
    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: Id | None = None


class ItemRetrieve(_Event):
    type: Literal["conversation.item.retrieve"]
    item_id: Id


class ItemTruncate(_Event):
    type: Literal["conversation.item.truncate"]
    item_id: Id
    content_index: Annotated[int, Field(ge=0, le=0)]
    """Every item has one part of content."""
    audio_end_ms: Annotated[int, Field(ge=0, le=MAX_AUDIO_MS)]


class ItemDelete(_Event):
    type: Literal["conversation.item.delete"]
    item_id: Id


class ResponseCreate(_Event):
    type: Literal["response.create"]
    response: ResponseParams | None = None


class ResponseCancel(_Event):
    type: Literal["response.cancel"]
    response_id: Id | None = None


class OutputAudioClear(_Event):
    type: Literal["output_audio_buffer.clear"]


ItemRequest = ItemCreate | ItemRetrieve | ItemTruncate | ItemDelete
ConversationRequest = (
    InputAudioCommit | InputAudioClear | ItemRequest | ResponseCreate | ResponseCancel | OutputAudioClear
)
Request = SessionUpdate | ConversationRequest
ClientEvent = InputAudio | Request

REQUESTS: dict[str, type[Request]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.commit": InputAudioCommit,
    "input_audio_buffer.clear": InputAudioClear,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemDelete,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": OutputAudioClear,
}
