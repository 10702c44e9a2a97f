"""The session object of the wire: what of it this server offers, and how an update changes it.

The rules of a merge, as OpenAI's: what is absent stays; `turn_detection: null` hands the turns to the client; a
`server_vad` that names some of its fields changes those. null in a field that can be unset here (`language`, `prompt`
of the transcription, `max_output_tokens`) unsets it; elsewhere null is as good as absent.

What is known and not built is an error with the path of the field, never silence; an update with one such field
changes nothing. Accepted without effect, because every client sends them: `transcription.model` (the engine is the
deployment's; `session.updated` shows its name), `transcription: null` (the answer is made of the transcript, so it
is always made), `parallel_tool_calls`, and the `id`, `object` and `expires_at` of a session sent back to us.

A session of type "transcription" hears and never answers: to the conversation it is one with `create_response` false,
and what only an answer has (instructions, a voice, tools) is refused. Its type is chosen when it connects.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from serve_app.conversation.endpointing import Eagerness
from serve_app.conversation.events import Modality, ServerVad, Settings, Tool

from .client_events import (
    AudioInput,
    AudioOutput,
    Format,
    FunctionTool,
    Session,
    SessionUpdate,
    Transcription,
    TurnDetection,
)
from .errors import ProtocolError, not_supported
from .tools import check_choice, check_names, choice_to_wire, tool_choice_of, tools_to_wire


class AudioFormat(Enum):
    """How audio is written on the wire; the laws are 8 kHz (G.711), pcm is 16-bit little-endian at 24 kHz."""

    PCM = "audio/pcm"
    PCMU = "audio/pcmu"
    PCMA = "audio/pcma"

    @property
    def rate(self) -> int:
        return 24_000 if self is AudioFormat.PCM else 8_000

    @property
    def sample_bytes(self) -> int:
        return 2 if self is AudioFormat.PCM else 1

    def to_wire(self) -> dict[str, object]:
        return {"type": self.value, "rate": self.rate} if self is AudioFormat.PCM else {"type": self.value}


SessionKind = Literal["realtime", "transcription"]
"""The wire's `session.type`."""


@dataclass(frozen=True, slots=True)
class SessionConfig:
    settings: Settings = field(default_factory=Settings)
    input_format: AudioFormat = AudioFormat.PCM
    output_format: AudioFormat = AudioFormat.PCM
    model: str = ""
    """As the client asked for it when it connected; "": it did not, and its first `session.update` may name one."""
    transcription_model: str = ""
    """The name of the engine that transcribes, shown to the client."""
    voices: frozenset[str] | None = None
    """The voices that a client may choose; None: any name, the engine decides."""
    mixes_voices: bool = False
    """A client may name a mixture of voices: "af_heart:0.7,am_michael:0.3"."""
    default_voice: str = ""
    """Speaks where a client names one of OpenAI's voices."""
    default_vad: ServerVad = field(default_factory=ServerVad)
    """What `server_vad` starts from after `turn_detection` was null."""
    kind: SessionKind = "realtime"


OPENAI_VOICES = frozenset(
    [
        "alloy",
        "ash",
        "ballad",
        "cedar",
        "coral",
        "echo",
        "fable",
        "marin",
        "nova",
        "onyx",
        "sage",
        "shimmer",
        "verse",
    ]
)
MOST_VOICES_MIXED = 10
_WEIGHT = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?|\.[0-9]{1,6}")
BETA_SESSION_FIELDS = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    "input_audio_transcription": "audio.input.transcription",
    "input_audio_noise_reduction": "audio.input.noise_reduction",
    "turn_detection": "audio.input.turn_detection",
    "speed": "audio.output.speed",
    "max_response_output_tokens": "max_output_tokens",
}
"""Names of the protocol's beta and what became of them. Dropped silently they would leave a client in the belief
that its voice or its turn detection was set."""
BETA_RESPONSE_FIELDS = {
    "modalities": "output_modalities",
    "voice": "audio.output.voice",
    "output_audio_format": "audio.output.format",
    "max_response_output_tokens": "max_output_tokens",
}


def apply_update(current: SessionConfig, event: SessionUpdate) -> SessionConfig:
    """The session after the update. Raises: ProtocolError, with the update's `event_id`; then nothing is changed."""
    try:
        return _merge(current, event.session)
    except ProtocolError as error:
        error.event_id = event.event_id
        raise


def to_wire(config: SessionConfig, session_id: str) -> dict[str, object]:
    """The whole effective session object of `session.created` and `session.updated`."""
    settings = config.settings
    if config.kind == "transcription":
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": session_id,
            "audio": {"input": _input_to_wire(config)},
            "include": None,
        }
    return {
        "type": "realtime",
        "object": "realtime.session",
        "id": session_id,
        "model": config.model or None,
        "instructions": settings.instructions,
        "output_modalities": [settings.modality],
        "max_output_tokens": settings.max_output_tokens or "inf",
        "audio": {
            "input": _input_to_wire(config),
            "output": {
                "format": config.output_format.to_wire(),
                "voice": settings.voice or None,
                "speed": settings.speed,
            },
        },
        "tools": tools_to_wire(settings.tools),
        "tool_choice": choice_to_wire(settings.tool_choice),
        "truncation": "auto",
        "tracing": None,
        "include": None,
        "prompt": None,
    }


def _input_to_wire(config: SessionConfig) -> dict[str, object]:
    settings, vad = config.settings, config.settings.turn_detection
    return {
        "format": config.input_format.to_wire(),
        # Exactly these three: Pipecat's model of it takes no others.
        "transcription": {
            "model": config.transcription_model or None,
            "language": settings.language,
            "prompt": settings.transcription_prompt,
        },
        "noise_reduction": None,
        "turn_detection": vad and _vad_to_wire(vad, config.kind),
    }


def listening_only(vad: ServerVad) -> ServerVad:
    """The same turns, of which none is answered."""
    return replace(vad, create_response=False, interrupt_response=False)


def modality_of(output_modalities: list[str], param: str) -> Modality:
    """The one modality asked for; audio always comes with its transcript, so both together is not a choice."""
    match output_modalities:
        case ["audio"]:
            return "audio"
        case ["text"]:
            return "text"
        case _:
            raise ProtocolError("invalid_value", f"Invalid '{param}': must be ['audio'] or ['text'].", param)


def format_of(format: Format, param: str) -> AudioFormat:
    try:
        offered = AudioFormat(format.type)
    except ValueError:
        names = ", ".join(each.value for each in AudioFormat)
        raise ProtocolError(
            "invalid_value", f"Invalid '{param}.type': the formats are {names}.", f"{param}.type"
        ) from None
    if format.rate not in (None, offered.rate):
        message = f"Invalid '{param}.rate': the rate of {offered.value} is {offered.rate}."
        raise ProtocolError("invalid_value", message, f"{param}.rate")
    return offered


def check_voice(config: SessionConfig, voice: str, param: str) -> str:
    """The voice that will speak: the one named, or for one of OpenAI's, which clients send by default, this server's.

    The answer shows which. Raises: ProtocolError for any other voice that the engine does not have.
    """
    if voice in OPENAI_VOICES and config.default_voice and voice not in (config.voices or ()):
        return config.default_voice
    if config.voices is not None and voice not in config.voices:
        if config.mixes_voices and _is_mixture_of(config.voices, voice):
            return voice
        names = ", ".join(sorted(config.voices)[:40])
        raise ProtocolError("invalid_value", f"Invalid '{param}': the voices are {names}.", param)
    return voice


def _is_mixture_of(voices: frozenset[str], voice: str) -> bool:
    """The rule of `deployments.engines.kokoro_voices`, so that a client is told at once and not by its next answer."""
    parts = [[each.strip() for each in part.split(":", 1)] for part in voice.split(",")]
    weights = [part[1] if len(part) > 1 else "1" for part in parts]
    are_numbers = all(_WEIGHT.fullmatch(weight) for weight in weights)
    names = {part[0] for part in parts}
    return are_numbers and any(map(float, weights)) and names <= voices and len(names) <= MOST_VOICES_MIXED


def refuse_unbuilt(fields: Mapping[str, object], prefix: str) -> None:
    """For fields of features not built: absent, null and empty lists pass, any other value is refused."""
    for name, value in fields.items():
        if value is not None and value != []:
            raise not_supported(f"{prefix}.{name}", f"'{prefix}.{name}'")


def tools_of(tools: list[FunctionTool], param: str) -> tuple[Tool, ...]:
    """Raises: ProtocolError for a tool that is no function, has no name, or another's."""
    made = []
    for number, tool in enumerate(tools):
        path = f"{param}[{number}]"
        if tool.type == "mcp":
            raise not_supported(f"{path}.type", "tools of MCP servers; offer their functions as your own")
        if tool.type != "function":
            raise ProtocolError(
                "invalid_value", f"Invalid '{path}.type': must be 'function'.", f"{path}.type"
            )
        if tool.name is None:
            message = f"Missing required parameter: '{path}.name'."
            raise ProtocolError("missing_required_parameter", message, f"{path}.name")
        made.append(Tool(tool.name, tool.description or "", tool.parameters))
    check_names([tool.name for tool in made], param)
    return tuple(made)


def refuse_beta(extra: Mapping[str, object] | None, renamed: Mapping[str, str], prefix: str) -> None:
    for name in extra or ():
        if name in renamed:
            path = f"{prefix}.{name}"
            message = f"Unknown parameter: '{path}' of the beta; it is '{prefix}.{renamed[name]}' now."
            raise ProtocolError("unknown_parameter", message, path)
    refuse_unbuilt({"temperature": (extra or {}).get("temperature")}, prefix)


def _merge(current: SessionConfig, session: Session) -> SessionConfig:
    _refuse_session(current, session)
    settings = current.settings
    if session.instructions is not None:
        settings = replace(settings, instructions=session.instructions)
    if session.output_modalities is not None:
        modality = modality_of(session.output_modalities, "session.output_modalities")
        settings = replace(settings, modality=modality)
    if "max_output_tokens" in session.model_fields_set:
        limit = session.max_output_tokens
        settings = replace(settings, max_output_tokens=None if limit == "inf" else limit)
    settings = _merge_tools(settings, session)
    config = replace(current, settings=settings, model=current.model or session.model or "")
    if session.audio is not None and session.audio.input is not None:
        config = _merge_input(config, session.audio.input)
    if session.audio is not None and session.audio.output is not None:
        config = _merge_output(config, session.audio.output)
    return config


def _merge_tools(settings: Settings, session: Session) -> Settings:
    if session.tools is not None:
        settings = replace(settings, tools=tools_of(session.tools, "session.tools"))
    if session.tool_choice is not None:
        choice = tool_choice_of(session.tool_choice, "session.tool_choice")
        settings = replace(settings, tool_choice=choice)
    if session.tools is not None or session.tool_choice is not None:
        check_choice(settings.tool_choice, settings.tools, "session.tool_choice")
    return settings


def _refuse_session(current: SessionConfig, session: Session) -> None:
    if session.type not in (None, current.kind):
        raise ProtocolError(
            "invalid_value",
            f"Invalid 'session.type': this session's is '{current.kind}', settled when it connected; "
            "'transcription' is chosen by ?intent=transcription.",
            "session.type",
        )
    if current.kind == "transcription":
        _refuse_answers(session)
    if session.model is not None and current.model not in ("", session.model):
        message = f"The model of a session cannot be changed; it is {current.model!r}."
        raise ProtocolError("invalid_value", message, "session.model")
    refuse_beta(session.model_extra, BETA_SESSION_FIELDS, "session")
    unbuilt = {
        "truncation": None if session.truncation == "auto" else session.truncation,
        "tracing": session.tracing,
        "include": session.include,
        "prompt": session.prompt,
        "reasoning": session.reasoning,
    }
    refuse_unbuilt(unbuilt, "session")


def _refuse_answers(session: Session) -> None:
    fields = {
        "instructions": session.instructions,
        "output_modalities": session.output_modalities,
        "max_output_tokens": session.max_output_tokens,
        "audio.output": session.audio and session.audio.output,
        "tools": session.tools,
        "tool_choice": session.tool_choice,
    }
    for name, value in fields.items():
        if value is not None:
            path = f"session.{name}"
            message = f"Unknown parameter: '{path}' is not part of a session of type 'transcription'."
            raise ProtocolError("unknown_parameter", message, path)


def _merge_input(config: SessionConfig, audio: AudioInput) -> SessionConfig:
    refuse_unbuilt({"noise_reduction": audio.noise_reduction}, "session.audio.input")
    settings = config.settings
    if audio.transcription is not None:
        settings = _merge_transcription(settings, audio.transcription)
    if audio.turn_detection is not None:
        base = settings.turn_detection or config.default_vad
        settings = replace(settings, turn_detection=_merge_vad(base, audio.turn_detection, config.kind))
    elif "turn_detection" in audio.model_fields_set:
        settings = replace(settings, turn_detection=None)
    input_format = config.input_format
    if audio.format is not None:
        input_format = format_of(audio.format, "session.audio.input.format")
    return replace(config, settings=settings, input_format=input_format)


def _merge_transcription(settings: Settings, transcription: Transcription) -> Settings:
    unbuilt = {name: getattr(transcription, name) for name in ("languages", "keywords", "delay")}
    refuse_unbuilt(unbuilt, "session.audio.input.transcription")
    if "language" in transcription.model_fields_set:
        settings = replace(settings, language=transcription.language)
    if "prompt" in transcription.model_fields_set:
        settings = replace(settings, transcription_prompt=transcription.prompt)
    return settings


def _merge_vad(base: ServerVad, wanted: TurnDetection, kind: SessionKind) -> ServerVad:
    path = "session.audio.input.turn_detection"
    if wanted.type not in ("server_vad", "semantic_vad"):
        message = f"Invalid '{path}.type': must be 'server_vad' or 'semantic_vad'."
        raise ProtocolError("invalid_value", message, f"{path}.type")
    refuse_unbuilt({"idle_timeout_ms": wanted.idle_timeout_ms}, path)
    given = wanted.model_dump(exclude_none=True, exclude={"type", "idle_timeout_ms", "eagerness"})
    vad = replace(base, **given, eagerness=_eagerness(wanted))
    if kind == "realtime":
        return vad
    if wanted.create_response:
        raise not_supported(f"{path}.create_response", "responses in a session of type 'transcription'")
    return listening_only(vad)


def _eagerness(wanted: TurnDetection) -> Eagerness | None:
    """None for server_vad; "auto" is "medium", as in OpenAI's."""
    if wanted.type == "server_vad":
        return None
    return "medium" if wanted.eagerness is None or wanted.eagerness == "auto" else wanted.eagerness


def _vad_to_wire(vad: ServerVad, kind: SessionKind) -> dict[str, object]:
    answers: dict[str, object] = (
        {}
        if kind == "transcription"
        else {
            "create_response": vad.create_response,
            "interrupt_response": vad.interrupt_response,
        }
    )
    if vad.eagerness is not None:
        return {"type": "semantic_vad", "eagerness": vad.eagerness, **answers}
    if kind == "realtime":
        answers["idle_timeout_ms"] = None
    return {
        "type": "server_vad",
        "threshold": vad.threshold,
        "prefix_padding_ms": vad.prefix_padding_ms,
        "silence_duration_ms": vad.silence_duration_ms,
        **answers,
    }


def _merge_output(config: SessionConfig, audio: AudioOutput) -> SessionConfig:
    settings, output_format = config.settings, config.output_format
    if audio.voice is not None:
        voice = check_voice(config, audio.voice, "session.audio.output.voice")
        settings = replace(settings, voice=voice)
    if audio.speed is not None:
        settings = replace(settings, speed=audio.speed)
    if audio.format is not None:
        output_format = format_of(audio.format, "session.audio.output.format")
    return replace(config, settings=settings, output_format=output_format)
