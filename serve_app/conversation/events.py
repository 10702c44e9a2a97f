"""Facts: what has happened, told to a `Conversation` one at a time.

Past tense, frozen, each with the id of what it is about. A fact about work that is no longer wanted is dropped by
its id in `Conversation.handle`, so whoever reports facts never needs to ask whether they still matter.
The second half are the client's wishes; each may carry the client's `event_id`, which a refusal quotes.
`WordTime`, `Tool` and `Call` have twins in `deployments.interfaces`: the core knows no engines, `session.stages` translates.
"""

from dataclasses import dataclass
from typing import Literal, NewType

from .endpointing import Eagerness

TranscriptionId = NewType("TranscriptionId", int)
JudgementId = NewType("JudgementId", int)
SegmentId = NewType("SegmentId", int)
ChunkId = NewType("ChunkId", int)
ItemId = NewType("ItemId", str)
ResponseId = NewType("ResponseId", str)
CallId = NewType("CallId", str)

Role = Literal["system", "user", "assistant", "tool"]
Modality = Literal["audio", "text"]


@dataclass(frozen=True, slots=True)
class WordTime:
    """`text[start_char:end_char]` of a segment sounds from `start_s` to `end_s`, in seconds of that segment's audio."""

    start_char: int
    end_char: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's that the model may call."""

    name: str
    description: str = ""
    parameters: str = '{"type":"object","properties":{}}'
    """JSON schema of its arguments, as JSON text: a value like any other, and the same in every record."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["auto", "none", "required"] = "auto"
    function: str | None = None
    """The one that must be called; `mode` says nothing then."""

    def offered(self, tools: "tuple[Tool, ...]") -> "tuple[tuple[Tool, ...], bool]":
        """The tools that a model gets, and whether it must call one.

        One that must be called is the only one offered: not every engine can be told the name, and each can do this.
        A choice that the tools of this response do not allow is none.
        """
        if self.function is not None:
            named = tuple(tool for tool in tools if tool.name == self.function)
            return named or tools, bool(named)
        if self.mode == "none":
            return (), False
        return tools, self.mode == "required" and bool(tools)


@dataclass(frozen=True, slots=True)
class Call:
    call_id: CallId
    name: str
    arguments: str
    """A JSON object, as text."""


@dataclass(frozen=True, slots=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage failed, in words for the client: `code` is machine-readable, `message` one sentence."""

    stage: str
    code: str
    message: str
    retryable: bool = True


# --- facts of the machines ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameScored:
    """A frame of the user's audio was scored by the detector; `samples` at 16 kHz."""

    samples: int
    speech_probability: float


@dataclass(frozen=True, slots=True)
class TranscriptFinished:
    transcription_id: TranscriptionId
    text: str


@dataclass(frozen=True, slots=True)
class TurnJudged:
    """A second opinion on a pause of the user, from the sound of it."""

    judgement_id: JudgementId
    completeness: float
    """Probability that the turn is over."""


@dataclass(frozen=True, slots=True)
class TokensGenerated:
    response_id: ResponseId
    text: str
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class CallGenerated:
    """The model calls a function; the call is whole. Comes before `GenerationFinished`."""

    response_id: ResponseId
    call_id: CallId | None
    """As the engine names it; None: it does not."""
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class GenerationFinished:
    response_id: ResponseId
    finish_reason: Literal["stop", "length"]
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class SpeechSynthesized:
    """One chunk of a segment's audio is ready to be played; chunks of a segment come in order."""

    response_id: ResponseId
    segment_id: SegmentId
    chunk_id: ChunkId
    duration_s: float
    words: tuple[WordTime, ...] = ()


@dataclass(frozen=True, slots=True)
class SynthesisFinished:
    response_id: ResponseId
    segment_id: SegmentId


@dataclass(frozen=True, slots=True)
class AudioSent:
    """The chunk was handed to the socket."""

    chunk_id: ChunkId


@dataclass(frozen=True, slots=True)
class TranscriptionFailed:
    transcription_id: TranscriptionId
    failure: Failure


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    response_id: ResponseId
    failure: Failure


@dataclass(frozen=True, slots=True)
class SynthesisFailed:
    response_id: ResponseId
    segment_id: SegmentId
    failure: Failure


# --- the client's wishes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerVad:
    """How turns are taken when the server decides; `None` in `Settings` means that the client commits."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True
    eagerness: Eagerness | None = None
    """Set: the wait follows the words (semantic_vad); None: it is `silence_duration_ms` (server_vad)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client may change about its session while it goes on."""

    instructions: str = ""
    modality: Modality = "audio"
    turn_detection: ServerVad | None = ServerVad()
    voice: str = ""
    speed: float = 1.0
    language: str | None = None
    transcription_prompt: str | None = None
    max_output_tokens: int | None = None
    """None: as many as the configured sampling allows."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()


@dataclass(frozen=True, slots=True)
class SessionConfigured:
    settings: Settings
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class AudioCommitted:
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class AudioCleared:
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemCreated:
    """A message; or, with `call`, a call as an agent made it; or, with `output_of`, what came of one."""

    role: Role
    text: str
    item_id: ItemId | None = None
    """The client's own id for the item; None: the conversation gives one."""
    previous_item_id: ItemId | None = None
    """None: at the end; "root": at the start; else behind that item."""
    event_id: str | None = None
    call: Call | None = None
    output_of: CallId | None = None


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    item_id: ItemId
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class ItemRetrieved:
    item_id: ItemId
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class TruncationRequested:
    item_id: ItemId
    audio_end_ms: int
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseRequested:
    """`None` in a field: as the session's settings say."""

    instructions: str | None = None
    modality: Modality | None = None
    voice: str | None = None
    max_output_tokens: int | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    response_id: ResponseId | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The client is back on another socket; told once, first of all, to a conversation that was restored."""

    item_id: ItemId | None = None
    """The answer that was being played when the socket was lost; None: the last of which sound was sent."""
    audio_end_ms: int | None = None
    """How much of it was played; None: the client does not know."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The socket is gone or the session is ended by the server."""


Fact = (
    FrameScored
    | TranscriptFinished
    | TurnJudged
    | TokensGenerated
    | CallGenerated
    | GenerationFinished
    | SpeechSynthesized
    | SynthesisFinished
    | AudioSent
    | TranscriptionFailed
    | GenerationFailed
    | SynthesisFailed
)
Wish = (
    SessionConfigured
    | AudioCommitted
    | AudioCleared
    | ItemCreated
    | ItemDeleted
    | ItemRetrieved
    | TruncationRequested
    | ResponseRequested
    | CancelRequested
    | Closed
)
Event = Fact | Wish | Returned
