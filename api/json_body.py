"""JSON bodies that may be large, read strictly: for routes that hold images in base64 or tensors.

FastAPI's own reading has no limit of the route's own, takes NaN, and lets strings through that no
UTF-8 can hold; all of these would break something later.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api.errors import MalformedError
from api.multipart import check_declared_length
from core.errors import InvalidError, TooLargeError

#: Beyond this size another thread parses, and the event loop goes on.
_SMALL_BYTES = 64 << 10
#: An escaped surrogate; only where there is one can a parsed string be no text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, max_bytes: int, *, what: str = "the body") -> bytes:
    """Return a request's body.

    Args:
        request: a request whose body nobody has read.
        max_bytes: limit, checked against the declared length first.
        what: how the message calls the body.

    Raises:
        TooLargeError: it is over the limit.
        ClientDisconnect: the connection ended.
    """
    check_declared_length(request, max_bytes, max_bytes)
    body: bytes | bytearray = b""
    is_complete = False
    while not is_complete:
        # Not by `request.stream`, whose generator costs more than the bytes of a small image.
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        is_complete = not message.get("more_body", False)
        if is_complete and not body:
            body = chunk  # most come in one piece, and are not copied
        elif isinstance(body, bytearray):
            body += chunk
        else:
            body = bytearray(chunk)
        if len(body) > max_bytes:
            raise TooLargeError(f"{what} is over {max_bytes} bytes")
    return bytes(body)


async def parse_json_aside(body: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return what `parse_json` does, from another thread where that takes long."""
    if len(body) <= _SMALL_BYTES:
        return parse_json(body)
    return await run_in_threadpool(parse_json, body)


def parse_json(body: bytes) -> Any:  # noqa: ANN401
    """Return the value that a body holds.

    Raises:
        MalformedError: it is not JSON in UTF-8, is nested too deeply, or holds half a character.
        InvalidError: it holds NaN or Infinity, which are not JSON.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise MalformedError(
            f"the body is not JSON: {error.msg} at character {error.pos}", code="malformed_json"
        ) from error
    except UnicodeEncodeError as error:
        raise MalformedError(
            "a string of the body has half of a surrogate pair", code="malformed_json"
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedError(
            "the body cannot be read as JSON in UTF-8: it has other bytes, is nested too deeply, "
            "or holds a number of thousands of digits",
            code="malformed_json",
        ) from error
    return value


def validate_body(model: type[Model], value: object, *path: str) -> Model:
    """Return a parsed value as a schema's object.

    Args:
        model: the schema.
        value: the whole body, or a part of it.
        path: where in the body that part is.

    Raises:
        RequestValidationError: it does not fit; the pointers say where.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([_place(detail, path) for detail in details]) from error


def _place(detail: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    return {**detail, "loc": ("body", *path, *detail["loc"])}


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidError(f"the body holds {name}, which JSON has no word for", code="out_of_range")
