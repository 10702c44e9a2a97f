"""What went wrong, as OpenAI says it: `{"error": {"message", "type", "param", "code"}}` and a status.

400 the request can never succeed; 401 no valid key; 403 a page of another origin; 404 no such thing; 413 too large; 415 not
the content type of this endpoint; 502 the engine broke; 503 no room now, with Retry-After; 504 the engine's time
is up. A 422, which OpenAI never sends, does not occur.
"""

import logging
from collections.abc import Mapping

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from deployments.interfaces import BadRequest, EngineBusy, EngineError
from serve_app.realtime.errors import ProtocolError
from serve_app.session.stages import TimeLimitExceeded

log = logging.getLogger("voice_serve.rest")

RETRY_AFTER_S = 1
_MESSAGE_CHARS = 500


class ApiError(Exception):
    """The request ends with this answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {
            "error": {
                "message": message,
                "type": "server_error" if status >= 500 else "invalid_request_error",
                "param": param,
                "code": code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def not_supported(param: str, what: str) -> ApiError:
    """Valid at OpenAI and not built here."""
    return ApiError(400, f"Not supported by this server: {what}.", code="not_supported", param=param)


def of_engine(error: EngineError) -> ApiError:
    if isinstance(error, BadRequest):
        return ApiError(400, error.message[:_MESSAGE_CHARS], code=error.code)
    log.warning("an engine could not answer", extra={"stage": error.stage, "error": str(error)})
    if isinstance(error, EngineBusy):
        return ApiError(503, str(error), code=error.code, headers={"Retry-After": str(RETRY_AFTER_S)})
    status = 504 if isinstance(error, TimeLimitExceeded) else 502
    return ApiError(status, str(error)[:_MESSAGE_CHARS], code=error.code)


def of_protocol(error: ProtocolError) -> ApiError:
    """A rule that the socket has too, as for the names of voices."""
    return ApiError(400, error.message, code=error.code, param=error.param)


def of_validation(error: ValidationError) -> ApiError:
    """The first of pydantic's findings."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['msg']}.", code="invalid_json")
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    param = "".join(parts).removeprefix(".")[:200] or None
    if first["type"] == "missing":
        message = f"Missing required parameter: '{param}'."
        return ApiError(400, message, code="missing_required_parameter", param=param)
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    where = f"'{param}'" if param else "body"
    return ApiError(400, f"Invalid {where}: {first['msg']}.", code=code, param=param)


def of_http(error: HTTPException, path: str) -> ApiError:
    """What the framework refuses by itself: an unknown path, a wrong method, a broken form."""
    codes = {401: "invalid_api_key", 404: "unknown_url", 405: "method_not_allowed"}
    message = f"There is no {path} here." if error.status_code == 404 else str(error.detail)
    return ApiError(error.status_code, message, code=codes.get(error.status_code), headers=error.headers)
