"""Sessions of type "transcription" on the wire: what they show, what they take, and that their deltas add up."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.realtime import RealtimeServerEvent
from openai.types.realtime.realtime_transcription_session_create_request import (
    RealtimeTranscriptionSessionCreateRequest,
)
from openai.types.realtime.realtime_transcription_session_create_response import (
    RealtimeTranscriptionSessionCreateResponse,
)
from pydantic import TypeAdapter
from realtime.test_mapper import _unknown_fields
from realtime.wire_scripts import BUSY, USER, kinds, play

from serve_app.conversation.commands import (
    SpeechStarted,
    TranscriptCompleted,
    TranscriptFailed,
    TranscriptGrown,
    TurnCommitted,
)
from serve_app.conversation.events import ItemId, ServerVad, SessionConfigured, Settings
from serve_app.realtime.client_events import InputAudio
from serve_app.realtime.codec import decode
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import AudioFormat, SessionConfig, listening_only, to_wire

SDK: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
VAD = listening_only(ServerVad(silence_duration_ms=300))
LISTENING = SessionConfig(
    settings=Settings(turn_detection=VAD, language="en", transcription_prompt="Ray"),
    transcription_model="base.en",
    default_vad=VAD,
    kind="transcription",
)
CONFIGS = [
    LISTENING,
    replace(LISTENING, input_format=AudioFormat.PCMU),
    replace(LISTENING, settings=replace(LISTENING.settings, turn_detection=None)),
    replace(LISTENING, settings=replace(LISTENING.settings, turn_detection=replace(VAD, eagerness="low"))),
]


def mapper() -> Mapper:
    return Mapper("sess_1", LISTENING)


def tell(one: Mapper, **event: Any) -> Any:
    request = decode(json.dumps({"event_id": "e1", **event}))
    assert not isinstance(request, InputAudio)
    return one.wish(request)


def update(one: Mapper, **session: Any) -> Settings:
    wish = tell(one, type="session.update", session={"type": "transcription", **session})
    assert isinstance(wish, SessionConfigured)
    return wish.settings


@pytest.mark.parametrize("config", CONFIGS)
def test_the_session_shown_is_the_sdks_of_a_transcription_to_its_last_field(config: SessionConfig) -> None:
    event = SDK.validate_python(Mapper("sess_1", config).session_created())
    assert isinstance(event.session, RealtimeTranscriptionSessionCreateRequest)
    assert set(_unknown_fields(event)) <= {".session.object", ".session.id"}
    shown = RealtimeTranscriptionSessionCreateResponse.model_validate(to_wire(config, "sess_1"))
    assert set(_unknown_fields(shown)) <= {".audio.input.turn_detection.eagerness"}
    assert (shown.id, shown.object) == ("sess_1", "realtime.transcription_session")


@pytest.mark.parametrize("config", CONFIGS)
def test_the_session_shown_sent_back_changes_nothing(config: SessionConfig) -> None:
    one = Mapper("sess_1", config)
    tell(one, type="session.update", session=to_wire(config, "sess_1"))
    assert one.config == config


def test_its_input_is_configured_as_that_of_any_session() -> None:
    one = mapper()
    settings = update(
        one,
        audio={
            "input": {
                "format": {"type": "audio/pcmu"},
                "noise_reduction": None,
                "transcription": {"model": "gpt-4o-transcribe", "language": "de", "prompt": "Köln"},
                "turn_detection": {"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 700},
            }
        },
    )
    assert (settings.language, settings.transcription_prompt) == ("de", "Köln")
    assert settings.turn_detection == listening_only(ServerVad(threshold=0.6, silence_duration_ms=700))
    assert one.config.input_format is AudioFormat.PCMU


@pytest.mark.parametrize(
    "turn_detection",
    [
        {"type": "server_vad"},
        {"type": "server_vad", "create_response": False, "interrupt_response": True},
        {"type": "semantic_vad", "eagerness": "high"},
    ],
)
def test_no_turn_is_ever_answered(turn_detection: dict[str, Any]) -> None:
    one = mapper()
    update(one, audio={"input": {"turn_detection": None}})
    vad = update(one, audio={"input": {"turn_detection": turn_detection}}).turn_detection
    assert vad is not None
    assert not vad.create_response
    assert not vad.interrupt_response


ANSWERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "instructions": ({"instructions": "Be brief."}, "unknown_parameter", "session.instructions"),
    "a modality": ({"output_modalities": ["text"]}, "unknown_parameter", "session.output_modalities"),
    "a limit": ({"max_output_tokens": 9}, "unknown_parameter", "session.max_output_tokens"),
    "a voice": ({"audio": {"output": {"voice": "a"}}}, "unknown_parameter", "session.audio.output"),
    "tools": ({"tools": []}, "unknown_parameter", "session.tools"),
    "a choice of tools": ({"tool_choice": "auto"}, "unknown_parameter", "session.tool_choice"),
    "an answer to each turn": (
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "create_response": True}}}},
        "not_supported",
        "session.audio.input.turn_detection.create_response",
    ),
    "less noise": (
        {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}},
        "not_supported",
        "session.audio.input.noise_reduction",
    ),
    "another type": ({"type": "realtime"}, "invalid_value", "session.type"),
    "an unknown type": ({"type": "translation"}, "invalid_value", "session.type"),
}


@pytest.mark.parametrize(("session", "code", "param"), ANSWERS.values(), ids=ANSWERS)
def test_what_only_an_answer_has_is_refused_by_name(session: dict[str, Any], code: str, param: str) -> None:
    one = mapper()
    with pytest.raises(ProtocolError) as caught:
        update(one, **{"audio": {"input": {"transcription": {"language": "de"}}}} | session)
    assert (caught.value.code, caught.value.param, caught.value.event_id) == (code, param, "e1")
    assert one.config == LISTENING


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.create"},
        {
            "type": "conversation.item.create",
            "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
        },
    ],
)
def test_what_asks_for_an_answer_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="transcription") as caught:
        tell(mapper(), **event)
    assert (caught.value.code, caught.value.event_id) == ("not_supported", "e1")


# --- deltas ---------------------------------------------------------------------------------------------------------

DELTA = "conversation.item.input_audio_transcription.delta"


def deltas(*notices: Any, one: Mapper | None = None) -> list[str]:
    events = play(notices, one or mapper(), with_created=False)
    for event in events:
        SDK.validate_python(event)
    return [event["delta"] for event in events if event["type"] == DELTA]


def test_the_deltas_add_up_to_the_transcript() -> None:
    turn = [
        SpeechStarted(USER, 0),
        TranscriptGrown(USER, "What time"),
        TranscriptGrown(USER, " is"),
        TurnCommitted(USER, None),
        TranscriptCompleted(USER, "What time is it?", 0.9),
    ]
    assert deltas(*turn) == ["What time", " is", " it?"]
    assert kinds(play(turn, mapper()))[-2:] == [DELTA, DELTA.replace("delta", "completed")]


def test_a_transcript_without_interims_is_one_delta_and_nothing_is_none() -> None:
    assert deltas(TurnCommitted(USER, None), TranscriptCompleted(USER, "Yes.", 0.9)) == ["Yes."]
    assert deltas(TurnCommitted(USER, None), TranscriptCompleted(USER, "", 0.9)) == []
    assert deltas(TurnCommitted(USER, None), TranscriptFailed(USER, BUSY)) == []


def test_a_transcript_that_contradicts_what_was_shown_has_the_last_word() -> None:
    assert deltas(TranscriptGrown(USER, "What lime"), TranscriptCompleted(USER, "What time?", 0.9)) == [
        "What lime"
    ]


def test_words_shown_of_a_turn_that_was_cleared_are_not_taken_for_the_next_ones() -> None:
    after = ItemId("item_9")
    assert deltas(TranscriptGrown(USER, "What"), TranscriptCompleted(after, "What time?", 0.9)) == [
        "What",
        "What time?",
    ]


def test_a_session_that_answers_sends_no_delta_for_what_was_not_shown() -> None:
    answering = Mapper("sess_1", SessionConfig())
    assert deltas(TranscriptCompleted(USER, "Yes.", 0.9), one=answering) == []
