"""Every failure becomes a problem document, bugs included."""

import logging
from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from api import errors
from api.middleware import RequestContextMiddleware
from api.schemas.fields import Slug
from core.errors import (
    AppError,
    ConflictError,
    FieldError,
    InvalidError,
    NotFoundError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedTypeError,
)


class _Inner(BaseModel):
    count: int


class _Body(BaseModel):
    inner: dict[str, _Inner]


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI(middleware=[Middleware(RequestContextMiddleware)])
    errors.install(app)
    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MalformedError("x"), 400),
        (UnauthorizedError("x"), 401),
        (errors.ForbiddenOriginError("x"), 403),
        (NotFoundError("x"), 404),
        (ConflictError("x"), 409),
        (TooLargeError("x"), 413),
        (UnsupportedTypeError("x"), 415),
        (InvalidError("x"), 422),
        (AppError("x"), 500),
        (UnavailableError("x"), 503),
        (StorageFullError("x"), 507),
    ],
)
def test_each_family_has_its_status(
    app: FastAPI, client: TestClient, error: AppError, status: int
) -> None:
    @app.get("/fail")
    def fail() -> None:
        raise error

    answer = client.get("/fail", headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine-1"
    assert ("retry-after" in answer.headers) == error.retryable
    assert answer.json() == {
        "type": "about:blank",
        "title": answer.json()["title"],
        "status": status,
        "detail": "x",
        "code": error.code,
        "errors": [],
        "request_id": "mine-1",
    }


def test_a_leaf_gets_the_status_of_its_family_and_its_own_code(
    app: FastAPI, client: TestClient
) -> None:
    class RoseError(ConflictError):
        code = "rose"

    @app.get("/fail")
    def fail() -> None:
        raise RoseError("thorns", fields=(FieldError("/a", "no", "prick"),))

    answer = client.get("/fail")
    assert (answer.status_code, answer.json()["code"]) == (409, "rose")
    assert answer.json()["errors"] == [
        {"in": "body", "pointer": "/a", "message": "no", "code": "prick"}
    ]


def test_pointers_follow_rfc_6901(app: FastAPI, client: TestClient) -> None:
    @app.post("/echo")
    def echo(body: _Body, limit: Annotated[int, Query(ge=1)] = 1) -> None:
        raise AssertionError((body, limit))

    wanted = {"inner": {"a/b~c": {"count": "many"}}}
    answer = client.post("/echo?limit=0", json=wanted)
    assert answer.status_code == 422
    assert [(e["in"], e["pointer"]) for e in answer.json()["errors"]] == [
        ("query", "/limit"),
        ("body", "/inner/a~1b~0c/count"),
    ]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Slug
    inner: _Inner


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"inner": {"count": 1}}, "/name", "is required"),
        ({"name": "a b", "inner": {"count": 1}}, "/name", "letters, digits"),
        ({"name": "a", "inner": 7}, "/inner", "JSON object"),
        ({"name": "a", "inner": {"count": 1}, "more": 1}, "/more", "no such field"),
        ([], "", "JSON object"),
    ],
)
def test_a_wrong_field_is_told_in_plain_words(
    app: FastAPI, client: TestClient, body: object, pointer: str, words: str
) -> None:
    @app.post("/strict")
    def strict(body: _Strict) -> None:
        raise AssertionError(body)

    (problem,) = client.post("/strict", json=body).json()["errors"]
    assert problem["pointer"] == pointer
    assert words in problem["message"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe{"])
def test_a_body_that_breaks_the_parser_is_told_as_such(
    app: FastAPI, client: TestClient, body: bytes
) -> None:
    @app.post("/strict")
    def strict(body: _Strict) -> None:
        raise AssertionError(body)

    answer = client.post("/strict", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")
    assert "JSON in UTF-8" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("given", "told"), [("text/x", "not 'text/x'"), ("", "not a body without a Content-Type")]
)
def test_a_wrong_content_type_is_quoted(given: str, told: str) -> None:
    assert errors.wrong_type("image/*", given).message == f"this route reads image/*, {told}"


def test_a_bug_is_told_by_id_only_and_logged_in_full(
    app: FastAPI, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("secret detail")

    with caplog.at_level(logging.ERROR):
        answer = client.get("/bug")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    record = next(r for r in caplog.records if r.exc_info)
    assert answer.headers["x-request-id"] in record.getMessage()
    assert "secret detail" in str(record.exc_info[1])  # type: ignore[index]  # checked above


@pytest.mark.parametrize("given", ["x" * 129, "a b", "a\nb", "", "é"])
def test_an_unfit_request_id_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/none", headers={b"X-Request-Id": given.encode()})
    assert answer.headers["x-request-id"].startswith("req_")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
