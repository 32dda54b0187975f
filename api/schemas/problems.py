"""The shape of a failure, for the documentation (`api.errors` writes it)."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ProblemField(BaseModel):
    """One wrong field."""

    place: Literal["body", "query", "path", "header"] = Field(alias="in")
    pointer: str = Field(description="JSON pointer (RFC 6901) into that place.")
    message: str
    code: str


class Problem(BaseModel):
    """RFC 9457 problem document, sent as `application/problem+json`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What went wrong and the way out.")
    code: str = Field(description="Stable name of the failure.")
    errors: list[ProblemField]
    request_id: str = Field(description="As in the `X-Request-Id` header.")


_MEANINGS = {
    400: "The bytes cannot be read as what they claim to be.",
    401: "No API key, or an unknown one.",
    403: "Without API keys: the request came from another site's page.",
    404: "No such thing.",
    409: "The state of the resource forbids it.",
    412: "It is not in the state that `If-Match` or `If-None-Match` expects.",
    413: "Over a size limit.",
    415: "Not a content type that is read here.",
    416: "`Range` asks for bytes beyond the end.",
    422: "The request is wrong; `errors` point at the fields.",
    429: "This caller has too much under way; try again after `Retry-After` seconds.",
    503: "Try again after `Retry-After` seconds.",
    504: "No answer within the time that there was.",
    507: "The server's disk is full.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses` say about these statuses and those that any route has."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            },
        }
        for status in sorted({401, 403, 422, 503, *statuses})
    }
