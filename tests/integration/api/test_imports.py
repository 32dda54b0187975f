"""Importing models that were made elsewhere, and exporting them again."""

import hashlib
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from core.platform.collection.references import read_references
from core.platform.collection.rows import purge_models
from tests.integration.api.models import (
    CLASSES,
    IMPORT,
    Files,
    build_files,
    build_picture,
    classify,
    import_model,
)
from tests.integration.api.rig import Rig


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return build_files(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def both(start_rig: Callable[..., Rig]) -> Rig:
    """An API of both roles."""
    return start_rig(roles=["control", "inference"], device="cpu", threads=1)


def refuse(rig: Rig, form: dict[str, tuple[str, bytes]], **fields: str) -> tuple[int, str]:
    """Send an import that must fail; return its status and code; nothing is left of it."""
    answer = rig.client.post(IMPORT, files=form, data={"name": "animals", **fields})
    assert rig.list_files() == []
    assert "models" not in rig.count_rows()
    return answer.status_code, answer.json()["code"]


class TestAccepting:
    def test_publishes_a_model_without_a_job(self, both: Rig, files: Files) -> None:
        answer = both.client.post(IMPORT, files=files.form(), data={"name": "animals"})
        assert answer.status_code == 201, answer.text
        model = answer.json()
        assert answer.headers["location"] == f"/v1/models/{model['id']}"
        assert (model["source"], model["job_id"], model["dataset_id"]) == ("import", None, None)
        assert (model["version"], model["classes"]) == (1, CLASSES)
        assert model["metrics"] == {"test": {"accuracy": 0.5}}
        assert model["adapter"]["sha256"] == hashlib.sha256(files.adapter).hexdigest()
        assert both.client.get("/v1/models").json()["data"] == [model]
        assert both.client.get("/v1/models/animals@v1").json() == model
        card = both.client.get(f"/v1/models/{model['id']}/card").text
        assert card.startswith("# animals\n")
        assert both.client.get(f"/v1/models/{model['id']}/evaluation").status_code == 404

    @pytest.mark.parametrize("folder", ["", "flowers/", "./"])
    def test_takes_an_archive(self, both: Rig, files: Files, folder: str) -> None:
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            for name, data in (
                ("config.json", files.config),
                ("notes.txt", b"?"),
                ("adapter.safetensors", files.adapter),
            ):
                entry = tarfile.TarInfo(folder + name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        for packed in (files.zip(folder), tar.getvalue()):
            form = {"bundle": ("b", packed)}
            answer = both.client.post(IMPORT, files=form, data={"name": "animals"})
            assert answer.status_code == 201, answer.text
            assert answer.json()["adapter"]["size_bytes"] == len(files.adapter)

    def test_makes_one_model_of_a_repeated_request(self, both: Rig, files: Files) -> None:
        headers = {"Idempotency-Key": "k1"}
        first, second = (
            both.client.post(IMPORT, files=files.form(), data={"name": "a"}, headers=headers)
            for _ in range(2)
        )
        assert first.json() == second.json()
        assert second.headers["idempotent-replayed"] == "true"
        other = both.client.post(IMPORT, files=files.form(), data={"name": "b"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert both.count_rows()["models"] == 1

    def test_keeps_its_files_for_as_long_as_it_is_there(self, both: Rig, files: Files) -> None:
        model_id = import_model(both.client, files)
        digest = hashlib.sha256(files.adapter).digest()
        with both.database.write() as session:
            assert purge_models(session) == 0
            assert digest in read_references(session)
        assert both.client.delete(f"/v1/models/{model_id}").status_code == 204
        assert both.client.get(f"/v1/models/{model_id}").status_code == 404
        assert both.client.get("/v1/models").json()["data"] == []

    def test_is_for_the_inference_role(self, rig: Rig, files: Files) -> None:
        answer = rig.client.post(IMPORT, files=files.form(), data={"name": "a"})
        assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


def test_a_model_moves_to_another_server_and_answers_the_same(
    start_rig: Callable[..., Rig],
    both: Rig,
    files: Files,
    tmp_path: Path,
    migrated_database: Path,
) -> None:
    model_id = import_model(both.client, files)
    sent = both.client.get(f"/v1/models/{model_id}/bundle")
    assert (sent.status_code, sent.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(sent.content)) as archive:
        assert archive.namelist() == ["adapter.safetensors", "config.json", "README.md"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("adapter.safetensors") == files.adapter
        assert archive.read("config.json") == files.config

    (tmp_path / "other").mkdir()
    shutil.copyfile(migrated_database, tmp_path / "other" / "idat.db")
    other = start_rig(
        roles=["control", "inference"],
        device="cpu",
        threads=1,
        data_dir=tmp_path / "other",
    )
    form = {"bundle": ("animals.zip", sent.content)}
    answer = other.client.post(IMPORT, files=form, data={"name": "animals"})
    assert answer.status_code == 201, answer.text
    assert other.client.get("/v1/models/animals/bundle").content == sent.content
    picture = build_picture()
    here, there = (classify(rig.client, "animals", picture).json() for rig in (both, other))
    assert [score["label"] for score in here] == [score["label"] for score in there]
    assert [score["score"] for score in here] == [score["score"] for score in there]


class TestBundle:
    def test_has_the_same_bytes_and_a_tag(self, both: Rig, files: Files) -> None:
        model_id = import_model(both.client, files)
        url = f"/v1/models/{model_id}/bundle"
        first, second = both.client.get(url), both.client.get(url)
        assert first.content == second.content
        etag = first.headers["etag"]
        assert second.headers["etag"] == etag
        again = both.client.get(url, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
        part = both.client.get(url, headers={"Range": "bytes=2-9", "If-Range": etag})
        assert (part.status_code, part.content) == (206, first.content[2:10])
        assert 'filename="animals.zip"' in first.headers["content-disposition"]

    def test_leaves_no_file_behind(self, both: Rig, files: Files) -> None:
        model_id = import_model(both.client, files)
        both.client.get(f"/v1/models/{model_id}/bundle")
        assert list(both.settings.scratch_dir.iterdir()) == []


class _Explosive:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


class TestForeignFormats:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npz", ".PT"])
    def test_names_of_pickles_are_refused(self, both: Rig, files: Files, suffix: str) -> None:
        form = files.form() | {"adapter": (f"adapter{suffix}", files.adapter)}
        assert refuse(both, form) == (415, "unsupported_model_format")

    def test_pickles_by_their_bytes_and_never_loaded(
        self, both: Rig, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        modern, legacy = io.BytesIO(), io.BytesIO()
        torch.save(_Explosive(), modern)
        torch.save(_Explosive(), legacy, _use_new_zipfile_serialization=False)
        for data in (pickle.dumps(_Explosive()), modern.getvalue(), legacy.getvalue()):
            form = files.form() | {"adapter": ("adapter.safetensors", data)}
            assert refuse(both, form) == (415, "unsupported_model_format")
        form = {"bundle": ("model.zip", modern.getvalue())}
        assert refuse(both, form) == (415, "unsupported_model_format")
        assert not (tmp_path / "exploded").exists()


def tensors_of(files: Files) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(files.adapter)


def with_tensors(files: Files, tensors: dict[str, torch.Tensor]) -> Files:
    return Files(safetensors.torch.save(tensors), files.config)


class TestRefusals:
    def test_a_header_that_is_too_large(self, both: Rig, files: Files) -> None:
        header = b'{"__metadata__":{"x":"' + b"a" * (2 << 20) + b'"}}'
        for data in (struct.pack("<Q", len(header)) + header, struct.pack("<Q", 2**60) + b"{}"):
            form = Files(data, files.config).form()
            assert refuse(both, form) == (422, "invalid_model_bundle")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, both: Rig, files: Files, value: float) -> None:
        tensors = tensors_of(files)
        tensors["head.bias"][1] = value
        assert refuse(both, with_tensors(files, tensors).form()) == (422, "adapter_state_mismatch")

    def test_tensors_that_do_not_fit(self, both: Rig, files: Files) -> None:
        tensors = tensors_of(files)
        wrong = (
            ({**tensors, "head.bias": torch.zeros(9)}, "adapter_state_mismatch"),
            ({**tensors, "more": torch.zeros(1)}, "adapter_state_mismatch"),
            ({k: t for k, t in tensors.items() if k != "head.bias"}, "adapter_state_mismatch"),
            ({k: t.half() for k, t in tensors.items()}, "invalid_model_bundle"),
        )
        for changed, code in wrong:
            assert refuse(both, with_tensors(files, changed).form()) == (422, code)

    def test_a_backbone_that_is_not_known(self, both: Rig, files: Files) -> None:
        backbone = json.loads(files.config)["backbone"] | {"name": "../../etc/passwd"}
        form = files.change(backbone=backbone).form()
        assert refuse(both, form) == (422, "unknown_backbone")

    @pytest.mark.parametrize(
        "change",
        [
            {"format_version": 7},
            {"classes": ["ant"]},
            {"classes": ["a", "b", "c", "nul\0"]},
            {"classes": ["a", "b", "c", 4]},
            {"classes": ["a", "b", "c", "x" * 1001]},
            {"metrics": [1]},
            {"recipe": None},
            {"teacher": "big"},
            {"trainable_parameters": "many"},
            {"adapter": {"kind": "parallel", "hidden_dim": 10**12, "scale": 0.1}},
            {"backbone": 7},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_config_that_says_something_else(
        self, both: Rig, files: Files, change: dict[str, object]
    ) -> None:
        status, _ = refuse(both, files.change(**change).form())
        assert status == 422

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "[" * 100_000,
            '{"metrics": {"x": NaN}}',
            '{"metrics": {"x": 1e999}}',
            '{"backbone": {"name": "\\ud800"}}',
        ],
        ids=["empty", "list", "deep", "nan", "overflow", "surrogate"],
    )
    def test_a_config_that_no_database_would_take(self, both: Rig, files: Files, text: str) -> None:
        form = Files(files.adapter, text.encode()).form()
        assert refuse(both, form) == (422, "invalid_model_bundle")

    def test_another_normalisation(self, both: Rig, files: Files) -> None:
        preprocessing = json.loads(files.config)["preprocessing"] | {"std": [0.0, 0.5, 0.5]}
        form = files.change(preprocessing=preprocessing).form()
        assert refuse(both, form) == (422, "invalid_model_bundle")

    def test_a_file_whose_digest_is_another(self, both: Rig, files: Files) -> None:
        assert refuse(both, files.form(), adapter_sha256="0" * 64) == (422, "digest_mismatch")
        digest = hashlib.sha256(files.config).hexdigest()
        import_model(both.client, files, config_sha256=digest)

    def test_forms_that_are_not_complete(self, both: Rig, files: Files) -> None:
        form = files.form()
        for wrong in (
            {"adapter": form["adapter"]},
            form | {"bundle": ("b.zip", files.zip())},
            form | {"other": ("x", b"y")},
        ):
            assert refuse(both, wrong)[0] == 422
        for name in ("", "a/b", "x" * 101, "a@b"):
            assert refuse(both, form, name=name)[0] == 422

    def test_archives_that_are_none(self, both: Rig, files: Files) -> None:
        packed = files.zip()
        for data in (b"", b"no archive", packed[: len(packed) // 2], files.adapter):
            assert refuse(both, {"bundle": ("b.zip", data)}) == (422, "invalid_model_archive")
        lacking = io.BytesIO()
        with zipfile.ZipFile(lacking, "w") as archive:
            archive.writestr("config.json", files.config)
        form = {"bundle": ("b.zip", lacking.getvalue())}
        assert refuse(both, form) == (422, "invalid_model_archive")

    def test_a_body_over_the_limit(self, start_rig: Callable[..., Rig], files: Files) -> None:
        small = start_rig(
            roles=["control", "inference"], device="cpu", threads=1, max_import_bytes=10_000
        )
        assert refuse(small, files.form()) == (413, "too_large")
        # It is small as long as it is packed.
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("adapter.safetensors", bytes(1 << 20))
            archive.writestr("config.json", files.config[:100])
        assert refuse(small, {"bundle": ("b.zip", bomb.getvalue())}) == (413, "too_large")

    def test_a_model_that_answers_otherwise_than_its_certificate(
        self, both: Rig, files: Files
    ) -> None:
        first = import_model(both.client, files, "right")
        # Now the backbone is in memory, and a model has to show at once that it is right.
        assert classify(both.client, first, build_picture()).status_code == 200
        tensors = tensors_of(files)
        tensors["head.bias"] += 50 * torch.arange(4)
        form = with_tensors(files, tensors).form()
        answer = both.client.post(IMPORT, files=form, data={"name": "wrong"})
        assert answer.status_code == 409, answer.text
        assert both.count_rows()["models"] == 1
