"""What an update changes, what it leaves alone, and what it is refused for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai.types.realtime.realtime_session_create_request import RealtimeSessionCreateRequest
from openai.types.realtime.realtime_session_create_response import RealtimeSessionCreateResponse
from realtime.client_examples import SESSION

from deployments.engines import kokoro_voices
from deployments.engines.kokoro_voices import Voices
from deployments.interfaces import BadRequest
from serve_app.conversation.events import ServerVad, Settings, Tool, ToolChoice
from serve_app.realtime.client_events import SessionUpdate
from serve_app.realtime.codec import decode
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.session_config import (
    MOST_VOICES_MIXED,
    AudioFormat,
    SessionConfig,
    apply_update,
    check_voice,
    to_wire,
)

CURRENT = SessionConfig(
    settings=Settings(
        instructions="Be brief.",
        turn_detection=ServerVad(threshold=0.7, silence_duration_ms=300),
        voice="af_heart",
        language="en",
        transcription_prompt="Ray",
        max_output_tokens=100,
    ),
    model="voice",
    transcription_model="base.en",
    default_vad=ServerVad(silence_duration_ms=700),
)


def updated(session: dict[str, Any], current: SessionConfig = CURRENT) -> SessionConfig:
    text = json.dumps({"type": "session.update", "event_id": "e1", "session": session})
    event = decode(text.replace("Infinity", "1e999"))
    assert isinstance(event, SessionUpdate)
    return apply_update(current, event)


def audio_in(**fields: Any) -> dict[str, Any]:
    return {"audio": {"input": fields}}


def audio_out(**fields: Any) -> dict[str, Any]:
    return {"audio": {"output": fields}}


def server_vad(**fields: Any) -> dict[str, Any]:
    return audio_in(turn_detection={"type": "server_vad", **fields})


def tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": "f", **fields}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"properties": {"x": schema}}
    return schema


SCHEMA = {"properties": {"x": {"type": "integer"}}}
BAD_SCHEMAS: dict[str, Any] = {
    "no object": "all",
    "of no object": {"type": "string"},
    "no object of properties": {"properties": ["x"]},
    "too deep": nested(40),
    "far too deep": nested(200),
    "infinity": {"default": 1e999},
    "half a character": {"title": "\ud800"},
    "too long": {"title": "x" * 20_000},
}


def with_settings(**fields: Any) -> SessionConfig:
    return replace(CURRENT, settings=replace(CURRENT.settings, **fields))


def test_the_laws_are_telephone_audio():
    assert [each.rate for each in AudioFormat] == [24_000, 8_000, 8_000]
    assert [each.sample_bytes for each in AudioFormat] == [2, 1, 1]


def test_every_field_arrives():
    config = updated(SESSION)
    assert config.settings == Settings(
        instructions="Be brief.",
        modality="audio",
        turn_detection=ServerVad(0.6, 200, 400, create_response=True, interrupt_response=False),
        voice="af_heart",
        speed=1.25,
        language="en",
        transcription_prompt="voice-serve, Ray",
        max_output_tokens=None,
    )
    assert (config.input_format, config.output_format) == (AudioFormat.PCM, AudioFormat.PCMU)


CHANGES: dict[str, tuple[dict[str, Any], SessionConfig]] = {
    "nothing": ({}, CURRENT),
    "empty branches": ({"audio": {"input": {}, "output": {}}}, CURRENT),
    "nulls": (
        {
            "instructions": None,
            "output_modalities": None,
            "audio": {
                "input": {"format": None, "transcription": None},
                "output": {"voice": None, "speed": None},
            },
        },
        CURRENT,
    ),
    "empty instructions": ({"instructions": ""}, with_settings(instructions="")),
    "text": ({"output_modalities": ["text"]}, with_settings(modality="text")),
    "token limit": ({"max_output_tokens": 7}, with_settings(max_output_tokens=7)),
    "no token limit": ({"max_output_tokens": "inf"}, with_settings(max_output_tokens=None)),
    "null token limit": ({"max_output_tokens": None}, with_settings(max_output_tokens=None)),
    "language": (audio_in(transcription={"language": "de"}), with_settings(language="de")),
    "any language": (audio_in(transcription={"language": None}), with_settings(language=None)),
    "no prompt": (audio_in(transcription={"prompt": None}), with_settings(transcription_prompt=None)),
    "a model of OpenAI's": (audio_in(transcription={"model": "whisper-1"}), CURRENT),
    "the client commits": (audio_in(turn_detection=None), with_settings(turn_detection=None)),
    "one field of the detector": (
        server_vad(threshold=0.4),
        with_settings(turn_detection=ServerVad(threshold=0.4, silence_duration_ms=300)),
    ),
    "no field of the detector": (server_vad(threshold=None), CURRENT),
    "input format": (
        audio_in(format={"type": "audio/pcma"}),
        replace(CURRENT, input_format=AudioFormat.PCMA),
    ),
    "voice": (audio_out(voice="bm_george"), with_settings(voice="bm_george")),
    "speed": (audio_out(speed=1), with_settings(speed=1.0)),
    "the same model": ({"model": "voice"}, CURRENT),
    "a session sent back": ({"id": "sess_1", "object": "realtime.session", "expires_at": 1}, CURRENT),
    "no tools, no choice": (
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": False},
        with_settings(tool_choice=ToolChoice("none")),
    ),
    "tools": (
        {"tools": [tool(), tool(name="g", description="Does g.", parameters=SCHEMA)]},
        with_settings(
            tools=(
                Tool("f"),
                Tool("g", "Does g.", '{"type":"object","properties":{"x":{"type":"integer"}}}'),
            )
        ),
    ),
    "a tool that must be called": (
        {"tools": [tool()], "tool_choice": {"type": "function", "name": "f"}},
        with_settings(tools=(Tool("f"),), tool_choice=ToolChoice(function="f")),
    ),
    "OpenAI's defaults": ({"truncation": "auto", "tracing": None, "include": [], "prompt": None}, CURRENT),
}


@pytest.mark.parametrize(("session", "expected"), CHANGES.values(), ids=CHANGES)
def test_an_update_changes_what_it_names(session, expected):
    assert updated({"type": "realtime", **session}) == expected


def test_the_type_of_the_session_may_be_left_out():
    assert updated({}) == CURRENT


@pytest.mark.parametrize(
    ("asked", "shown"), [({}, "medium"), ({"eagerness": "auto"}, "medium"), ({"eagerness": "low"}, "low")]
)
def test_semantic_vad_follows_the_words_and_server_vad_ends_that(asked: dict[str, str], shown: str):
    config = updated(audio_in(turn_detection={"type": "semantic_vad", **asked}))
    vad = config.settings.turn_detection
    assert vad is not None
    assert (vad.eagerness, vad.threshold) == (shown, 0.7)
    wire: Any = to_wire(config, "s")
    assert wire["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": shown,
        "create_response": True,
        "interrupt_response": True,
    }
    again = updated(server_vad(), config).settings.turn_detection
    assert again is not None
    assert again.eagerness is None


def test_server_vad_after_null_starts_from_the_deployments_defaults():
    without = with_settings(turn_detection=None)
    config = updated(server_vad(threshold=0.4), without)
    assert config.settings.turn_detection == ServerVad(threshold=0.4, silence_duration_ms=700)


def test_the_first_update_may_name_the_model_that_the_connection_did_not():
    unnamed = replace(CURRENT, model="")
    assert updated({"model": "gpt-realtime"}, unnamed).model == "gpt-realtime"
    assert updated({}, unnamed).model == ""


def test_a_voice_on_the_list_is_taken():
    listed = replace(CURRENT, voices=frozenset({"af_heart", "bm_george"}))
    assert updated(audio_out(voice="bm_george"), listed).settings.voice == "bm_george"


IN, OUT = "session.audio.input", "session.audio.output"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "transcription session": ({"type": "transcription"}, "invalid_value", "session.type"),
    "unknown session": ({"type": "translation"}, "invalid_value", "session.type"),
    "another model": ({"model": "gpt-realtime"}, "invalid_value", "session.model"),
    "both modalities": (
        {"output_modalities": ["text", "audio"]},
        "invalid_value",
        "session.output_modalities",
    ),
    "no modality": ({"output_modalities": []}, "invalid_value", "session.output_modalities"),
    "tools of no known shape": ({"tools": "all"}, "invalid_type", "session.tools"),
    "a tool of an unknown type": ({"tools": [{"type": "f"}]}, "invalid_value", "session.tools[0].type"),
    "a tool of a server": ({"tools": [{"type": "mcp"}]}, "not_supported", "session.tools[0].type"),
    "a tool without a type": (
        {"tools": [{"name": "f"}]},
        "missing_required_parameter",
        "session.tools[0].type",
    ),
    "a tool without a name": (
        {"tools": [{"type": "function"}]},
        "missing_required_parameter",
        "session.tools[0].name",
    ),
    "a name that no engine takes": (
        {"tools": [{"type": "function", "name": "my tool"}]},
        "invalid_value",
        "session.tools[0].name",
    ),
    "two tools of one name": ({"tools": [tool(), tool()]}, "invalid_value", "session.tools"),
    "too many tools": (
        {"tools": [tool(name=f"f{n}") for n in range(129)]},
        "invalid_value",
        "session.tools",
    ),
    **{
        f"parameters: {name}": (
            {"tools": [tool(parameters=schema)]},
            "invalid_value",
            "session.tools[0].parameters",
        )
        for name, schema in BAD_SCHEMAS.items()
    },
    "a choice of no known shape": ({"tool_choice": 1}, "invalid_value", "session.tool_choice"),
    "a server's tool": ({"tool_choice": {"type": "mcp"}}, "not_supported", "session.tool_choice"),
    "a forced tool where there are none": (
        {"tool_choice": "required"},
        "invalid_value",
        "session.tool_choice",
    ),
    "a tool that is not there": (
        {"tools": [tool()], "tool_choice": {"type": "function", "name": "g"}},
        "invalid_value",
        "session.tool_choice",
    ),
    "truncation": ({"truncation": "disabled"}, "not_supported", "session.truncation"),
    "retention": (
        {"truncation": {"type": "retention_ratio", "retention_ratio": 0.8}},
        "not_supported",
        "session.truncation",
    ),
    "tracing": ({"tracing": "auto"}, "not_supported", "session.tracing"),
    "log probabilities": (
        {"include": ["item.input_audio_transcription.logprobs"]},
        "not_supported",
        "session.include",
    ),
    "prompt template": ({"prompt": {"id": "p"}}, "not_supported", "session.prompt"),
    "reasoning": ({"reasoning": {"effort": "low"}}, "not_supported", "session.reasoning"),
    "temperature": ({"temperature": 0.8}, "not_supported", "session.temperature"),
    "a name of the beta": ({"voice": "alloy"}, "unknown_parameter", "session.voice"),
    "turn detection of the beta": ({"turn_detection": None}, "unknown_parameter", "session.turn_detection"),
    "unknown detector": (
        audio_in(turn_detection={"type": "vad"}),
        "invalid_value",
        f"{IN}.turn_detection.type",
    ),
    "idle timeout": (
        server_vad(idle_timeout_ms=6000),
        "not_supported",
        f"{IN}.turn_detection.idle_timeout_ms",
    ),
    "noise reduction": (
        audio_in(noise_reduction={"type": "near_field"}),
        "not_supported",
        f"{IN}.noise_reduction",
    ),
    "several languages": (
        audio_in(transcription={"languages": ["en", "de"]}),
        "not_supported",
        f"{IN}.transcription.languages",
    ),
    "keywords": (
        audio_in(transcription={"keywords": ["Ray"]}),
        "not_supported",
        f"{IN}.transcription.keywords",
    ),
    "a format not offered": (audio_in(format={"type": "audio/opus"}), "invalid_value", f"{IN}.format.type"),
    "a rate not offered": (
        audio_in(format={"type": "audio/pcm", "rate": 16000}),
        "invalid_value",
        f"{IN}.format.rate",
    ),
    "an output format not offered": (
        audio_out(format={"type": "audio/mpeg"}),
        "invalid_value",
        f"{OUT}.format.type",
    ),
    "a voice not on the list": (audio_out(voice="alloy"), "invalid_value", f"{OUT}.voice"),
}


@pytest.mark.parametrize(("session", "code", "param"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_name(session, code, param):
    listed = replace(CURRENT, voices=frozenset({"af_heart"}))
    with pytest.raises(ProtocolError) as caught:
        updated({"instructions": "changed", **session}, listed)
    error = caught.value
    assert (error.code, error.param, error.event_id) == (code, param, "e1")
    assert error.message


CONFIGS = [
    CURRENT,
    SessionConfig(),
    with_settings(turn_detection=None, modality="text", max_output_tokens=None, language=None),
    replace(CURRENT, input_format=AudioFormat.PCMU, output_format=AudioFormat.PCMA),
    with_settings(tools=(Tool("f", "Does f."),), tool_choice=ToolChoice("required")),
    with_settings(tools=(Tool("f"), Tool("g")), tool_choice=ToolChoice(function="g")),
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sdk", [RealtimeSessionCreateRequest, RealtimeSessionCreateResponse])
def test_the_session_shown_is_one_of_the_sdks(config, sdk):
    sdk.model_validate(to_wire(config, "sess_1"))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_session_shown_sent_back_changes_nothing(config):
    assert updated(to_wire(config, "sess_1"), config) == config


def test_the_session_shown_names_what_is_in_force():
    shown: Any = to_wire(with_settings(speed=1.5), "sess_1")
    assert (shown["id"], shown["model"], shown["max_output_tokens"]) == ("sess_1", "voice", 100)
    assert shown["audio"]["input"]["transcription"] == {"model": "base.en", "language": "en", "prompt": "Ray"}
    assert shown["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300
    assert shown["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "voice": "af_heart",
        "speed": 1.5,
    }


def test_one_of_openais_voices_is_spoken_by_the_servers_own() -> None:
    config = SessionConfig(voices=frozenset({"af_heart", "echo"}), default_voice="af_heart")
    assert check_voice(config, "marin", "voice") == "af_heart"
    assert check_voice(config, "echo", "voice") == "echo"
    with pytest.raises(ProtocolError):
        check_voice(config, "nobody", "voice")


MIXING = SessionConfig(
    voices=frozenset({"af_heart", "am_michael"}), mixes_voices=True, default_voice="af_heart"
)
MIXTURES = ["af_heart:0.7,am_michael:0.3", "af_heart, am_michael", "af_heart:2", "af_heart:1,am_michael:0"]
NO_MIXTURES = [
    "af_heart,",
    ",af_heart",
    "af_heart:0.7,nobody:0.3",
    "alloy:0.7,am_michael:0.3",
    "af_heart:",
    "af_heart:x",
    "af_heart:-1,am_michael:2",
    "af_heart:nan",
    "af_heart:0,am_michael:0",
    "af_heart:0.5:0.5",
]


@pytest.mark.parametrize("voice", MIXTURES)
def test_a_mixture_of_known_voices_speaks(voice: str, kokoro: Voices) -> None:
    assert updated(audio_out(voice=voice), replace(CURRENT, **_voices_of(MIXING))).settings.voice == voice
    assert kokoro.parse(voice), "and the engine takes it"


@pytest.mark.parametrize("voice", NO_MIXTURES)
def test_a_mixture_that_the_engine_would_refuse_is_refused_at_once(voice: str, kokoro: Voices) -> None:
    with pytest.raises(ProtocolError):
        check_voice(MIXING, voice, "voice")
    with pytest.raises(BadRequest):
        kokoro.parse(voice)


@pytest.mark.parametrize("voice", MIXTURES)
def test_an_engine_that_cannot_mix_is_not_asked_to(voice: str) -> None:
    with pytest.raises(ProtocolError):
        check_voice(replace(MIXING, mixes_voices=False), voice, "voice")


def test_too_many_voices_are_no_mixture(kokoro: Voices) -> None:
    assert MOST_VOICES_MIXED == kokoro_voices._MOST_VOICES
    names = [f"v{number}" for number in range(MOST_VOICES_MIXED + 1)]
    config = replace(MIXING, voices=frozenset(names))
    assert check_voice(config, ",".join(names[1:]), "voice")
    with pytest.raises(ProtocolError):
        check_voice(config, ",".join(names), "voice")


@pytest.fixture
def kokoro(tmp_path: Path) -> Voices:
    (tmp_path / "voices").mkdir()
    for name in ("af_heart", "am_michael"):
        (tmp_path / "voices" / f"{name}.pt").touch()
    return Voices(tmp_path)


def _voices_of(config: SessionConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("voices", "mixes_voices", "default_voice")}
