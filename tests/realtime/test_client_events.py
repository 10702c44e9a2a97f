"""The examples cover the protocol: all eleven events of the SDK, every one of them known here."""

from typing import get_args

import pytest
from openai.types.realtime import RealtimeClientEvent
from pydantic import TypeAdapter, ValidationError
from realtime.client_examples import EXAMPLES

from serve_app.realtime.client_events import REQUESTS, Text, TokenLimit, VoiceName


def test_all_events_of_the_sdk_are_known_and_have_an_example():
    models = get_args(get_args(RealtimeClientEvent)[0])
    types = {get_args(model.model_fields["type"].annotation)[0] for model in models}
    assert len(types) == 11
    assert types == {*REQUESTS, "input_audio_buffer.append"}
    assert types == {event["type"] for event in EXAMPLES.values()}


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES)
def test_every_request_of_the_sdk_is_well_formed(event):
    if event["type"] in REQUESTS:
        assert REQUESTS[event["type"]].model_validate(event).type == event["type"]


@pytest.mark.parametrize("value", [None, 1, 4096, "inf"])
def test_a_token_limit(value):
    assert TypeAdapter(TokenLimit).validate_python(value) == value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (TokenLimit, 0),
        (TokenLimit, 4097),
        (TokenLimit, True),
        (TokenLimit, 1.0),
        (TokenLimit, "infinite"),
        (VoiceName, ""),
        (VoiceName, "x" * 257),
        (VoiceName, "a\0"),
        (VoiceName, {"id": 7}),
        (VoiceName, ["af_heart"]),
        (Text, "a\0"),
        (Text, "\ud800"),
        (Text, "x" * 65_537),
    ],
)
def test_what_is_out_of_range_is_refused(kind, value):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("value", "name"), [(None, None), ("af_heart", "af_heart"), ({"id": "x" * 256}, "x" * 256)]
)
def test_a_voice_is_a_name_or_an_object_with_its_id(value, name):
    assert TypeAdapter(VoiceName).validate_python(value) == name
