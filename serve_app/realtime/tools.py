"""Tools as a client describes them, checked before anything is changed: names, schemas, and what may be chosen.

A schema is held as JSON text. It is checked as far as every engine needs it (an object of properties, JSON that can be
written again); whether a grammar can be made of it is for the engine to say. The REST endpoint has the same rules.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from serve_app.conversation.events import Tool, ToolChoice

from .errors import ProtocolError, not_supported

MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 16_384
MAX_SCHEMA_DEPTH = 32
NO_PARAMETERS = '{"type":"object","properties":{}}'


def schema_text(schema: object) -> str:
    """The JSON schema of a function's arguments as JSON text. Raises PydanticCustomError."""
    if not isinstance(schema, dict):
        raise _wrong("must be a JSON schema, an object")
    if schema.get("type", "object") != "object":
        raise _wrong("must have the type 'object': arguments have names")
    if not isinstance(schema.get("properties", {}), dict):
        raise _wrong("must have an object as its 'properties'")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise _wrong(f"must be nested at most {MAX_SCHEMA_DEPTH} deep")
    try:
        text = json.dumps(
            {"type": "object"} | schema, separators=(",", ":"), allow_nan=False, ensure_ascii=False
        )
        text.encode()
    except ValueError:  # infinity, which JSON can spell by 1e999; half of a surrogate pair
        raise _wrong("must be JSON that can be written again") from None
    if len(text) > MAX_SCHEMA_CHARS:
        raise _wrong(f"must have at most {MAX_SCHEMA_CHARS} characters")
    return text


def _wrong(what: str) -> PydanticCustomError:
    return PydanticCustomError("tool_schema", "{what}", {"what": what})


def _depth(value: object) -> int:
    """Stops counting past the limit, so that it cannot be nested too deeply for itself."""
    depth, level = 0, [value]
    while level and depth <= MAX_SCHEMA_DEPTH:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth


def object_text(arguments: str) -> str:
    """`arguments` as it is, once it is known to be a JSON object. Raises PydanticCustomError."""
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise PydanticCustomError("arguments", "must be a JSON object, as text")
    return arguments


SchemaText = Annotated[str, BeforeValidator(schema_text)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def check_names(names: Sequence[str], param: str) -> None:
    """Raises: ProtocolError if there are too many, or two of one name."""
    if len(names) > MAX_TOOLS:
        raise ProtocolError("invalid_value", f"Invalid '{param}': at most {MAX_TOOLS} tools.", param)
    for name, times in Counter(names).items():
        if times > 1:
            message = f"Invalid '{param}': there are {times} functions of the name {name!r}."
            raise ProtocolError("invalid_value", message, param)


def tool_choice_of(choice: object, param: str) -> ToolChoice:
    """`auto`, `none`, `required`, or a function by its name. Raises: ProtocolError."""
    match choice:
        case "auto" | "none" | "required":
            return ToolChoice(choice)
        case {"type": "function", "name": str(name)} | {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice(function=name)
        case {"type": "mcp"}:
            raise not_supported(param, "tools of MCP servers")
        case _:
            message = f"Invalid '{param}': must be 'auto', 'none', 'required', or a function by its name."
            raise ProtocolError("invalid_value", message, param)


def check_choice(choice: ToolChoice, tools: Sequence[Tool], param: str) -> None:
    """Raises: ProtocolError if what must be called is not there."""
    if choice.function is not None and choice.function not in {tool.name for tool in tools}:
        message = f"Invalid '{param}': there is no tool {choice.function[:80]!r}."
        raise ProtocolError("invalid_value", message, param)
    if choice.mode == "required" and not tools:
        raise ProtocolError("invalid_value", f"Invalid '{param}': there are no tools.", param)


def tools_to_wire(tools: Sequence[Tool]) -> list[dict[str, object]]:
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": json.loads(tool.parameters),
        }
        for tool in tools
    ]


def choice_to_wire(choice: ToolChoice) -> str | Mapping[str, Any]:
    return choice.mode if choice.function is None else {"type": "function", "name": choice.function}
