"""Commands: what a `Conversation` wants done, in order. The first group is work for the session's machines, the
second are notices to the client, which `realtime.mapper` turns into wire events.
"""

from dataclasses import dataclass
from typing import Literal

from .events import (
    Call,
    CallId,
    ChunkId,
    Failure,
    ItemId,
    JudgementId,
    Modality,
    ResponseId,
    Role,
    SegmentId,
    Settings,
    Tool,
    TranscriptionId,
    Usage,
)
from .timeline import TurnLatency


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    text: str
    calls: tuple[Call, ...] = ()
    """Of the assistant, after its words; an output of each follows."""
    output_of: CallId | None = None
    """Of role "tool": the call that `text` came of."""


# --- work -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transcribe:
    """Transcribe the input from sample `start` to `stop` (16 kHz, counted since the session began)."""

    transcription_id: TranscriptionId
    start: int
    stop: int
    language: str | None
    prompt: str | None
    is_interim: bool = False
    """Speech goes on: worth doing only if nothing better is to be done."""


@dataclass(frozen=True, slots=True)
class CancelTranscription:
    transcription_id: TranscriptionId


@dataclass(frozen=True, slots=True)
class JudgeTurn:
    """Say from the sound of the input, from sample `start` to `stop`, whether the turn is over.

    A newer one takes the place of an older one. Nothing waits for it, so none that fails is reported.
    """

    judgement_id: JudgementId
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Generate:
    response_id: ResponseId
    messages: tuple[Message, ...]
    max_output_tokens: int | None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    """The model calls one of `tools`, whatever it was told."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Have the language model read what its next prompt will begin with; nothing is reported of it.

    Over, finished or not, when a `Generate` or another `Prefill` follows.
    """

    messages: tuple[Message, ...]
    max_output_tokens: int | None
    tools: tuple[Tool, ...] = ()
    """They stand in the prompt, mostly before the first message."""


@dataclass(frozen=True, slots=True)
class Synthesize:
    response_id: ResponseId
    segment_id: SegmentId
    text: str
    voice: str
    speed: float


@dataclass(frozen=True, slots=True)
class CancelWork:
    """Stop the generation and synthesis of the response and forget its unsent audio."""

    response_id: ResponseId
    wasted_tokens: int | None = None
    """Set for a draft that came to nothing: what was generated of it in vain."""


@dataclass(frozen=True, slots=True)
class Play:
    """Send this chunk now, then report `AudioSent`; no other `Play` comes before that."""

    response_id: ResponseId
    item_id: ItemId
    chunk_id: ChunkId


@dataclass(frozen=True, slots=True)
class InsertSilence:
    """The input stalled in the middle of speech: append so many zero samples to it and score them as silence."""

    samples: int


# --- notices to the client ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    settings: Settings


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    item_id: ItemId
    audio_start_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    item_id: ItemId
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class TurnCommitted:
    """The user's audio became an item; its transcript follows by `TranscriptCompleted` or `TranscriptFailed`."""

    item_id: ItemId
    previous_item_id: ItemId | None


@dataclass(frozen=True, slots=True)
class InputCleared:
    pass


@dataclass(frozen=True, slots=True)
class TranscriptGrown:
    """Words of the turn under way that two transcriptions agree on; `TranscriptCompleted` has the last word."""

    item_id: ItemId
    delta: str


@dataclass(frozen=True, slots=True)
class TranscriptCompleted:
    item_id: ItemId
    text: str
    audio_s: float
    """Length of the transcribed audio: what the wire's usage counts."""
    latency_s: float | None = None
    """From the last speech to where the turn had ended and its words were known; None: it did not come in real time."""


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    item_id: ItemId
    failure: Failure


ItemStatus = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the conversation as the client sees it."""

    item_id: ItemId
    role: Role
    text: str
    modality: Modality
    """"audio": spoken, `text` is its transcript; "text": written."""
    status: ItemStatus = "completed"
    call: Call | None = None
    """Set: the item, of role "assistant" and without text, is this call."""
    output_of: CallId | None = None
    """Set: the item, of role "tool", is what came of that call."""

    @property
    def is_told(self) -> bool:
        """A model learns of it: an item without words says nothing, but an output without words is one."""
        return bool(self.text) or self.call is not None or self.output_of is not None


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item that the client created was put into the conversation."""

    item: Item
    previous_item_id: ItemId | None


@dataclass(frozen=True, slots=True)
class ItemShown:
    """The answer to `ItemRetrieved`."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemRemoved:
    item_id: ItemId


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """The item was cut to what was heard: by the client's word, or by speech over sound whose `ResponseDone` is past.

    A cut before that is told by the `ResponseDone`.
    """

    item_id: ItemId
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class ResponseStarted:
    response_id: ResponseId
    item_id: ItemId
    """The id that the response's item will have, should it get as far as a first word."""
    modality: Modality
    metadata: tuple[tuple[str, str], ...] = ()
    voice: str = ""
    max_output_tokens: int | None = None
    was_drafted: bool = False
    """It was begun before the turn had ended."""


@dataclass(frozen=True, slots=True)
class TranscriptDelta:
    """Words of the answer: with modality "audio" it comes just before the `Play` of their first sound.

    The first one of a response also means that its item has entered the conversation, behind `previous_item_id`.
    """

    response_id: ResponseId
    item_id: ItemId
    text: str
    previous_item_id: ItemId | None = None


Outcome = Literal["completed", "interrupted", "client_cancelled", "incomplete", "failed"]
"""How a response ended. interrupted: by the user's speech; incomplete: the token limit cut it."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What of an answer the user has heard, by the server's own estimate."""

    text: str
    audio_ms: int
    is_estimated: bool
    """True where the engine gave no word times and the words were laid out in proportion to their length."""


@dataclass(frozen=True, slots=True)
class CallMade:
    """A call as an item of the conversation."""

    item: Item
    call: Call
    previous_item_id: ItemId | None


@dataclass(frozen=True, slots=True)
class ResponseDone:
    response_id: ResponseId
    item_id: ItemId
    outcome: Outcome
    text: str
    """All text whose delta was sent."""
    heard: Heard | None
    """Set when audio was interrupted; None otherwise."""
    usage: Usage
    latency: TurnLatency | None
    """None when nothing was sent, or when the turn was not spoken."""
    failure: Failure | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    calls: tuple[CallMade, ...] = ()
    """What the agent calls, after its words; told here for the first time."""


@dataclass(frozen=True, slots=True)
class HistoryRestored:
    """What the client can count on after its return; `ResponseLost` follows if an answer was cut by the loss."""

    items: tuple[Item, ...]
    """The whole history, as it was heard."""
    lost_items: tuple[ItemId, ...]
    """The user's turns whose words are lost: they must be said again."""


@dataclass(frozen=True, slots=True)
class ResponseLost:
    """The end of a response that was under way when the socket was lost: incomplete."""

    response_id: ResponseId
    item_id: ItemId
    modality: Modality
    text: str
    """All text whose delta was sent; "" if nothing was, and then it left no item."""
    heard: Heard | None
    """None for an answer that was not spoken."""
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A wish that cannot be granted; the session goes on."""

    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


Work = (
    Transcribe
    | CancelTranscription
    | JudgeTurn
    | Generate
    | Prefill
    | Synthesize
    | CancelWork
    | Play
    | InsertSilence
)
Notice = (
    SettingsChanged
    | SpeechStarted
    | SpeechStopped
    | TurnCommitted
    | InputCleared
    | TranscriptCompleted
    | TranscriptGrown
    | TranscriptFailed
    | ItemAdded
    | ItemShown
    | ItemRemoved
    | ItemTruncated
    | ResponseStarted
    | TranscriptDelta
    | ResponseDone
    | HistoryRestored
    | ResponseLost
    | Refused
)
Command = Work | Notice
