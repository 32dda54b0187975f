"""Whole attempts at batch predictions: a real process with the starter's real network."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.catalog.methods import Precision
from core.ml.backbones.precision import resolve_device
from core.ml.data.cache import write_cache
from core.ml.data.manifest import ManifestItem, build_manifest
from core.ml.data.preprocess import PREPROCESS_VERSION, preprocess
from core.ml.export.bundle import parse_bundle
from core.ml.inference.engine import Engine
from core.ml.inference.scores import OutputFunction, rank_classes
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import ModelRow
from core.platform.predictions.parameters import Parameters
from core.platform.predictions.repository import Images, get_images
from core.types import Split
from tests.integration.api.models import CLASSES, Files, build_picture
from tests.integration.predictions.rows import (
    add,
    add_ready_dataset,
    build_archive,
    cancel,
    row_of,
)
from worker.predicting import predict_next
from worker.runtime import Runtime

pytestmark = pytest.mark.slow

PX = 64
PICTURES = {
    "z/first.png": build_picture(1),
    "a/second.PNG": build_picture(2),
    "third.png": build_picture(3),
    "notes.txt": b"not an image by its name",
    "__MACOSX/._first.png": b"litter",
    "broken.jpg": b"\xff\xd8\xff\xe0 no picture",
    "anim.gif": b"GIF89a",
    "deep/er/fünf.png": build_picture(5),
    "cut.png": build_picture(6)[:900],
    "last.png": build_picture(7),
}
SOUND = ["z/first.png", "a/second.PNG", "third.png", "deep/er/fünf.png", "last.png"]
ORDER = [*SOUND[:3], "broken.jpg", "anim.gif", SOUND[3], "cut.png", SOUND[4]]


@pytest.fixture
def archive(runtime: Runtime) -> Images:
    """An archive in the store, with some files that are no pictures."""
    data = build_archive(PICTURES)
    sha256 = runtime.store.put_bytes(data).sha256
    return Images(sha256, len(data), "pictures.zip", len(ORDER))


def predict(runtime: Runtime, prediction_id: str) -> BatchPredictionRow:
    """Let the worker make one attempt."""
    assert predict_next(runtime)
    return row_of(runtime.database, prediction_id)


def read(runtime: Runtime, row: BatchPredictionRow) -> list[dict[str, Any]]:
    """The lines of the results."""
    assert row.state == "succeeded", row.error
    assert row.results_sha256 is not None
    with runtime.store.open(row.results_sha256) as file:
        data = file.read()
    assert len(data) == row.results_bytes
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode().splitlines()]


def compute(files: Files, pictures: list[bytes]) -> np.ndarray:
    """The logits of each picture by itself, by the engine that requests are answered with."""
    engine = Engine(device=resolve_device("cpu"), precision=Precision.FP32)
    resident = engine.admit(parse_bundle(files.adapter, files.config))
    pixels = [preprocess(picture, PX) for picture in pictures]
    return np.stack([engine.forward([resident], [image])[0].logits for image in pixels])


def test_nothing_waits(runtime: Runtime) -> None:
    assert not predict_next(runtime)


def test_an_archive_with_bad_images(
    runtime: Runtime, model: ModelRow, archive: Images, files: Files
) -> None:
    prediction_id = add(runtime.database, model, archive, Parameters(top_k=2))
    row = predict(runtime, prediction_id)
    lines = read(runtime, row)
    assert [line["id"] for line in lines] == ORDER
    assert row.counts == {"predicted": 5, "rejected": 0, "failed": 3}
    errors = {line["id"]: line["error"]["code"] for line in lines if "error" in line}
    assert errors == {
        "broken.jpg": "image_truncated",
        "anim.gif": "unsupported_format",
        "cut.png": "image_truncated",
    }
    # The same numbers as one picture at a time, to the rounding of another batch size.
    logits = compute(files, [PICTURES[name] for name in SOUND])
    ranked = rank_classes(logits, CLASSES, top_k=2)
    found = {line["id"]: line["predictions"] for line in lines if "predictions" in line}
    for name, expected in zip(SOUND, ranked, strict=True):
        assert [one["label"] for one in found[name]] == [one.label for one in expected]
        scores = [one["score"] for one in found[name]]
        assert scores == pytest.approx([one.score for one in expected], abs=1e-5)
    assert all("label" not in line for line in lines)
    assert row.progress is not None
    assert (row.progress["images"], row.progress["of"]) == (len(ORDER), len(ORDER))
    assert (row.attempt, row.failures, row.lease_owner) == (1, 0, None)
    assert not list(runtime.settings.scratch_dir.glob("attempt-*"))

    again = predict(runtime, add(runtime.database, model, archive, Parameters(top_k=2)))
    assert again.results_sha256 == row.results_sha256  # byte for byte


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_functions_and_thresholds(
    runtime: Runtime, model: ModelRow, archive: Images, files: Files, function: str
) -> None:
    logits = compute(files, [PICTURES[name] for name in SOUND])
    ranked = rank_classes(logits, CLASSES, top_k=9, function=OutputFunction(function))
    best = sorted(one[0].score for one in ranked)
    threshold = (best[1] + best[2]) / 2
    parameters = Parameters(top_k=9, function_to_apply=function, threshold=threshold)
    row = predict(runtime, add(runtime.database, model, archive, parameters))
    assert row.counts == {"predicted": 3, "rejected": 2, "failed": 3}
    for line in read(runtime, row):
        if "error" in line:
            continue
        expected = ranked[SOUND.index(line["id"])]
        is_rejected = expected[0].score < threshold
        assert line["rejected"] is is_rejected
        if is_rejected:
            (only,) = line["predictions"]
            assert (only["label"], only["rejected"]) == ("", True)
            assert only["score"] == pytest.approx(expected[0].score, abs=1e-5)
        else:
            assert [one["label"] for one in line["predictions"]] == [one.label for one in expected]


class TestDatasets:
    @pytest.fixture
    def dataset_id(self, runtime: Runtime, tmp_path: Path) -> str:
        """Six images of two classes, decoded; its archive is not the one they came from."""
        names = [f"class{label}/{index}.png" for label in range(2) for index in range(3)]
        self.pictures = dict(zip(names, map(build_picture, range(6)), strict=True))
        splits = [Split.TRAIN, Split.VAL, Split.TEST] * 2
        items = [
            ManifestItem(name, int(name[5]), split, "0" * 64, 64, 64)
            for name, split in zip(names, splits, strict=True)
        ]
        manifest = build_manifest(
            ["class0", "class1"], items, seed=0, preprocess_version=PREPROCESS_VERSION
        )
        rows = [preprocess(self.pictures[item.name], PX) for item in manifest.items]
        write_cache(tmp_path / "images.npy", rows, count=6, image_px=PX)
        return add_ready_dataset(
            runtime.database,
            archive_sha256=runtime.store.put_bytes(b"no archive").sha256,
            manifest_sha256=runtime.store.put_bytes(manifest.to_json()).sha256,
            caches={str(PX): runtime.store.put_file(tmp_path / "images.npy").sha256},
            splits={"train": 2, "val": 2, "test": 2},
        )

    def images(self, runtime: Runtime, dataset_id: str, split: str) -> Images:
        with runtime.database.read() as session:
            return get_images(session, dataset_id, split, project="default")

    @pytest.mark.parametrize("split", ["test", "all"])
    def test_its_rows_are_answered_for_without_decoding(
        self, runtime: Runtime, model: ModelRow, files: Files, dataset_id: str, split: str
    ) -> None:
        images = self.images(runtime, dataset_id, split)
        row = predict(runtime, add(runtime.database, model, images, Parameters(top_k=1)))
        lines = read(runtime, row)
        names = sorted(self.pictures)
        chosen = names if split == "all" else [name for name in names if name.endswith("2.png")]
        assert [line["id"] for line in lines] == chosen
        assert [line["label"] for line in lines] == [name.partition("/")[0] for name in chosen]
        logits = compute(files, [self.pictures[name] for name in chosen])
        expected = [one[0] for one in rank_classes(logits, CLASSES, top_k=1)]
        assert [line["predictions"][0]["label"] for line in lines] == [
            one.label for one in expected
        ]

    def test_another_size_is_made_from_its_archive(
        self, runtime: Runtime, model: ModelRow, tmp_path: Path
    ) -> None:
        """The dataset's images are of other pixels than the model's."""
        pictures = {f"class{n % 2}/{n}.png": build_picture(n) for n in range(4)}
        items = [
            ManifestItem(name, int(name[5]), Split.TEST, hashlib.sha256(data).hexdigest(), 64, 64)
            for name, data in pictures.items()
        ]
        manifest = build_manifest(
            ["class0", "class1"], items, seed=0, preprocess_version=PREPROCESS_VERSION
        )
        dataset_id = add_ready_dataset(
            runtime.database,
            archive_sha256=runtime.store.put_bytes(build_archive(pictures)).sha256,
            manifest_sha256=runtime.store.put_bytes(manifest.to_json()).sha256,
            caches={},
            splits={"test": 4},
        )
        images = self.images(runtime, dataset_id, "test")
        lines = read(runtime, predict(runtime, add(runtime.database, model, images)))
        assert [line["id"] for line in lines] == sorted(pictures)
        assert all(len(line["predictions"]) == len(CLASSES) for line in lines)


class TestEnds:
    def test_a_damaged_archive_is_its_users_fault(self, runtime: Runtime, model: ModelRow) -> None:
        data = bytearray(build_archive({f"{n}.png": build_picture(n) for n in range(3)}))
        data[3000] ^= 0xFF
        sha256 = runtime.store.put_bytes(bytes(data)).sha256
        images = Images(sha256, len(data), "damaged.zip", 3)
        row = predict(runtime, add(runtime.database, model, images))
        assert row.error is not None
        assert (row.state, row.error["class"]) == ("failed", "user")
        assert row.error["code"] == "archive_corrupt"
        assert row.results_sha256 is None

    def test_a_model_that_does_not_fit_its_backbone_fails(
        self, runtime: Runtime, model: ModelRow, archive: Images, files: Files
    ) -> None:
        config = json.loads(files.config)
        config["backbone"]["weights_sha256"] = "0" * 64
        model.config_sha256 = runtime.store.put_bytes(json.dumps(config).encode()).sha256
        row = predict(runtime, add(runtime.database, model, archive))
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "weights_mismatch")

    def test_a_lost_archive_costs_the_attempts(
        self, runtime: Runtime, model: ModelRow, archive: Images
    ) -> None:
        prediction_id = add(runtime.database, model, archive)
        runtime.store.delete(archive.archive_sha256)
        states = [predict(runtime, prediction_id).state for _ in range(3)]
        assert states == ["pending", "pending", "failed"]
        error = row_of(runtime.database, prediction_id).error
        assert error is not None
        assert (error["class"], error["attempts"]) == ("system", 3)

    def test_time_runs_out(self, runtime: Runtime, model: ModelRow, archive: Images) -> None:
        runtime.settings = runtime.settings.model_copy(update={"max_job_s": 0.01})
        row = predict(runtime, add(runtime.database, model, archive))
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "time_limit_exceeded")


class TestDisturbed:
    """The child is met at work; a slow archive gives the time for it."""

    @pytest.fixture
    def many(self, runtime: Runtime) -> Images:
        """Enough pictures that they are not done before the disturbance."""
        picture = build_picture(9)
        data = build_archive({f"{index:05d}.png": picture for index in range(8000)})
        sha256 = runtime.store.put_bytes(data).sha256
        return Images(sha256, len(data), "many.zip", 8000)

    def disturb(
        self, runtime: Runtime, prediction_id: str, act: Callable[[], object]
    ) -> BatchPredictionRow:
        """Make an attempt, and act once it has answered for some images."""

        def wait_and_act() -> None:
            deadline_s = time.monotonic() + 120
            while time.monotonic() < deadline_s:
                progress = row_of(runtime.database, prediction_id).progress
                if progress is not None and int(str(progress["images"])) > 0:
                    act()
                    return
                time.sleep(0.05)

        disturber = threading.Thread(target=wait_and_act)
        disturber.start()
        try:
            return predict(runtime, prediction_id)
        finally:
            disturber.join(130)

    def test_a_cancel_ends_it(self, runtime: Runtime, model: ModelRow, many: Images) -> None:
        prediction_id = add(runtime.database, model, many)
        row = self.disturb(runtime, prediction_id, lambda: cancel(runtime.database, prediction_id))
        assert (row.state, row.results_sha256, row.counts) == ("cancelled", None, None)

    def test_a_shutdown_hands_it_back(
        self, runtime: Runtime, model: ModelRow, many: Images
    ) -> None:
        prediction_id = add(runtime.database, model, many)
        flag = runtime.folder / "draining"
        flag.parent.mkdir(parents=True, exist_ok=True)
        row = self.disturb(runtime, prediction_id, flag.touch)
        assert (row.state, row.attempt, row.failures) == ("pending", 1, 0)
        assert row.lease_owner is None

    def test_a_killed_child_costs_an_attempt(
        self, runtime: Runtime, model: ModelRow, many: Images
    ) -> None:
        prediction_id = add(runtime.database, model, many)
        row = self.disturb(runtime, prediction_id, lambda: kill_child(runtime))
        assert (row.state, row.failures, row.error) == ("pending", 1, None)


def kill_child(runtime: Runtime) -> None:
    """Kill the predictor that works in this runtime's folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "worker.predictor" in command and str(runtime.settings.scratch_dir) in command:
            os.kill(int(entry.name), signal.SIGKILL)


def test_an_attempt_that_cannot_store_its_lines_is_charged(
    runtime: Runtime, model: ModelRow, archive: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(runtime.store, "put_file", refuse)
    row = predict(runtime, add(runtime.database, model, archive))
    assert (row.state, row.failures, row.results_sha256) == ("pending", 1, None)
