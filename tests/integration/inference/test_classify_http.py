"""Classification with plain HTTP and with Hugging Face's own client, against a running server."""

import base64
import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.integration.inference.conftest import Server
from tests.integration.inference.published import Published, draw

_URL = "/v1/models/animals/classify"
_PNG = {"content-type": "image/png"}


def _encode(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def _check(scores: list[dict[str, Any]], model: Published, picture: bytes, *, count: int) -> None:
    expected = model.compute_probabilities(picture)
    best = sorted(expected, key=expected.__getitem__, reverse=True)[:count]
    assert [score["label"] for score in scores] == best
    assert all(score.keys() == {"label", "score"} for score in scores)
    for score in scores:
        assert score["score"] == pytest.approx(expected[score["label"]], abs=1e-5)


class TestForms:
    @pytest.mark.parametrize("encoding", ["PNG", "BMP"])
    def test_a_raw_image(self, server: Server, client: httpx.Client, encoding: str) -> None:
        picture = draw(1, encoding=encoding)
        answer = client.post(_URL, content=picture, headers=_PNG)
        _check(answer.json(), server.new, picture, count=5)
        assert answer.headers["x-model-id"] == "mdl_new"

    def test_a_body_without_a_type_is_taken_for_an_image(
        self, server: Server, client: httpx.Client
    ) -> None:
        picture = draw(1)
        answer = client.post(_URL, content=picture)
        assert "content-type" not in answer.request.headers
        _check(answer.json(), server.new, picture, count=5)
        nonsense = client.post(_URL, content=b"x")
        assert (nonsense.status_code, nonsense.json()["code"]) == (422, "unsupported_format")

    def test_a_form_of_many(self, server: Server, client: httpx.Client) -> None:
        pictures = [draw(seed) for seed in range(5)]
        files = [("file", (f"{i}.png", picture)) for i, picture in enumerate(pictures)]
        answer = client.post(f"{_URL}?top_k=2", files=files).json()
        for scores, picture in zip(answer, pictures, strict=True):
            _check(scores, server.new, picture, count=2)

    def test_one_image_in_json(self, server: Server, client: httpx.Client) -> None:
        picture = draw(1)
        answer = client.post(_URL, json={"inputs": _encode(picture), "parameters": {"top_k": 3}})
        _check(answer.json(), server.new, picture, count=3)

    def test_a_list_in_json(self, server: Server, client: httpx.Client) -> None:
        pictures = [draw(seed) for seed in range(3)]
        answer = client.post(_URL, json={"inputs": [_encode(picture) for picture in pictures]})
        for scores, picture in zip(answer.json(), pictures, strict=True):
            _check(scores, server.new, picture, count=5)
        alone = client.post(_URL, json={"inputs": [_encode(pictures[0])]}).json()
        assert [len(scores) for scores in alone] == [5]

    def test_nulls_mean_not_given_and_json_stands_above_the_query(
        self, client: httpx.Client
    ) -> None:
        body = {
            "inputs": _encode(draw(1)),
            "parameters": {"top_k": None, "function_to_apply": "none"},
            "options": {"wait_for_model": True},
        }
        answer = client.post(f"{_URL}?top_k=2&function_to_apply=sigmoid", json=body).json()
        assert len(answer) == 2
        assert answer[0]["score"] > 1
        nothing = client.post(_URL, json={"inputs": _encode(draw(1)), "parameters": None})
        assert len(nothing.json()) == 5


class TestReferences:
    @pytest.mark.parametrize(
        ("reference", "model_id"),
        [
            ("mdl_old", "mdl_old"),
            ("animals", "mdl_new"),
            ("animals@production", "mdl_old"),
            ("animals%40production", "mdl_old"),
            ("animals@v2", "mdl_new"),
        ],
    )
    def test_an_id_a_name_and_an_alias(
        self, client: httpx.Client, reference: str, model_id: str
    ) -> None:
        answer = client.post(f"/v1/models/{reference}/classify", content=draw(1), headers=_PNG)
        assert (answer.status_code, answer.headers["x-model-id"]) == (200, model_id)

    @pytest.mark.parametrize(
        ("reference", "status"),
        [
            ("nobody", 404),
            ("animals@nowhere", 404),
            ("animals@v3", 404),
            ("nobody@production", 404),
            ("mdl_foreign", 404),
            ("secrets", 404),
            ("animals@", 422),
            ("@production", 422),
            ("animals@production@v1", 422),
            ("..%2fanimals", 404),
            ("x" * 10_000, 422),
        ],
    )
    def test_what_is_not_there(self, client: httpx.Client, reference: str, status: int) -> None:
        answer = client.post(f"/v1/models/{reference}/classify", content=draw(1), headers=_PNG)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


class TestScores:
    def test_functions(self, server: Server, client: httpx.Client) -> None:
        picture = draw(1)
        logits = dict(zip(server.new.classes, server.new.compute(picture)[0].tolist(), strict=True))
        for function, compute in (
            ("none", lambda logit: logit),
            ("sigmoid", lambda logit: 1 / (1 + math.exp(-logit))),
        ):
            answer = client.post(
                f"{_URL}?function_to_apply={function}&top_k=7", content=picture, headers=_PNG
            ).json()
            assert len(answer) == 7
            for score in answer:
                assert score["score"] == pytest.approx(compute(logits[score["label"]]), abs=1e-4)

    def test_below_the_threshold_an_image_is_rejected_and_not_named(
        self, server: Server, client: httpx.Client
    ) -> None:
        picture = draw(1)
        best = max(server.new.compute_probabilities(picture).values())
        strict, lenient = best + 0.01, best - 0.01
        answer = client.post(f"{_URL}?threshold={strict}", content=picture, headers=_PNG).json()
        assert answer == [{"label": "", "score": pytest.approx(best, abs=1e-5), "rejected": True}]
        answer = client.post(f"{_URL}?threshold={lenient}", content=picture, headers=_PNG).json()
        _check(answer, server.new, picture, count=5)

    def test_each_image_is_rejected_on_its_own(self, server: Server, client: httpx.Client) -> None:
        pictures = [draw(seed) for seed in range(8)]
        best = [max(server.new.compute_probabilities(picture).values()) for picture in pictures]
        threshold = sum(sorted(best)[3:5]) / 2
        body = {
            "inputs": [_encode(picture) for picture in pictures],
            "parameters": {"threshold": threshold},
        }
        answer = client.post(_URL, json=body).json()
        assert [scores[0].get("rejected", False) for scores in answer] == [
            score < threshold for score in best
        ]


class TestHuggingFaceClient:
    def test_speaks_to_a_model(self, server: Server) -> None:
        picture = draw(1)
        client = InferenceClient(model=f"{server.url}{_URL}")
        answer = client.image_classification(picture)
        expected = server.new.compute_probabilities(picture)
        assert len(answer) == 5
        for element in answer:
            assert element.score == pytest.approx(expected[element.label], abs=1e-5)

    def test_sends_parameters(self, server: Server, tmp_path: Path) -> None:
        picture = draw(1)
        path = tmp_path / "picture.png"
        path.write_bytes(picture)
        client = InferenceClient(model=f"{server.url}/v1/models/animals@production/classify")
        answer = client.image_classification(path, top_k=2, function_to_apply="sigmoid")
        logits = server.old.compute(picture)[0]
        expected = sorted((1 / (1 + math.exp(-logit)) for logit in logits), reverse=True)[:2]
        assert [element.score for element in answer] == pytest.approx(expected, abs=1e-4)

    def test_takes_a_rejection_for_no_class(self, server: Server) -> None:
        client = InferenceClient(model=f"{server.url}{_URL}?threshold=0.999")
        (element,) = client.image_classification(draw(1))
        assert (element.label, element.rejected) == ("", True)  # type: ignore[attr-defined]  # kept as an extra
