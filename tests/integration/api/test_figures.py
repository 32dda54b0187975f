"""Asking for figures, and fetching them and the evaluation."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from core.catalog.figures import FIGURES
from core.types import ModelId
from tests.integration.api.rig import Rig
from tests.integration.api.test_models import publish_model

_JOBS = "/v1/fine_tuning/jobs"
_DATA = b'{"object": "model.figure", "name": "tsne", "status": "ready", "data": {}}'
_PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)
_REASON = b'{"name": "agreement", "status": "not_available", "reason": "there was no teacher"}'
_EVALUATION = b'{"object": "model.evaluation", "split": "test"}'


@pytest.fixture
def model_id(rig: Rig) -> ModelId:
    """A model with an evaluation, one figure that is there and one that could not be made."""
    store = rig.app.state.services.store
    figures = {
        "tsne": {
            "status": "ready",
            "reason": None,
            "json_sha256": store.put_bytes(_DATA).sha256,
            "png_sha256": store.put_bytes(_PICTURE).sha256,
        },
        "agreement": {
            "status": "not_available",
            "reason": "there was no teacher",
            "json_sha256": store.put_bytes(_REASON).sha256,
            "png_sha256": None,
        },
    }
    evaluation = store.put_bytes(_EVALUATION).sha256
    return publish_model(rig, evaluation_sha256=evaluation, figures=figures)


class TestRequest:
    @pytest.fixture
    def send(self, rig: Rig) -> Callable[[Any], Any]:
        dataset_id = rig.upload()

        def send(figures: Any) -> Any:
            wanted = {"dataset_id": dataset_id, "method": {"pair": "starter"}, "figures": figures}
            return rig.client.post(_JOBS, json=wanted)

        return send

    def test_names_and_objects_are_kept_with_their_options(self, send: Any) -> None:
        item = {"name": "attention_map", "item": "rose/3 ö.png"}
        answer = send(["tsne", {"name": "reliability"}, item])
        assert answer.status_code == 201
        assert answer.json()["spec"]["figures"] == [
            {"name": "tsne"},
            {"name": "reliability"},
            item,
        ]

    def test_every_figure_can_be_asked_for_at_once(self, send: Any) -> None:
        names = [name.value for name in FIGURES]
        assert [f["name"] for f in send(names).json()["spec"]["figures"]] == names

    def test_none_is_the_default(self, rig: Rig) -> None:
        wanted = {"dataset_id": rig.upload(), "method": {"pair": "starter"}}
        assert rig.client.post(_JOBS, json=wanted).json()["spec"]["figures"] == []

    @pytest.mark.parametrize(
        ("figures", "pointer", "code"),
        [
            (["tsne", "umap"], "/figures/1", "unknown_figure"),
            ([{"name": "umap"}], "/figures/0", "unknown_figure"),
            (["tsne", "reliability", {"name": "tsne"}], "/figures/2", "duplicate"),
            ([{"name": "tsne", "item": "a.png"}], "/figures/0/item", "not_allowed"),
            ([{"name": "tsne", "colour": "red"}], "/figures/0/colour", "unknown_field"),
            ([{"item": "a.png"}], "/figures/0/name", "required"),
            ([{"name": "attention_map", "item": "a\0b"}], "/figures/0/item", "bad_format"),
            ([{"name": "attention_map", "item": ""}], "/figures/0/item", "too_short"),
            ([7], "/figures/0", "invalid"),
            ("tsne", "/figures", "invalid"),
            (["tsne"] * 101, "/figures", "too_long"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(
        self, rig: Rig, send: Any, figures: Any, pointer: str, code: str
    ) -> None:
        answer = send(figures)
        assert answer.status_code == 422, answer.text
        error = answer.json()["errors"][0]
        assert (error["pointer"], error["code"]) == (pointer, code)
        assert rig.count_rows() == {"datasets": 1}

    def test_an_unknown_name_is_told_the_known_ones(self, send: Any) -> None:
        message = send(["umap"]).json()["errors"][0]["message"]
        assert all(repr(name.value) in message for name in FIGURES)


class TestEvaluation:
    def test_sends_the_stored_document_under_its_digest(self, rig: Rig, model_id: ModelId) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/evaluation")
        assert answer.content == _EVALUATION
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["etag"] == f'"{hashlib.sha256(_EVALUATION).hexdigest()}"'
        assert rig.client.get("/v1/models/flowers/evaluation").content == _EVALUATION
        again = rig.client.get(
            f"/v1/models/{model_id}/evaluation", headers={"If-None-Match": answer.headers["etag"]}
        )
        assert again.status_code == 304

    def test_a_model_made_before_has_none_and_says_what_to_do(self, rig: Rig) -> None:
        answer = rig.client.get(f"/v1/models/{publish_model(rig)}/evaluation")
        assert (answer.status_code, answer.json()["code"]) == (404, "evaluation_not_found")
        assert "train it again" in answer.json()["detail"]

    @pytest.mark.parametrize("path", ["evaluation", "figures", "figures/tsne"])
    def test_an_unknown_model_is_404(self, rig: Rig, path: str) -> None:
        answer = rig.client.get(f"/v1/models/mdl_none/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


class TestList:
    def test_shows_status_and_links_that_lead_somewhere(self, rig: Rig, model_id: ModelId) -> None:
        listed = rig.client.get(f"/v1/models/{model_id}/figures").json()
        agreement, tsne = listed["data"]
        assert (tsne["name"], tsne["status"], tsne["reason"]) == ("tsne", "ready", None)
        assert rig.client.get(tsne["links"]["json"]).content == _DATA
        assert rig.client.get(tsne["links"]["png"]).content == _PICTURE
        assert agreement["status"] == "not_available"
        assert agreement["reason"] == "there was no teacher"
        assert agreement["links"]["png"] is None
        assert rig.client.get(agreement["links"]["json"]).content == _REASON
        assert rig.client.get("/v1/models/flowers/figures").json() == listed

    def test_a_model_without_figures_has_an_empty_list(self, rig: Rig) -> None:
        answer = rig.client.get(f"/v1/models/{publish_model(rig)}/figures")
        assert answer.json() == {"object": "list", "data": [], "has_more": False}


class TestFigure:
    @pytest.mark.parametrize(
        ("path", "accept", "picture"),
        [
            ("tsne", "*/*", False),
            ("tsne", "", False),
            ("tsne", "application/json", False),
            ("tsne", "image/png", True),
            ("tsne", "image/avif,image/webp,image/*,*/*;q=0.8", True),
            ("tsne", "text/html,application/xml;q=0.9,*/*;q=0.8", False),
            ("tsne", "application/json;q=0.5, image/png;q=0.4", False),
            ("tsne", "application/json;q=0, */*", True),
            ("tsne", "text/csv", False),
            ("tsne.png", "application/json", True),
            ("tsne.json", "image/png", False),
            ("tsne?format=png", "application/json", True),
            ("tsne.png?format=json", "image/png", False),
        ],
    )
    def test_comes_in_the_form_that_is_wanted(
        self, rig: Rig, model_id: ModelId, path: str, accept: str, picture: bool
    ) -> None:
        url = f"/v1/models/{model_id}/figures/{path}"
        answer = rig.client.get(url, headers={"Accept": accept})
        assert answer.status_code == 200
        assert answer.content == (_PICTURE if picture else _DATA)
        assert answer.headers["content-type"] == ("image/png" if picture else "application/json")
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
        assert ("vary" in answer.headers) == (path == "tsne")
        assert answer.headers["content-disposition"].startswith("inline")
        known = {"Accept": accept, "If-None-Match": answer.headers["etag"]}
        again = rig.client.get(url, headers=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers.get("vary") == answer.headers.get("vary")

    def test_one_that_could_not_be_made_says_why_as_json(self, rig: Rig, model_id: ModelId) -> None:
        url = f"/v1/models/{model_id}/figures/agreement"
        assert rig.client.get(url).json() == json.loads(_REASON)
        answer = rig.client.get(f"{url}.png")
        assert (answer.status_code, answer.json()["code"]) == (404, "figure_not_available")
        assert "there was no teacher" in answer.json()["detail"]

    def test_one_that_was_not_asked_for_is_404_with_the_way_out(
        self, rig: Rig, model_id: ModelId
    ) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/figures/reliability")
        assert (answer.status_code, answer.json()["code"]) == (404, "figure_not_found")
        assert "`figures`" in answer.json()["detail"]

    def test_an_unknown_one_is_404_with_the_known_names(self, rig: Rig, model_id: ModelId) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/figures/umap")
        assert (answer.status_code, answer.json()["code"]) == (404, "figure_not_found")
        assert all(name.value in answer.json()["detail"] for name in FIGURES)

    @pytest.mark.parametrize("path", ["tsne?format=gif", "tsne.gif", "TSNE", "a%00b"])
    def test_a_name_or_form_that_cannot_be_is_422(
        self, rig: Rig, model_id: ModelId, path: str
    ) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/figures/{path}")
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
