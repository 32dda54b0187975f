"""Batch predictions over HTTP: what is accepted, shown, refused and sent. No worker runs here."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from core.platform.datasets import repository
from core.platform.models.aliases import Target, set_alias
from core.platform.predictions import attempts
from core.types import DatasetState
from tests.integration.api.rig import Rig, build_png
from tests.integration.predictions.rows import add_model_row, build_archive

PATH = "/v1/batch_predictions"
PICTURES = build_archive({"b/1.png": build_png(1), "2.png": build_png(2), "read.me": b"text"})
LINES = b'{"id": "2.png", "predictions": [], "rejected": false}\n'


@pytest.fixture
def model(rig: Rig) -> str:
    """A model called flowers, of which there are files."""
    add_model(rig)
    return "flowers"


def add_model(rig: Rig, **columns: Any) -> str:
    store = rig.app.state.services.store
    row = add_model_row(
        rig.database,
        adapter_sha256=store.put_bytes(b"adapter").sha256,
        config_sha256=store.put_bytes(b"config").sha256,
        **columns,
    )
    return row.id


@pytest.fixture
def dataset(rig: Rig) -> str:
    """A dataset that is ready."""
    dataset_id = rig.upload()
    with rig.database.write() as session:
        claim = repository.claim_dataset(session, owner="test", ttl_s=60)
        assert claim is not None
        manifest = rig.app.state.services.store.put_bytes(b"{}").sha256
        repository.mark_ready(
            session,
            claim,
            manifest_sha256=manifest,
            caches={"64": manifest},
            classes=["class0", "class1"],
            splits={"train": 40, "val": 10, "test": 7},
            report={"summary": {}},
        )
    return dataset_id


def send(
    rig: Rig, archive: bytes = PICTURES, *, key: str | None = None, **fields: str
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    files = {"file": ("pictures.zip", archive)}
    return rig.client.post(PATH, files=files, data={"model": "flowers", **fields}, headers=headers)


def ask(rig: Rig, **body: Any) -> httpx.Response:
    return rig.client.post(PATH, json={"model": "flowers", **body})


def finish(rig: Rig, lines: bytes = LINES) -> None:
    """End the oldest as a worker would."""
    blob = rig.app.state.services.store.put_bytes(lines)
    with rig.database.write() as session:
        claim = attempts.claim_prediction(session, owner="test", ttl_s=60)
        assert claim is not None
        attempts.publish(
            session,
            claim,
            results_sha256=blob.sha256,
            results_bytes=blob.size_bytes,
            counts={"predicted": 1, "rejected": 0, "failed": 0},
        )


class TestAccepted:
    def test_an_archive(self, rig: Rig, model: str) -> None:
        answer = send(rig, top_k="3", function_to_apply="sigmoid", threshold="0.5")
        assert answer.status_code == 202, answer.text
        body = answer.json()
        assert body["id"].startswith("bp_")
        assert answer.headers["location"] == f"{PATH}/{body['id']}"
        assert (body["object"], body["status"], body["images"]) == (
            "batch_prediction",
            "pending",
            2,
        )
        assert body["parameters"] == {
            "top_k": 3,
            "function_to_apply": "sigmoid",
            "threshold": 0.5,
        }
        assert (body["dataset_id"], body["split"]) == (None, None)
        assert body["archive"]["name"] == "pictures.zip"
        assert (body["progress"], body["results"], body["error"]) == (None, None, None)
        assert rig.client.get(f"{PATH}/{body['id']}").json() == body

    def test_a_dataset(self, rig: Rig, model: str, dataset: str) -> None:
        body = ask(rig, dataset_id=dataset).json()
        assert (body["split"], body["images"], body["archive"]) == ("test", 7, None)
        assert body["parameters"] == {
            "top_k": 5,
            "function_to_apply": "softmax",
            "threshold": None,
        }
        assert ask(rig, dataset_id=dataset, split="all").json()["images"] == 57

    def test_the_reference_means_what_it_did(self, rig: Rig, model: str) -> None:
        add_model(rig, id="mdl_new", version=2)
        with rig.database.write() as session:
            set_alias(session, "flowers", "production", Target("mdl_default"))
        body = send(rig, model="flowers@production").json()
        assert (body["model"], body["model_id"]) == ("flowers@production", "mdl_default")
        with rig.database.write() as session:
            set_alias(session, "flowers", "production", Target("mdl_new"))
        assert rig.client.get(f"{PATH}/{body['id']}").json()["model_id"] == "mdl_default"
        assert send(rig, model="flowers@v2").json()["model_id"] == "mdl_new"
        assert send(rig, model="mdl_new").json()["model_id"] == "mdl_new"

    def test_model_and_dataset_may_go_while_it_waits(
        self, rig: Rig, model: str, dataset: str
    ) -> None:
        prediction_id = ask(rig, dataset_id=dataset).json()["id"]
        assert rig.client.delete(f"/v1/datasets/{dataset}").status_code == 204
        assert rig.client.delete("/v1/models/mdl_default").status_code == 204
        assert rig.client.get(f"{PATH}/{prediction_id}").json()["status"] == "pending"
        finish(rig)
        assert rig.client.get(f"{PATH}/{prediction_id}/results").content == LINES

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_a_repetition_under_a_key_creates_nothing(
        self, rig: Rig, model: str, kind: str
    ) -> None:
        archive = PICTURES
        if kind == "tar":
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
                info = tarfile.TarInfo("deep/er/1.png")
                info.size = len(build_png())
                tar.addfile(info, io.BytesIO(build_png()))
            archive = buffer.getvalue()
        first, again = send(rig, archive, key="k1"), send(rig, archive, key="k1")
        assert first.json() == again.json()
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        other = send(rig, archive, key="k1", top_k="1")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert rig.count_rows()["batch_predictions"] == 1


class TestRefused:
    def assert_nothing(self, rig: Rig) -> None:
        assert "batch_predictions" not in rig.count_rows()
        assert [name for name in rig.list_files() if "upload-" in name] == []

    @pytest.mark.parametrize(
        ("fields", "pointer"),
        [
            ({"model": "unknown"}, "/model"),
            ({"model": "flowers@staging"}, "/model"),
            ({"model": "flowers@v9"}, "/model"),
            ({"model": "../etc"}, "/model"),
            ({"model": ""}, "/model"),
            ({"top_k": "0"}, "/top_k"),
            ({"top_k": "1001"}, "/top_k"),
            ({"top_k": "some"}, "/top_k"),
            ({"function_to_apply": "argmax"}, "/function_to_apply"),
            ({"threshold": "nan"}, "/threshold"),
            ({"threshold": "inf"}, "/threshold"),
            ({"dataset_id": "ds_1"}, "/dataset_id"),
            ({"split": "test"}, "/split"),
        ],
    )
    def test_a_wrong_field_of_the_form(
        self, rig: Rig, model: str, fields: dict[str, str], pointer: str
    ) -> None:
        answer = send(rig, **fields)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
        self.assert_nothing(rig)

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/dataset_id"),
            ({"dataset_id": "ds_unknown"}, "/dataset_id"),
            ({"dataset_id": 7}, "/dataset_id"),
            ({"dataset_id": "ds_1\x00"}, "/dataset_id"),
            ({"dataset_id": "ds_1", "split": "holdout"}, "/split"),
            ({"dataset_id": "ds_1", "top_k": "5"}, "/top_k"),
            ({"dataset_id": "ds_1", "top_k": True}, "/top_k"),
            ({"dataset_id": "ds_1", "threshold": "high"}, "/threshold"),
            ({"dataset_id": "ds_1", "model": ["flowers"]}, "/model"),
            ({"dataset_id": "ds_1", "model": None}, "/model"),
            ({"dataset_id": "ds_1", "more": 1}, "/more"),
        ],
    )
    def test_a_wrong_field_of_the_json(
        self, rig: Rig, model: str, body: dict[str, Any], pointer: str
    ) -> None:
        answer = ask(rig, **body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
        self.assert_nothing(rig)

    @pytest.mark.parametrize(
        ("names", "code"),
        [
            ((), "archive_empty"),
            (("notes.txt",), "no_images"),
            (("__MACOSX/1.png",), "no_images"),
            (("../1.png",), "path_traversal"),
            (("/etc/1.png",), "path_traversal"),
            (("a\\..\\1.png",), "path_traversal"),
            (("C:1.png",), "path_traversal"),
            (("a/1.png", "A/1.png"), "duplicate_name"),
            (("/".join(["d"] * 20) + "/1.png",), "path_too_deep"),
            (("x" * 300 + ".png",), "name_too_long"),
        ],
    )
    def test_a_bad_archive(self, rig: Rig, model: str, names: tuple[str, ...], code: str) -> None:
        answer = send(rig, build_archive(dict.fromkeys(names, b"data")))
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        self.assert_nothing(rig)

    @pytest.mark.parametrize(
        ("archive", "code"),
        [(b"", "archive_empty"), (b"plain text", "not_an_archive"), (PICTURES[:90], None)],
        ids=["empty", "text", "cut"],  # an archive has the time in it, and ids must not
    )
    def test_no_archive_at_all(
        self, rig: Rig, model: str, archive: bytes, code: str | None
    ) -> None:
        answer = send(rig, archive)
        assert answer.status_code == 422
        assert code in (None, answer.json()["code"])
        self.assert_nothing(rig)

    def test_a_bomb(self, rig: Rig, model: str) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("1.png", bytes(20_000_000))
        answer = send(rig, buffer.getvalue())
        assert (answer.status_code, answer.json()["code"]) == (422, "zip_bomb")
        self.assert_nothing(rig)

    def test_too_many_files(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(max_archive_files=2)
        add_model(rig)
        assert send(rig).json()["code"] == "too_many_files"

    def test_a_form_without_a_file(self, rig: Rig, model: str) -> None:
        answer = rig.client.post(PATH, data={"model": "flowers"}, files={"model": (None, "x")})
        assert answer.status_code == 422

    @pytest.mark.parametrize(
        ("content_type", "body", "status"),
        [
            ("application/json", b"{", 400),
            ("application/json", b"[]", 422),
            ("application/json", b'{"model": NaN}', 422),
            ("application/json", b"x" * ((1 << 20) + 1), 413),
            ("text/plain", b"{}", 415),
            ("", b"{}", 415),
            ("multipart/form-data", b"--", 400),
        ],
    )
    def test_a_body_that_cannot_be_read(
        self, rig: Rig, content_type: str, body: bytes, status: int
    ) -> None:
        headers = {"content-type": content_type}
        answer = rig.client.post(PATH, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"

    @pytest.mark.parametrize("state", [None, DatasetState.INVALID, DatasetState.FAILED])
    def test_a_dataset_that_is_not_ready(
        self, rig: Rig, model: str, state: DatasetState | None
    ) -> None:
        dataset_id = rig.upload()
        if state is not None:
            rig.finish_validation(state=state)
        answer = ask(rig, dataset_id=dataset_id)
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_ready")

    def test_more_than_a_project_may_have_waiting(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(max_queued_jobs=1)
        add_model(rig)
        assert send(rig).status_code == 202
        answer = send(rig)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_batch_predictions")

    def test_files_that_are_gone(self, rig: Rig, model: str) -> None:
        store = rig.app.state.services.store
        store.delete(store.put_bytes(b"adapter").sha256)
        answer = send(rig)
        assert (answer.status_code, answer.json()["code"]) == (503, "files_collected")
        self.assert_nothing(rig)


class TestResults:
    def test_they_are_there_once_it_has_succeeded(self, rig: Rig, model: str) -> None:
        prediction_id = send(rig).json()["id"]
        path = f"{PATH}/{prediction_id}/results"
        early = rig.client.get(path)
        assert (early.status_code, early.json()["code"]) == (409, "results_missing")
        finish(rig)
        shown = rig.client.get(f"{PATH}/{prediction_id}").json()
        assert shown["status"] == "succeeded"
        assert shown["counts"] == {"predicted": 1, "rejected": 0, "failed": 0}
        assert (shown["results"]["url"], shown["results"]["size_bytes"]) == (path, len(LINES))

        answer = rig.client.get(path)
        assert answer.content == LINES
        assert answer.headers["content-type"] == "application/jsonl"
        assert f"{prediction_id}.results.jsonl" in answer.headers["content-disposition"]
        etag = answer.headers["etag"]
        assert etag == f'"{shown["results"]["sha256"]}"'
        unchanged = rig.client.get(path, headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        part = rig.client.get(path, headers={"Range": "bytes=1-4"})
        assert (part.status_code, part.content) == (206, LINES[1:5])
        assert rig.client.get(path, headers={"Range": "bytes=999-"}).status_code == 416
        assert rig.client.head(path).status_code == 200

    def test_deletion(self, rig: Rig, model: str) -> None:
        prediction_id = send(rig).json()["id"]
        path = f"{PATH}/{prediction_id}"
        refused = rig.client.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (
            409,
            "batch_prediction_not_ended",
        )
        finish(rig)
        assert rig.client.delete(path).status_code == 204
        for gone in (path, f"{path}/results"):
            answer = rig.client.get(gone)
            assert (answer.status_code, answer.json()["code"]) == (
                404,
                "batch_prediction_not_found",
            )
        assert rig.client.delete(path).status_code == 404


class TestCancel:
    def test_one_that_waits(self, rig: Rig, model: str) -> None:
        prediction_id = send(rig).json()["id"]
        for _ in range(2):
            answer = rig.client.post(f"{PATH}/{prediction_id}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        answer = rig.client.get(f"{PATH}/{prediction_id}/results")
        assert (answer.status_code, answer.json()["code"]) == (409, "results_missing")

    def test_one_that_runs(self, rig: Rig, model: str) -> None:
        prediction_id = send(rig).json()["id"]
        progress = {"images": 1, "of": 2, "eta_s": 0.5}
        with rig.database.write() as session:
            claim = attempts.claim_prediction(session, owner="test", ttl_s=60)
            assert claim is not None
            attempts.report_progress(session, claim, ttl_s=60, progress=progress)
        shown = rig.client.get(f"{PATH}/{prediction_id}").json()
        assert (shown["status"], shown["progress"]) == ("running", progress)
        answer = rig.client.post(f"{PATH}/{prediction_id}/cancel")
        assert answer.json()["status"] == "cancelling"

    def test_one_that_has_succeeded(self, rig: Rig, model: str) -> None:
        prediction_id = send(rig).json()["id"]
        finish(rig)
        answer = rig.client.post(f"{PATH}/{prediction_id}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "batch_prediction_terminal")


def test_pages(rig: Rig, model: str) -> None:
    ids = [send(rig, top_k=str(n + 1)).json()["id"] for n in range(3)]
    rig.client.post(f"{PATH}/{ids[1]}/cancel")
    first = rig.client.get(PATH, params={"limit": 2}).json()
    assert ([item["id"] for item in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    rest = rig.client.get(PATH, params={"limit": 2, "after": ids[1]}).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (ids[:1], False)
    oldest = rig.client.get(PATH, params={"order": "asc"}).json()
    assert [item["id"] for item in oldest["data"]] == ids
    cancelled = rig.client.get(PATH, params={"status": "cancelled"}).json()
    assert [item["id"] for item in cancelled["data"]] == [ids[1]]
    assert rig.client.get(PATH, params={"after": "bp_unknown"}).status_code == 404
    assert rig.client.get(PATH, params={"status": "done"}).status_code == 422


def test_another_projects_model_and_dataset_are_unknown(start_rig: Callable[..., Rig]) -> None:
    rig = start_rig(api_keys="alpha:a-key,beta:b-key", headers={"Authorization": "Bearer a-key"})
    add_model(rig, project="beta", name="flowers")
    answer = send(rig)
    assert (answer.status_code, answer.json()["code"]) == (422, "model_not_found")
    dataset_id = rig.upload()
    add_model(rig, project="alpha", name="flowers")
    theirs = rig.client.post(
        PATH,
        json={"model": "flowers", "dataset_id": dataset_id},
        headers={"Authorization": "Bearer b-key"},
    )
    assert (theirs.status_code, theirs.json()["code"]) == (422, "dataset_not_found")
