"""Features over HTTP, against a running server."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from api.middleware import MAX_JSON_BYTES
from core.catalog.pairs import STARTER_STUDENT
from core.ml.backbones.load import load_backbone
from tests.integration.inference.conftest import Server
from tests.integration.inference.published import draw, normalise

_URL = "/v1/models/animals/embeddings"
_PNG = {"content-type": "image/png"}


def _encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def test_a_raw_image_has_the_features_that_the_head_reads(
    server: Server, client: httpx.Client
) -> None:
    picture = draw(1)
    answer = client.post(_URL, content=picture, headers=_PNG)
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", "mdl_new")
    (item,) = body["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert item["embedding"] == pytest.approx(server.new.compute(picture)[1].tolist(), abs=1e-4)
    assert answer.headers["x-model-id"] == "mdl_new"


@pytest.mark.parametrize("field", ["input", "inputs"])
def test_a_list_in_json_keeps_its_order(server: Server, client: httpx.Client, field: str) -> None:
    pictures = [draw(seed) for seed in range(3)]
    body = {field: [_encode(picture) for picture in pictures], "model": "any", "user": "me"}
    data = client.post("/v1/models/animals@production/embeddings", json=body).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2]
    for item, picture in zip(data, pictures, strict=True):
        expected = server.old.compute(picture)[1].tolist()
        assert item["embedding"] == pytest.approx(expected, abs=1e-4)


def test_a_form_of_many(client: httpx.Client) -> None:
    files = [("file", (f"{seed}.png", draw(seed))) for seed in range(2)]
    assert len(client.post(_URL, files=files).json()["data"]) == 2


def test_base64_holds_the_same_numbers(client: httpx.Client) -> None:
    picture = draw(1)
    numbers = client.post(_URL, content=picture, headers=_PNG).json()["data"][0]["embedding"]
    in_query = client.post(f"{_URL}?encoding_format=base64", content=picture, headers=_PNG)
    in_body = client.post(_URL, json={"input": _encode(picture), "encoding_format": "base64"})
    for answer in (in_query, in_body):
        raw = base64.b64decode(answer.json()["data"][0]["embedding"])
        assert np.frombuffer(raw, dtype="<f4") == pytest.approx(numbers, abs=1e-6)


def test_a_backbone_alone_has_features_without_any_adapter(
    server: Server, client: httpx.Client
) -> None:
    picture = draw(1)
    url = f"/v1/backbones/{STARTER_STUDENT}/embeddings"
    body = client.post(url, content=picture, headers=_PNG).json()
    network = load_backbone(STARTER_STUDENT).module
    with torch.no_grad():
        expected = network(torch.from_numpy(normalise(picture))[None])[0].tolist()
    assert body["data"][0]["embedding"] == pytest.approx(expected, abs=1e-4)
    assert body["model"] == STARTER_STUDENT
    adapted = client.post(_URL, content=picture, headers=_PNG).json()["data"][0]["embedding"]
    assert adapted != pytest.approx(expected, abs=1e-2)
    again = client.post(url, json={"input": [_encode(picture)] * 2}).json()["data"]
    assert again[1]["embedding"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("path", ["models/animals", f"backbones/{STARTER_STUDENT}"])
def test_a_body_may_be_larger_than_that_of_other_routes(client: httpx.Client, path: str) -> None:
    texts = [_encode(draw(seed, size=(90, 90))) for seed in range(40)]
    assert sum(map(len, texts)) > MAX_JSON_BYTES
    answer = client.post(f"/v1/{path}/embeddings", json={"input": texts})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 40


@pytest.mark.parametrize("backbone", ["vit_base_patch16_224.augreg_in21k", "nothing"])
def test_a_backbone_of_no_model_is_not_loaded_for_this(client: httpx.Client, backbone: str) -> None:
    answer = client.post(f"/v1/backbones/{backbone}/embeddings", content=draw(1), headers=_PNG)
    assert (answer.status_code, answer.json()["code"]) == (404, "backbone_not_served")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": "aGk=", "inputs": "aGk="},
        {"input": "aGk=", "encoding_format": "int8"},
        {"input": "aGk=", "dimensions": 8},
        {"input": [1, 2]},
        {"input": "****"},
        {"input": "aGk="},
        {"input": []},
    ],
    ids=repr,
)
def test_what_is_no_request_is_422(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post(_URL, json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
