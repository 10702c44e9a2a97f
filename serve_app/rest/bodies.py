"""Reading what a client sends: bounded while it comes, and refused in OpenAI's terms."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.types import Message

from . import errors
from .errors import ApiError

MAX_JSON_BYTES = 1024 * 1024
MAX_FIELD_BYTES = 64 * 1024


class Body(BaseModel):
    """Fields that no endpoint knows pass, as most change nothing here; null says as much as nothing."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {k: v for k, v in body.items() if v is not None} if isinstance(body, dict) else body


B = TypeVar("B", bound=Body)


async def json_body(request: Request, kind: type[B]) -> B:
    """The body as `kind`. Raises ApiError.

    Other content types are refused because a browser sends them across origins without asking.
    """
    content_type = _content_type(request)
    if content_type != "application/json":
        message = f"The body must be application/json, not {content_type or 'without a content type'}."
        raise ApiError(415, message, code="unsupported_content_type")
    refuse_large(request, MAX_JSON_BYTES)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_JSON_BYTES:
            raise too_large(MAX_JSON_BYTES)
    try:
        return kind.model_validate_json(bytes(body), strict=True)
    except ValidationError as error:
        raise errors.of_validation(error) from None


@asynccontextmanager
async def form_body(request: Request, max_bytes: int) -> AsyncIterator[FormData]:
    """The multipart form, its files open within the block. Raises ApiError, and HTTPException for a broken form."""
    content_type = _content_type(request)
    if content_type != "multipart/form-data":
        message = f"The body must be multipart/form-data, not {content_type or 'without a content type'}."
        raise ApiError(415, message, code="unsupported_content_type")
    refuse_large(request, max_bytes)
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise too_large(max_bytes)
        return message

    bounded_request = Request(request.scope, bounded)
    async with bounded_request.form(max_files=1, max_fields=50, max_part_size=MAX_FIELD_BYTES) as form:
        yield form


def refuse_large(request: Request, max_bytes: int) -> None:
    """By what the client announces, before any of it is read."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The request is larger than {max_bytes} bytes.", code="request_too_large")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
