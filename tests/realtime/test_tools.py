"""What is checked of a client's tools, beyond what `test_session_config` and `test_wishes` show of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from serve_app.conversation.events import Tool, ToolChoice
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.tools import (
    MAX_SCHEMA_DEPTH,
    check_choice,
    choice_to_wire,
    object_text,
    schema_text,
    tool_choice_of,
    tools_to_wire,
)

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "required", "x"]), json_values))
def test_a_schema_is_refused_or_can_be_written_again(schema: dict[str, Any]) -> None:
    try:
        text = schema_text(schema)
    except PydanticCustomError:
        return
    assert json.loads(text) == {"type": "object"} | schema
    assert json.loads(text)["type"] == "object"
    text.encode()


def test_depth_is_counted_to_its_limit() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {} if depth == 1 else {"x": nested(depth - 1)}

    assert schema_text(nested(MAX_SCHEMA_DEPTH - 1))
    with pytest.raises(PydanticCustomError, match="nested"):
        schema_text(nested(MAX_SCHEMA_DEPTH + 1))


def test_a_schema_that_says_nothing_is_one_of_no_arguments() -> None:
    assert schema_text({}) == '{"type":"object"}'


@pytest.mark.parametrize("text", ["", "null", "[]", '"x"', "{", "[" * 100_000])
def test_arguments_are_an_object(text: str) -> None:
    with pytest.raises(PydanticCustomError):
        object_text(text)
    assert object_text(' {"x": 1}') == ' {"x": 1}'


@pytest.mark.parametrize(
    ("written", "choice"),
    [
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "name": "f"}, ToolChoice(function="f")),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice(function="f")),
    ],
)
def test_a_choice_in_the_words_of_both_protocols(written: Any, choice: ToolChoice) -> None:
    assert tool_choice_of(written, "tool_choice") == choice
    assert tool_choice_of(choice_to_wire(choice), "tool_choice") == choice


@pytest.mark.parametrize(
    "written", [None, "any", 1, {}, {"type": "function"}, {"type": "function", "name": 1}]
)
def test_a_choice_of_no_known_shape(written: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        tool_choice_of(written, "tool_choice")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "tool_choice")


def test_what_must_be_called_must_be_there() -> None:
    check_choice(ToolChoice("required"), [Tool("f")], "x")
    check_choice(ToolChoice(function="f"), [Tool("f")], "x")
    check_choice(ToolChoice("none"), [], "x")
    for choice in (ToolChoice("required"), ToolChoice(function="f")):
        with pytest.raises(ProtocolError):
            check_choice(choice, [], "x")


def test_tools_are_shown_as_they_were_given() -> None:
    assert tools_to_wire([Tool("f", "Does it.", '{"type":"object"}')]) == [
        {"type": "function", "name": "f", "description": "Does it.", "parameters": {"type": "object"}}
    ]
