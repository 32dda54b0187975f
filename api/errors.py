"""Every failure as `application/problem+json` (RFC 9457), with a stable `code` and a request id.

`core.errors` knows no HTTP; the map from its families to status codes is here and nowhere else.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.schemas.fields import PATTERN_MEANINGS
from core.errors import (
    AppError,
    ConflictError,
    DeadlineError,
    FieldError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    RateLimitedError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedTypeError,
)

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
_RETRY_AFTER_S = 5


class MalformedError(AppError):
    """The bytes of the request cannot be read as what they claim to be."""

    code = "malformed_request"


class ForbiddenError(AppError):
    """The caller is known, and may not do this."""

    code = "forbidden"


class ForbiddenOriginError(ForbiddenError):
    """A page of another site sent the request through the user's browser."""

    code = "forbidden_origin"


#: Looked up along the class's ancestors, so that a leaf gets the status of its family.
_STATUS: dict[type[AppError], int] = {
    MalformedError: 400,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    PreconditionFailedError: 412,
    TooLargeError: 413,
    UnsupportedTypeError: 415,
    InvalidError: 422,
    RateLimitedError: 429,
    UnavailableError: 503,
    DeadlineError: 504,
    StorageFullError: 507,
}

_TITLES = {
    400: "Malformed request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    412: "Precondition failed",
    413: "Content too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
    504: "Deadline exceeded",
    507: "Storage full",
}

_HTTP_CODES = {
    400: "malformed_request",
    404: "route_not_found",
    405: "method_not_allowed",
    413: "too_large",
}

#: Pydantic's names of errors that callers may act on, in this API's words.
_VALIDATION_CODES = {
    "missing": "required",
    "extra_forbidden": "unknown_field",
    "enum": "not_allowed",
    "literal_error": "not_allowed",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than": "out_of_range",
    "less_than_equal": "out_of_range",
    "finite_number": "out_of_range",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "too_long": "too_long",
    "string_pattern_mismatch": "bad_format",
}


#: What Pydantic's sentences do not say to somebody who has never heard of it.
_VALIDATION_MESSAGES = {
    "missing": "is required",
    "extra_forbidden": "there is no such field here; /docs lists those that there are",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
}


def wrong_type(wanted: str, content_type: str) -> UnsupportedTypeError:
    """Return the error for a body whose `Content-Type` is not one that a route reads."""
    given = repr(content_type) if content_type else "a body without a Content-Type"
    return UnsupportedTypeError(f"this route reads {wanted}, not {given}")


def status_of(error: AppError) -> int:
    """Return the HTTP status of an error's family."""
    for family in type(error).__mro__:
        if family in _STATUS:
            return _STATUS[family]
    return 500


def build_problem(
    request_id: str,
    status: int,
    detail: str,
    code: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return a problem document.

    Args:
        request_id: as in the `X-Request-Id` header.
        status: HTTP status.
        detail: what went wrong and the way out, for a person.
        code: stable name of the failure, for a program.
        errors: the wrong fields.
        headers: further response headers.
    """
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "errors": list(errors),
        "request_id": request_id,
    }
    return JSONResponse(content, status, headers=headers, media_type=PROBLEM_TYPE)


def problem_of(request_id: str, error: AppError) -> JSONResponse:
    """Return the problem document of an expected failure."""
    status = status_of(error)
    headers = {}
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retryable:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or _RETRY_AFTER_S))
    fields = [_field_to_json(field) for field in error.fields]
    return build_problem(
        request_id, status, error.message, error.code, errors=fields, headers=headers
    )


def internal_problem(request_id: str) -> JSONResponse:
    """Return what a caller learns of a bug: the id under which the log has the rest."""
    detail = f"something broke on our side; the log has it under request id {request_id}"
    return build_problem(request_id, 500, detail, "internal_error")


def install(app: FastAPI) -> None:
    """Register the handlers."""
    for family, handler in _HANDLERS.items():
        app.add_exception_handler(family, handler)


async def answer_error(request: Request, error: Exception) -> Response:
    """Return what the handlers make of an error, where FastAPI does not ask them.

    Raises:
        Exception: the error itself, if it is a bug.
    """
    for family in type(error).__mro__:
        if family in _HANDLERS:
            response = await _HANDLERS[family](request, error)
            # One error may end many requests, and would grow by each of them.
            error.__traceback__ = None
            return response
    raise error


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


def _field_to_json(field: FieldError) -> dict[str, str]:
    return {
        "in": "body",
        "pointer": field.pointer,
        "message": field.message,
        "code": field.code,
    }


async def _on_app_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AppError)
    return problem_of(_request_id(request), error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    details = error.errors()
    if any(detail["type"] == "json_invalid" for detail in details):
        reason = details[0]["ctx"]["error"]
        message = f"the body is not JSON: {reason} at character {details[0]['loc'][1]}"
        return build_problem(_request_id(request), 400, message, "malformed_json")
    fields = [_validation_to_json(detail) for detail in details]
    first = fields[0]
    where = first["pointer"] or "/"
    detail = f"{first['in']} {where}: {first['message']}"
    if len(fields) > 1:
        detail += f" (and {len(fields) - 1} more; see errors)"
    return build_problem(_request_id(request), 422, detail, "invalid_request", errors=fields)


def _validation_to_json(detail: Mapping[str, Any]) -> dict[str, str]:
    place, *path = detail["loc"]
    pointer = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)
    message = _VALIDATION_MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    if detail["type"] == "string_pattern_mismatch":
        message = PATTERN_MEANINGS.get(detail["ctx"]["pattern"], message)
    return {
        "in": str(place),
        "pointer": pointer,
        "message": message,
        "code": _VALIDATION_CODES.get(detail["type"], "invalid"),
    }


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = str(error.detail)
    if status == 404:  # noqa: PLR2004 - raised by the router only: our own 404s are AppErrors
        detail = f"there is nothing at {request.url.path}; GET /docs lists the routes"
    elif status == 400:  # noqa: PLR2004 - FastAPI's, where a body breaks the JSON parser itself
        detail = "the body cannot be read as JSON in UTF-8, or is nested too deeply"
    elif status == 405:  # noqa: PLR2004
        detail = f"{request.method} is not possible at {request.url.path}"
    code = _HTTP_CODES.get(status, "error")
    return build_problem(_request_id(request), status, detail, code, headers=error.headers)


async def _on_disconnect(request: Request, _error: Exception) -> JSONResponse:
    # Nobody is left to read this; it ends the request and gives the access log its line.
    detail = "the connection ended before the body was complete"
    return build_problem(_request_id(request), 400, detail, "incomplete_body")


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    cause = error.orig if isinstance(error, DBAPIError) else error
    logger.error("request %s: the database failed: %s", _request_id(request), cause)
    unavailable = UnavailableError(
        "the database cannot be reached now; try again", code="database_unavailable"
    )
    return problem_of(_request_id(request), unavailable)


_HANDLERS: Mapping[type[Any], Callable[[Request, Any], Awaitable[Response]]] = {
    AppError: _on_app_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
    ClientDisconnect: _on_disconnect,
    OperationalError: _on_database_error,
    PoolTimeoutError: _on_database_error,
}
