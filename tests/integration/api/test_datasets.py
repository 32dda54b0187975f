"""Uploading archives and reading datasets back."""

import hashlib
import io
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from api.routes import datasets as datasets_route
from core.platform.collection.blobs import Collection, collect_blobs
from core.platform.doorbell import VALIDATE_TASK
from core.types import DatasetState
from tests.integration.api.rig import Rig, build_png, build_zip


class TestUpload:
    def test_answers_with_the_dataset_and_keeps_the_bytes(self, rig: Rig) -> None:
        archive = build_zip()
        files = {"file": ("C:\\pictures\\My flowers.tar.gz", archive)}
        answer = rig.client.post(
            "/v1/datasets", files=files, data={"seed": "7", "tolerance": "0.1"}
        )

        assert answer.status_code == 202
        dataset = answer.json()
        digest = hashlib.sha256(archive).hexdigest()
        assert answer.headers["Location"] == f"/v1/datasets/{dataset['id']}"
        assert dataset["name"] == "My flowers"
        assert (dataset["status"], dataset["seed"], dataset["tolerance"]) == ("pending", 7, 0.1)
        assert dataset["archive"] == {
            "name": "My flowers.tar.gz",
            "size_bytes": len(archive),
            "sha256": digest,
        }
        assert rig.client.get(answer.headers["Location"]).json() == dataset
        with rig.app.state.services.store.open(digest) as blob:
            assert blob.read() == archive
        assert list(rig.settings.scratch_dir.iterdir()) == []

    def test_rings_for_validation_after_the_row_is_committed(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rung = []

        def ring(task: str) -> None:
            rung.append((task, rig.count_rows()))

        monkeypatch.setattr(rig.app.state.services.doorbell, "ring", ring)
        rig.upload()
        assert rung == [(VALIDATE_TASK, {"datasets": 1})]

    def test_shows_the_result_of_validation(self, rig: Rig) -> None:
        dataset_id = rig.upload()
        early = rig.client.get(f"/v1/datasets/{dataset_id}/report")
        assert (early.status_code, early.json()["code"]) == (409, "report_missing")
        rig.finish_validation()
        dataset = rig.client.get(f"/v1/datasets/{dataset_id}").json()
        assert dataset["status"] == "ready"
        assert dataset["splits"] == {"train": 40, "val": 10, "test": 10}
        assert dataset["classes"] == ["class0", "class1"]
        assert dataset["summary"] == {"images": 60}
        report = rig.client.get(f"/v1/datasets/{dataset_id}/report").json()
        assert report["report"]["warnings"] == []

    def test_shows_why_a_dataset_is_invalid(self, rig: Rig) -> None:
        dataset_id = rig.upload()
        rig.finish_validation(state=DatasetState.INVALID)
        dataset = rig.client.get(f"/v1/datasets/{dataset_id}").json()
        assert (dataset["status"], dataset["error"]["code"]) == ("invalid", "images_bad")

    def test_a_name_of_any_script_is_kept_as_it_is(self, rig: Rig) -> None:
        name = "Fleurs d'été <b>花</b> =cmd"
        dataset_id = rig.upload(name=name)
        assert rig.client.get(f"/v1/datasets/{dataset_id}").json()["name"] == name


def _zip_of(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _tar_with_link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for label in ("a", "b"):
            info = tarfile.TarInfo(f"{label}/1.png")
            info.size = len(build_png())
            archive.addfile(info, io.BytesIO(build_png()))
        link = tarfile.TarInfo("a/2.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


_BAD_ARCHIVES = {
    "not an archive": (b"GIF89a, or anything else", "not_an_archive"),
    "no bytes at all": (b"", "archive_empty"),
    "truncated": (build_zip()[:-40], "archive_truncated"),
    "no members": (_zip_of({}), "archive_empty"),
    "no images": (_zip_of({"a/x.txt": b"x", "b/y.txt": b"y"}), "no_images"),
    "one class": (build_zip(classes=1), "too_few_classes"),
    "path traversal": (
        _zip_of({"../a/1.png": build_png(), "b/1.png": build_png()}),
        "path_traversal",
    ),
    "symlink": (_tar_with_link(), "special_file"),
}


class TestBadUpload:
    @pytest.mark.parametrize("case", _BAD_ARCHIVES)
    def test_a_bad_archive_is_refused_and_leaves_nothing(self, rig: Rig, case: str) -> None:
        archive, code = _BAD_ARCHIVES[case]
        answer = rig.client.post("/v1/datasets", files={"file": ("x.zip", archive)})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert answer.headers["content-type"] == "application/problem+json"
        rig.assert_untouched()

    @pytest.mark.parametrize(
        ("form", "pointer"),
        [
            ({"seed": "-1"}, "/seed"),
            ({"seed": "many"}, "/seed"),
            ({"tolerance": "0.6"}, "/tolerance"),
            ({"tolerance": "nan"}, "/tolerance"),
            ({"name": " "}, "/name"),
            ({"name": "x" * 201}, "/name"),
            ({"name": "a\x00b"}, "/name"),
            ({"state": "ready"}, "/state"),
            ({"tenant_id": "1"}, "/tenant_id"),
        ],
    )
    def test_a_bad_field_is_pointed_at_and_leaves_nothing(
        self, rig: Rig, form: dict[str, str], pointer: str
    ) -> None:
        answer = rig.client.post("/v1/datasets", files={"file": ("x.zip", build_zip())}, data=form)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
        rig.assert_untouched()

    def test_a_form_without_a_file_is_refused(self, rig: Rig) -> None:
        answer = rig.client.post("/v1/datasets", files={"name": (None, "flowers")})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/file"
        rig.assert_untouched()

    def test_two_files_are_refused(self, rig: Rig) -> None:
        files = [("file", ("a.zip", build_zip())), ("file", ("b.zip", build_zip()))]
        answer = rig.client.post("/v1/datasets", files=files)
        assert answer.status_code == 422
        rig.assert_untouched()

    @pytest.mark.parametrize("content_type", ["application/json", "application/zip", None])
    def test_another_content_type_is_415(self, rig: Rig, content_type: str | None) -> None:
        headers = {} if content_type is None else {"content-type": content_type}
        answer = rig.client.post("/v1/datasets", content=build_zip(), headers=headers)
        assert answer.status_code == 415
        rig.assert_untouched()

    @pytest.mark.parametrize(
        ("content_type", "body"),
        [
            ("multipart/form-data", b"--x--\r\n"),
            ("multipart/form-data; boundary=", b"--x--\r\n"),
            ("multipart/form-data; boundary=" + "x" * 500, b"--x--\r\n"),
            ("multipart/form-data; boundary=x", b"no boundary here"),
            ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: a/b\r\n\r\n1\r\n--x--\r\n"),
            ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: " + b"y" * 100_000),
            ("multipart/form-data; boundary=x", b""),
        ],
    )
    def test_a_broken_form_is_400(self, rig: Rig, content_type: str, body: bytes) -> None:
        answer = rig.client.post(
            "/v1/datasets", content=body, headers={"content-type": content_type}
        )
        assert answer.status_code == 400, answer.text
        rig.assert_untouched()

    def test_a_form_of_ten_thousand_parts_is_400(self, rig: Rig) -> None:
        part = b'--x\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1\r\n'
        answer = rig.client.post(
            "/v1/datasets",
            content=part * 10_000 + b"--x--\r\n",
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert answer.status_code == 422  # at the second "seed", the other 9,998 unread
        rig.assert_untouched()

    def test_a_blob_without_a_row_is_left_to_the_sweeps(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_args: object, **_kw: object) -> None:
            raise OperationalError("INSERT", {}, Exception("disk I/O error"))

        monkeypatch.setattr(datasets_route.repository, "create_dataset", fail)
        answer = rig.client.post("/v1/datasets", files={"file": ("x.zip", build_zip())})
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        # Deleting it here could take it from another upload of the same bytes.
        assert len(rig.list_files()) == 1
        store = rig.app.state.services.store
        collect_blobs(rig.database, store, Collection(), grace_s=0)
        rig.assert_untouched()

    def test_a_failed_insert_does_not_take_another_datasets_archive(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = build_zip()
        rig.upload(archive)
        before = rig.list_files()

        def fail(*_args: object, **_kw: object) -> None:
            raise OperationalError("INSERT", {}, Exception("disk I/O error"))

        monkeypatch.setattr(datasets_route.repository, "create_dataset", fail)
        answer = rig.client.post("/v1/datasets", files={"file": ("x.zip", archive)})
        assert answer.status_code == 503
        assert rig.list_files() == before


class TestIdempotency:
    def test_the_same_upload_twice_makes_one_dataset(self, rig: Rig) -> None:
        headers = {"Idempotency-Key": "upload-1"}
        files = {"file": ("flowers.zip", build_zip())}
        first = rig.client.post("/v1/datasets", files=files, headers=headers)
        second = rig.client.post("/v1/datasets", files=files, headers=headers)
        assert (second.status_code, second.json()) == (202, first.json())
        assert second.headers["Idempotent-Replayed"] == "true"
        assert rig.count_rows() == {"datasets": 1, "idempotency_keys": 1}
        assert list(rig.settings.scratch_dir.iterdir()) == []

    def test_a_key_cannot_be_used_for_other_bytes(self, rig: Rig) -> None:
        headers = {"Idempotency-Key": "upload-1"}
        rig.client.post("/v1/datasets", files={"file": ("x.zip", build_zip())}, headers=headers)
        files_before = rig.list_files()
        other = {"file": ("x.zip", build_zip(classes=3))}
        answer = rig.client.post("/v1/datasets", files=other, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
        assert rig.count_rows() == {"datasets": 1, "idempotency_keys": 1}
        assert rig.list_files() == files_before

    def test_two_datasets_share_the_bytes_of_one_archive(self, rig: Rig) -> None:
        archive = build_zip()
        rig.upload(archive)
        rig.upload(archive)
        assert rig.count_rows() == {"datasets": 2}
        assert len(rig.list_files()) == 1


class TestList:
    def test_pages_cover_everything_once_in_either_order(self, rig: Rig) -> None:
        ids = [rig.upload() for _ in range(5)]
        for order, expected in (("asc", ids), ("desc", ids[::-1])):
            seen: list[str] = []
            params = {"limit": "2", "order": order}
            while True:
                page = rig.client.get("/v1/datasets", params=params).json()
                assert page["object"] == "list"
                seen += [item["id"] for item in page["data"]]
                if not page["has_more"]:
                    break
                params["after"] = seen[-1]
            assert seen == expected

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ("limit=0", "/limit"),
            ("limit=101", "/limit"),
            ("limit=x", "/limit"),
            ("order=up", "/order"),
            ("after=%00", "/after"),
        ],
    )
    def test_bad_page_parameters_are_pointed_at(self, rig: Rig, query: str, pointer: str) -> None:
        answer = rig.client.get(f"/v1/datasets?{query}")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["in"] == "query"
        assert answer.json()["errors"][0]["pointer"] == pointer

    @pytest.mark.parametrize(
        "dataset_id",
        ["ds_unknown", "..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "x" * 10_000, "a%20b", "%ff"],
    )
    def test_an_unknown_or_hostile_id_is_a_clean_4xx(self, rig: Rig, dataset_id: str) -> None:
        for path in (f"/v1/datasets/{dataset_id}", f"/v1/models/{dataset_id}"):
            answer = rig.client.get(path)
            assert answer.status_code in (404, 422), path
            assert answer.headers["content-type"] == "application/problem+json"


def test_leftovers_of_a_killed_process_are_removed_at_start(
    data_dir: Path, start_rig: Callable[..., Rig]
) -> None:
    scratch = data_dir / "scratch"
    scratch.mkdir()
    dead = scratch / "upload-dead"
    dead.write_bytes(b"half an archive")
    os.utime(dead, (0, time.time() - 120))
    start_rig()
    assert list(scratch.iterdir()) == []
