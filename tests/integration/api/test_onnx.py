"""A model as one ONNX file over HTTP, and the folder that keeps such files."""

import hashlib
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from api.onnx_files import OnnxFiles, export_apart
from api.resolution import ServedModel
from core.errors import ConflictError, UnavailableError
from core.ml.backbones.load import WeightsMismatchError
from core.ml.export.onnx import OnnxFile
from core.platform.storage.base import BlobStore
from core.platform.storage.local import LocalStore
from tests.integration.api.models import Files, build_files, build_picture, classify, import_model
from tests.integration.api.rig import SERVES, Rig


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return build_files(tmp_path_factory.mktemp("bundle"))


@pytest.mark.slow
def test_the_file_answers_as_the_service_does(start_rig: Callable[..., Rig], files: Files) -> None:
    rig = start_rig(**SERVES)
    import_model(rig.client, files)
    answer = rig.client.get("/v1/models/animals/onnx")
    assert answer.status_code == 200, answer.text
    assert 0 <= float(answer.headers["x-max-abs-delta"]) <= 1e-4
    session = onnxruntime.InferenceSession(answer.content, providers=["CPUExecutionProvider"])
    picture = build_picture()
    pixels = np.asarray(Image.open(io.BytesIO(picture)), dtype=np.float32) / 255
    images = ((pixels - 0.5) / 0.5).transpose(2, 0, 1)[None]
    (logits,) = session.run(["logits"], {"pixel_values": np.repeat(images, 3, axis=0)})
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum()
    served = classify(rig.client, "animals", picture).json()
    classes = ["ant", "bee", "cat", "dog"]
    expected = dict(zip(classes, probabilities.tolist(), strict=True))
    for score in served:
        assert score["score"] == pytest.approx(expected[score["label"]], abs=1e-4)

    kept = list((rig.settings.data_dir / "onnx").iterdir())
    assert [path.stat().st_size for path in kept] == [len(answer.content)]
    etag = answer.headers["etag"]
    assert etag == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    again = rig.client.get("/v1/models/animals@v1/onnx", headers={"Range": "bytes=0-9"})
    assert (again.status_code, again.content) == (206, answer.content[:10])
    assert again.headers["x-max-abs-delta"] == answer.headers["x-max-abs-delta"]
    unchanged = rig.client.get("/v1/models/animals/onnx", headers={"If-None-Match": etag})
    assert unchanged.status_code == 304
    assert rig.client.get("/v1/models/none/onnx").status_code == 404


def test_what_the_exporting_process_refuses_comes_back(files: Files) -> None:
    backbone = json.loads(files.config)["backbone"] | {"weights_sha256": "0" * 64}
    config = files.change(backbone=backbone).config
    with pytest.raises(WeightsMismatchError, match="trained on") as refusal:
        export_apart(files.adapter, config, None)
    assert refusal.value.code == "weights_mismatch"


class Made:
    """Stands in for the exporter: says what it was asked for."""

    def __init__(self, size_bytes: int = 100) -> None:
        self.count = 0
        self._size_bytes = size_bytes

    def __call__(self, adapter: bytes, config: bytes, weights_dir: Path | None) -> OnnxFile:
        self.count += 1
        return OnnxFile(bytes([self.count]) * self._size_bytes, self.count * 1e-7)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return LocalStore(tmp_path / "blobs")


def serve(store: BlobStore, files: Files, name: str) -> ServedModel:
    """A model of its own: its config ends with another space."""
    config = files.config + b" " * len(name)
    return ServedModel(
        id=name,
        name=name,
        project_id="default",
        adapter_sha256=store.put_bytes(files.adapter).sha256,
        config_sha256=store.put_bytes(config).sha256,
        backbone="starter",
        classes=("a", "b"),
    )


def read(kept: OnnxFiles, model: ServedModel) -> tuple[bytes, float]:
    made = anyio.run(kept.open, model)
    with made.file:
        return made.file.read(), made.max_delta


class TestFolder:
    def test_makes_a_file_once(self, store: BlobStore, files: Files, tmp_path: Path) -> None:
        export = Made()
        kept = OnnxFiles(
            tmp_path / "onnx", max_bytes=1000, store=store, weights_dir=None, export=export
        )
        model, other = serve(store, files, "a"), serve(store, files, "bb")
        first = read(kept, model)
        assert first == (b"\1" * 100, 1e-7)
        assert read(kept, model) == first
        assert read(kept, other)[0] == b"\2" * 100
        assert export.count == 2

    def test_drops_what_was_wanted_longest_ago(
        self, store: BlobStore, files: Files, tmp_path: Path
    ) -> None:
        export = Made()
        kept = OnnxFiles(
            tmp_path / "onnx", max_bytes=250, store=store, weights_dir=None, export=export
        )
        a, b, c = (serve(store, files, name) for name in ("a", "bb", "ccc"))
        for model in (a, b, a, c):
            read(kept, model)
        assert len(list((tmp_path / "onnx").iterdir())) == 2
        read(kept, a)
        assert export.count == 3
        read(kept, b)
        assert export.count == 4

    def test_sends_but_does_not_keep_what_is_over_the_limit(
        self, store: BlobStore, files: Files, tmp_path: Path
    ) -> None:
        kept = OnnxFiles(
            tmp_path / "onnx", max_bytes=0, store=store, weights_dir=None, export=Made()
        )
        assert len(read(kept, serve(store, files, "a"))[0]) == 100
        assert list((tmp_path / "onnx").iterdir()) == []

    def test_other_weights_are_a_conflict(
        self, store: BlobStore, files: Files, tmp_path: Path
    ) -> None:
        def export(adapter: bytes, config: bytes, weights_dir: Path | None) -> OnnxFile:
            raise WeightsMismatchError("others")

        kept = OnnxFiles(
            tmp_path / "onnx", max_bytes=9, store=store, weights_dir=None, export=export
        )
        with pytest.raises(ConflictError, match="others"):
            read(kept, serve(store, files, "a"))

    def test_a_line_of_exports_is_not_joined_without_end(
        self, store: BlobStore, files: Files, tmp_path: Path
    ) -> None:
        # The first export ends when all others have asked.
        asked = threading.Event()

        def export(adapter: bytes, config: bytes, weights_dir: Path | None) -> OnnxFile:
            assert asked.wait(30)
            return OnnxFile(b"x", 0.0)

        kept = OnnxFiles(
            tmp_path / "onnx", max_bytes=9, store=store, weights_dir=None, export=export
        )
        models = [serve(store, files, "n" * (number + 1)) for number in range(8)]
        outcomes: list[str] = []
        refused = anyio.Event()

        async def ask(model: ServedModel) -> None:
            try:
                (await kept.open(model)).file.close()
            except UnavailableError as error:
                outcomes.append(error.code)
                if len(outcomes) == 3:  # one is made, four wait
                    refused.set()
            else:
                outcomes.append("made")

        async def ask_all() -> None:
            async with anyio.create_task_group() as group:
                for model in models:
                    group.start_soon(ask, model)
                await refused.wait()
                asked.set()

        anyio.run(ask_all)
        assert sorted(outcomes) == ["made"] * 5 + ["overloaded"] * 3
