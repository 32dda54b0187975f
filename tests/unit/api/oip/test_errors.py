"""Failures under /v2 in the protocol's form, whoever raises them."""

import json
from collections.abc import Iterator
from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from api import errors
from api.middleware import HeadMiddleware, RequestContextMiddleware
from api.oip.errors import OipErrorMiddleware
from core.errors import ConflictError, InvalidError, UnavailableError


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI(
        middleware=[
            Middleware(OipErrorMiddleware),
            Middleware(RequestContextMiddleware),
            Middleware(HeadMiddleware),
        ]
    )
    errors.install(app)

    @app.get("/v2/raise/{kind}")
    @app.get("/v1/raise/{kind}")
    def fail(kind: str, number: Annotated[int, Query()] = 0) -> JSONResponse:
        if kind == "bug":
            raise ZeroDivisionError
        if kind == "fine":
            return JSONResponse({"number": number})
        kinds = {"invalid": InvalidError, "conflict": ConflictError, "busy": UnavailableError}
        raise kinds[kind](f"it is {kind} ü")

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "status"),
    [("invalid", 400), ("conflict", 409), ("busy", 503)],
)
def test_the_sentence_is_kept_and_only_it(client: TestClient, path: str, status: int) -> None:
    answer = client.get(f"/v2/raise/{path}")
    assert (answer.status_code, answer.json()) == (status, {"error": f"it is {path} ü"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["x-request-id"].startswith("req_")
    assert ("retry-after" in answer.headers) == (status == 503)


def test_bugs_routes_and_fields_are_told_so_too(client: TestClient) -> None:
    bug = client.get("/v2/raise/bug")
    assert bug.status_code == 500
    assert bug.headers["x-request-id"] in bug.json()["error"]
    assert client.get("/v2/nothing").json().keys() == {"error"}
    assert client.get("/v2").status_code == 404
    wrong = client.get("/v2/raise/fine?number=x")
    assert wrong.status_code == 400
    assert "/number" in wrong.json()["error"]


def test_answers_pass_unchanged(client: TestClient) -> None:
    assert client.get("/v2/raise/fine?number=3").json() == {"number": 3}


def test_other_paths_keep_their_problem_documents(client: TestClient) -> None:
    for path in ("/v1/raise/invalid", "/v2x/raise", "/v22"):
        answer = client.get(path)
        assert answer.headers["content-type"] == "application/problem+json"
        assert json.loads(answer.content)["status"] == answer.status_code


def test_an_answer_to_head_has_no_body(client: TestClient) -> None:
    answer = client.head("/v2/raise/invalid")
    assert (answer.status_code, answer.content) == (400, b"")
