"""DELETE for datasets and models, and the list of what the sweeps did."""

import pytest
from sqlalchemy import select

from core.platform.collection.blobs import Collection, collect_blobs
from core.platform.collection.log import record_sweep
from core.platform.db.tables import DatasetRow, ModelRow
from tests.integration.api.rig import Rig, build_zip
from tests.integration.api.test_models import publish_model
from tests.integration.platform.garbage import delete_long_ago

_JOBS = "/v1/fine_tuning/jobs"


def create_job(rig: Rig, dataset_id: str) -> str:
    wanted = {"dataset_id": dataset_id, "method": {"pair": "starter"}}
    answer = rig.client.post(_JOBS, json=wanted)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def collect(rig: Rig) -> int:
    collection = Collection()
    collect_blobs(rig.database, rig.app.state.services.store, collection, grace_s=0)
    return collection.deleted


class TestDataset:
    def test_is_gone_at_once_and_its_bytes_later(self, rig: Rig) -> None:
        dataset_id = rig.upload()
        answer = rig.client.delete(f"/v1/datasets/{dataset_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        for method, path in (("GET", ""), ("GET", "/report"), ("DELETE", "")):
            again = rig.client.request(method, f"/v1/datasets/{dataset_id}{path}")
            assert (again.status_code, again.json()["code"]) == (404, "dataset_not_found")
        assert rig.client.get("/v1/datasets").json()["data"] == []
        wanted = {"dataset_id": dataset_id, "method": {"pair": "starter"}}
        refused = rig.client.post(_JOBS, json=wanted)
        assert (refused.status_code, refused.json()["code"]) == (422, "dataset_not_found")
        assert len(rig.list_files()) == 1
        assert collect(rig) == 1
        assert rig.list_files() == []

    def test_is_kept_while_a_job_waits_for_it(self, rig: Rig) -> None:
        dataset_id = rig.upload()
        job_id = create_job(rig, dataset_id)
        answer = rig.client.delete(f"/v1/datasets/{dataset_id}")
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
        assert job_id in answer.json()["detail"]
        assert rig.client.get(f"/v1/datasets/{dataset_id}").status_code == 200
        rig.client.post(f"{_JOBS}/{job_id}/cancel")
        assert rig.client.delete(f"/v1/datasets/{dataset_id}").status_code == 204

    def test_its_jobs_and_models_can_still_be_read(self, rig: Rig) -> None:
        model_id = publish_model(rig)
        model = rig.client.get(f"/v1/models/{model_id}").json()
        assert rig.client.delete(f"/v1/datasets/{model['dataset_id']}").status_code == 204
        collect(rig)
        job = rig.client.get(f"{_JOBS}/{model['job_id']}").json()
        assert (job["dataset_id"], job["model_id"]) == (model["dataset_id"], model_id)
        assert rig.client.get(_JOBS).json()["data"] == [job]
        assert rig.client.get(f"/v1/models/{model_id}").json() == model
        assert rig.client.get(f"/v1/models/{model_id}/adapter").status_code == 200

    def test_the_same_bytes_can_be_uploaded_again(self, rig: Rig) -> None:
        archive = build_zip()
        first = rig.upload(archive)
        rig.client.delete(f"/v1/datasets/{first}")
        second = rig.upload(archive)
        assert collect(rig) == 0
        assert rig.client.get(f"/v1/datasets/{second}").json()["status"] == "pending"

    def test_a_repeated_upload_does_not_bring_it_back(self, rig: Rig) -> None:
        headers = {"Idempotency-Key": "once"}
        files = {"file": ("flowers.zip", build_zip())}
        created = rig.client.post("/v1/datasets", files=files, headers=headers).json()
        rig.client.delete(f"/v1/datasets/{created['id']}")
        answer = rig.client.post("/v1/datasets", files=files, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "resource_deleted")
        assert created["id"] in answer.json()["detail"]
        with rig.database.read() as session:
            assert len(session.scalars(select(DatasetRow)).all()) == 1

    def test_an_upload_whose_bytes_are_swept_away_is_to_be_sent_again(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = rig.app.state.services.store
        monkeypatch.setattr(store, "exists", lambda _sha256: False)
        answer = rig.client.post("/v1/datasets", files={"file": ("x.zip", build_zip())})
        assert (answer.status_code, answer.json()["code"]) == (503, "archive_collected")
        assert "Retry-After" in answer.headers
        assert rig.count_rows() == {}


class TestModel:
    def test_is_gone_at_once_and_its_bytes_later(self, rig: Rig) -> None:
        model_id = publish_model(rig)
        answer = rig.client.delete(f"/v1/models/{model_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        for path in ("", "/adapter", "/config", "/card", "/figures", "/evaluation"):
            gone = rig.client.get(f"/v1/models/{model_id}{path}")
            assert (gone.status_code, gone.json()["code"]) == (404, "model_not_found")
        again = rig.client.delete(f"/v1/models/{model_id}")
        assert (again.status_code, again.json()["code"]) == (404, "model_not_found")
        assert rig.client.get("/v1/models").json()["data"] == []
        assert collect(rig) == 0  # for those who are just downloading it
        delete_long_ago(rig.database, ModelRow, model_id)
        assert collect(rig) == 3

    def test_its_job_stays_and_tells_of_it(self, rig: Rig) -> None:
        model_id = publish_model(rig)
        job_id = rig.client.get(f"/v1/models/{model_id}").json()["job_id"]
        rig.client.delete(f"/v1/models/{model_id}")
        job = rig.client.get(f"{_JOBS}/{job_id}").json()
        assert (job["status"], job["model_id"]) == ("succeeded", model_id)
        events = rig.client.get(f"{_JOBS}/{job_id}/events").json()["data"]
        assert events[-1]["type"] == "model.deleted"

    def test_a_name_is_refused_with_the_id_to_use(self, rig: Rig) -> None:
        model_id = publish_model(rig)
        answer = rig.client.delete("/v1/models/flowers")
        assert (answer.status_code, answer.json()["code"]) == (422, "model_id_required")
        assert model_id in answer.json()["detail"]
        assert rig.client.delete("/v1/models/no-such-name").status_code == 404
        assert rig.client.get(f"/v1/models/{model_id}").status_code == 200

    def test_another_process_knows_at_once(self, rig: Rig, start_rig) -> None:
        model_id = publish_model(rig)
        other = start_rig()
        assert other.client.get(f"/v1/models/{model_id}").status_code == 200
        rig.client.delete(f"/v1/models/{model_id}")
        assert other.client.get(f"/v1/models/{model_id}").status_code == 404


class TestMaintenance:
    @pytest.fixture
    def sweeps(self, rig: Rig) -> None:
        for number in range(3):
            with rig.database.write() as session:
                record_sweep(
                    session,
                    owner="host:7",
                    duration_s=1,
                    counts={"blobs": number},
                    faults={"rows": "OSError: no"} if number == 1 else {},
                )

    def test_lists_the_sweeps_newest_first(self, rig: Rig, sweeps: None) -> None:
        page = rig.client.get("/v1/maintenance?limit=2").json()
        assert (page["object"], page["has_more"]) == ("list", True)
        assert [sweep["counts"] for sweep in page["data"]] == [{"blobs": 2}, {"blobs": 1}]
        assert page["data"][1]["faults"] == {"rows": "OSError: no"}
        assert page["data"][0]["worker"] == "host:7"
        last = page["data"][-1]["id"]
        rest = rig.client.get(f"/v1/maintenance?after={last}").json()
        assert [sweep["counts"] for sweep in rest["data"]] == [{"blobs": 0}]

    def test_an_id_of_something_else_is_pointed_at(self, rig: Rig) -> None:
        answer = rig.client.get("/v1/maintenance?after=ds_1")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/after"
