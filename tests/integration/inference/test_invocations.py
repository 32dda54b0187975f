"""MLflow's scoring protocol over HTTP, against a running server."""

import base64
from typing import Any

import httpx
import pytest

from tests.integration.inference.conftest import Server
from tests.integration.inference.published import draw

_PICTURES = [draw(1), draw(2)]
_TEXTS = [base64.b64encode(picture).decode() for picture in _PICTURES]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in _TEXTS]}},
        {"dataframe_records": [{"image": text} for text in _TEXTS]},
        {"instances": _TEXTS},
        {"instances": [{"b64": text} for text in _TEXTS]},
        {"inputs": _TEXTS},
        {"inputs": {"image": _TEXTS}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_every_form_gets_the_same_predictions(
    server: Server, client: httpx.Client, body: dict[str, Any]
) -> None:
    answer = client.post("/invocations", json={**body, "params": {"top_k": 2}})
    assert answer.headers["x-model-id"] == "mdl_new"
    predictions = answer.json()["predictions"]
    for scores, picture in zip(predictions, _PICTURES, strict=True):
        expected = server.new.compute_probabilities(picture)
        assert len(scores) == 2
        for score in scores:
            assert score["score"] == pytest.approx(expected[score["label"]], abs=1e-5)


def test_another_model_is_named_in_the_query(server: Server, client: httpx.Client) -> None:
    answer = client.post("/invocations?model=birds", json={"inputs": _TEXTS[0]})
    assert {score["label"] for score in answer.json()["predictions"][0]} == set(
        server.birds.classes
    )
    assert client.post("/invocations?model=nobody", json={"inputs": "x"}).status_code == 404
    assert client.post("/invocations?model=mdl_foreign", json={"inputs": "x"}).status_code == 404


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_health_is_told(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.text.strip()) == (200, "")


def test_the_version_is_told(client: httpx.Client) -> None:
    assert client.get("/version").text == client.get("/v2").json()["version"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, None),
        ({"inputs": _TEXTS, "instances": _TEXTS}, None),
        ({"dataframe_split": {"columns": ["image"]}}, "/dataframe_split/data"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1]]}}, "/dataframe_split/data/0/0"),
        ({"dataframe_split": {"columns": ["a"], "data": [["*"]]}}, "/dataframe_split/data/0/0"),
        ({"dataframe_records": ["x"]}, "/dataframe_records/0"),
        ({"instances": [_TEXTS[0], "aGk="]}, "/instances/1"),
        ({"instances": []}, None),
        ({"inputs": 7}, "/inputs"),
        ({"inputs": _TEXTS, "params": {"top_k": 0}}, "/params/top_k"),
        ({"inputs": _TEXTS, "signature": "x"}, "/signature"),
    ],
    ids=repr,
)
def test_what_is_no_request_is_422_and_pointed_at(
    client: httpx.Client, body: dict[str, Any], pointer: str | None
) -> None:
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 422, answer.text
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert pointers == ([] if pointer is None else [pointer])


def test_csv_is_not_read(client: httpx.Client) -> None:
    answer = client.post(
        "/invocations", content=b"image\nx\n", headers={"content-type": "text/csv"}
    )
    assert answer.status_code == 415
