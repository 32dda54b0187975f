"""Published models: show and download."""

import hashlib

import pytest

from core.catalog.pairs import STARTER_STUDENT
from core.platform.db.tables import ModelRow
from core.platform.jobs import attempts, claiming
from core.types import ModelId, new_model_id
from tests.integration.api.rig import Rig

_ADAPTER = bytes(range(256)) * 4


@pytest.fixture
def model_id(rig: Rig) -> ModelId:
    return publish_model(rig)


def publish_model(rig: Rig, *, name: str = "flowers", **columns: object) -> ModelId:
    """Go from an upload to a published model as a worker would."""
    dataset_id = rig.upload()
    rig.finish_validation()
    wanted = {"dataset_id": dataset_id, "name": name, "method": {"pair": "starter"}}
    assert rig.client.post("/v1/fine_tuning/jobs", json=wanted).status_code == 201
    store = rig.app.state.services.store
    with rig.database.write() as session:
        claim = claiming.claim_job(session, owner="test", ttl_s=60)
        assert claim is not None
        model = ModelRow(
            id=new_model_id(),
            name=name,
            job_id=claim.row_id,
            dataset_id=dataset_id,
            backbone=STARTER_STUDENT,
            adapter_sha256=store.put_bytes(_ADAPTER).sha256,
            adapter_bytes=len(_ADAPTER),
            config_sha256=store.put_bytes(b'{"format_version": 1}').sha256,
            card_sha256=store.put_bytes(b"# flowers\n").sha256,
            classes=["class0", "class1"],
            metrics={"test": {"accuracy": 0.9}},
            **columns,
        )
        attempts.publish(session, claim, model)
    return ModelId(model.id)


def test_shows_a_model_by_id_and_by_name(rig: Rig, model_id: ModelId) -> None:
    model = rig.client.get(f"/v1/models/{model_id}").json()
    assert model["adapter"] == {
        "sha256": hashlib.sha256(_ADAPTER).hexdigest(),
        "size_bytes": len(_ADAPTER),
    }
    assert (model["object"], model["classes"]) == ("model", ["class0", "class1"])
    assert rig.client.get("/v1/models/flowers").json() == model
    assert rig.client.get("/v1/models").json()["data"] == [model]
    job = rig.client.get(f"/v1/fine_tuning/jobs/{model['job_id']}").json()
    assert (job["status"], job["model_id"]) == ("succeeded", model_id)
    assert job["progress"]["percent"] == 100.0


def test_a_name_means_its_newest_model(rig: Rig, model_id: ModelId) -> None:
    newer = publish_model(rig)
    assert newer != model_id
    assert rig.client.get("/v1/models/flowers").json()["id"] == newer


class TestDownload:
    def test_sends_the_adapter_under_its_digest(self, rig: Rig, model_id: ModelId) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/adapter")
        assert answer.content == _ADAPTER
        assert answer.headers["etag"] == f'"{hashlib.sha256(_ADAPTER).hexdigest()}"'
        assert "flowers.adapter.safetensors" in answer.headers["content-disposition"]

    def test_answers_304_to_who_has_it(self, rig: Rig, model_id: ModelId) -> None:
        url = f"/v1/models/{model_id}/adapter"
        etag = rig.client.get(url).headers["etag"]
        for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
            answer = rig.client.get(url, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == etag
        assert rig.client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200

    def test_sends_a_range(self, rig: Rig, model_id: ModelId) -> None:
        url = f"/v1/models/{model_id}/adapter"
        etag = rig.client.get(url).headers["etag"]
        headers = {"Range": "bytes=10-19", "If-Range": etag}
        answer = rig.client.get(url, headers=headers)
        assert (answer.status_code, answer.content) == (206, _ADAPTER[10:20])
        stale = rig.client.get(url, headers={"Range": "bytes=10-19", "If-Range": '"old"'})
        assert (stale.status_code, stale.content) == (200, _ADAPTER)

    @pytest.mark.parametrize(
        ("wanted", "status", "code"),
        [("bytes=1024-", 416, "range_not_satisfiable"), ("pages=1-2", 400, "malformed_range")],
    )
    def test_refuses_a_range_with_a_problem(
        self, rig: Rig, model_id: ModelId, wanted: str, status: int, code: str
    ) -> None:
        answer = rig.client.get(f"/v1/models/{model_id}/adapter", headers={"Range": wanted})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["content-range"] == f"bytes */{len(_ADAPTER)}"

    def test_head_tells_size_and_digest_without_a_body(self, rig: Rig, model_id: ModelId) -> None:
        url = f"/v1/models/{model_id}/adapter"
        answer = rig.client.head(url)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(_ADAPTER))
        assert answer.headers["etag"] == rig.client.get(url).headers["etag"]
        missing = rig.client.head("/v1/models/mdl_none")
        assert (missing.status_code, missing.content) == (404, b"")

    def test_sends_config_and_card(self, rig: Rig, model_id: ModelId) -> None:
        config = rig.client.get(f"/v1/models/{model_id}/config")
        assert config.json() == {"format_version": 1}
        card = rig.client.get(f"/v1/models/{model_id}/card")
        assert card.text == "# flowers\n"
        assert card.headers["content-type"].startswith("text/markdown")

    @pytest.mark.parametrize("path", ["", "/adapter", "/config", "/card"])
    def test_an_unknown_model_is_404(self, rig: Rig, path: str) -> None:
        answer = rig.client.get(f"/v1/models/mdl_none{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_the_control_role_does_not_classify(rig: Rig, model_id: ModelId) -> None:
    answer = rig.client.post(f"/v1/models/{model_id}/classify", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")
