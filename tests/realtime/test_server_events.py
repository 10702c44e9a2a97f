"""Figures and texts inside the events: latencies that sum, texts that fit, statuses that clients match literally."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realtime.wire_scripts import BUSY, HEARD, LATENCY, done, started

from serve_app.conversation.commands import Heard, Item
from serve_app.conversation.events import ItemId, Usage
from serve_app.conversation.timeline import TurnLatency
from serve_app.realtime.server_events import (
    answer_content,
    answer_part,
    closing_fields,
    heard_metadata,
    latency_metadata,
    open_response,
    response_status,
    shown_item,
    spoken_content,
    usage_object,
)
from serve_app.realtime.session_config import AudioFormat


def test_latencies_are_written_in_milliseconds():
    assert latency_metadata(LATENCY) == {
        "latency.endpointing_ms": "500.0",
        "latency.stt_ms": "0.0",
        "latency.llm_ttft_ms": "120.0",
        "latency.first_segment_ms": "40.0",
        "latency.tts_ttfb_ms": "90.0",
        "latency.overhead_ms": "3.0",
        "latency.total_ms": "753.0",
    }


seconds = st.floats(0, 60)


@given(st.tuples(seconds, seconds, seconds, seconds, seconds, seconds))
def test_the_stages_written_sum_to_the_total_written(stages):
    metadata = latency_metadata(TurnLatency(*stages))
    written = {name: Decimal(value) for name, value in metadata.items()}
    total = written.pop("latency.total_ms")
    assert sum(written.values()) == total
    assert abs(float(total) - 1000 * sum(stages)) < 0.06
    for value, stage in zip(written.values(), stages, strict=True):
        assert abs(float(value) - 1000 * stage) < 0.11


def test_input_faster_than_speech_is_marked():
    marked = TurnLatency(0.5, 0, 0, 0, 0, 0, faster_than_realtime=True)
    assert latency_metadata(marked)["latency.faster_than_realtime"] == "true"


@pytest.mark.parametrize(("is_estimated", "written"), [(True, "true"), (False, "false")])
def test_what_was_heard_is_written_as_strings(is_estimated, written):
    assert heard_metadata(Heard("It is", 420, is_estimated)) == {
        "heard.text": "It is",
        "heard.audio_ms": "420",
        "heard.is_estimated": written,
    }


def test_a_heard_text_that_does_not_fit_is_cut_and_says_so():
    assert "heard.text_is_cut" not in heard_metadata(Heard("x" * 512, 1, is_estimated=False))
    metadata = heard_metadata(Heard("x" * 513, 1, is_estimated=False))
    assert metadata["heard.text"] == "x" * 511 + "…"
    assert metadata["heard.text_is_cut"] == "true"


def test_usage_has_its_sum_and_its_details():
    usage = usage_object(Usage(31, 7))
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (31, 7, 38)
    assert usage["output_token_details"] == {"text_tokens": 7, "audio_tokens": 0}


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        ("completed", "completed", None),
        ("interrupted", "cancelled", "turn_detected"),
        ("client_cancelled", "cancelled", "client_cancelled"),
        ("incomplete", "incomplete", "max_output_tokens"),
    ],
)
def test_every_outcome_has_its_status(outcome, status, reason):
    details = reason and {"type": status, "reason": reason}
    assert response_status(outcome, None) == (status, details)


def test_a_failure_is_told_in_words():
    error = {"type": "server_error", "code": "engine_busy", "message": BUSY.message}
    assert response_status("failed", BUSY) == ("failed", {"type": "failed", "error": error})


@pytest.mark.parametrize(
    ("role", "modality", "content"),
    [
        ("user", "audio", {"type": "input_audio", "transcript": "Hi."}),
        ("user", "text", {"type": "input_text", "text": "Hi."}),
        ("system", "text", {"type": "input_text", "text": "Hi."}),
        ("assistant", "audio", {"type": "output_audio", "transcript": "Hi."}),
        ("assistant", "text", {"type": "output_text", "text": "Hi."}),
    ],
)
def test_an_item_is_shown_with_the_content_of_its_role(role, modality, content):
    assert shown_item(Item(ItemId("i"), role, "Hi.", modality, "incomplete")) == {
        "id": "i",
        "object": "realtime.item",
        "type": "message",
        "status": "incomplete",
        "role": role,
        "content": [content],
    }


@pytest.mark.parametrize(("modality", "field"), [("audio", "transcript"), ("text", "text")])
def test_a_part_and_its_content_have_names_of_their_own(modality, field):
    assert answer_part(modality, "Hi.") == {"type": modality, field: "Hi."}
    assert answer_content(modality, "Hi.") == {"type": f"output_{modality}", field: "Hi."}


def test_an_open_response_is_empty_and_in_progress():
    response = open_response(started(metadata=(("a", "1"),)), "conv_1", AudioFormat.PCMU)
    assert (response["status"], response["output"], response["usage"]) == ("in_progress", [], None)
    assert response["audio"] == {"output": {"format": {"type": "audio/pcmu"}, "voice": "af_heart"}}
    assert response["metadata"] == {"a": "1"}


def test_a_closed_response_says_how_long_it_took_and_what_was_heard():
    fields = closing_fields(done("interrupted", "It is", latency=LATENCY, heard=HEARD), [{}])
    assert fields["output"] == [{}]
    assert fields["metadata"] == latency_metadata(LATENCY) | heard_metadata(HEARD)
    assert closing_fields(done(), [])["metadata"] is None


def test_audio_of_the_user_not_yet_transcribed_has_no_transcript():
    assert spoken_content(None) == {"type": "input_audio", "transcript": None}
