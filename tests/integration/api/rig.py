"""An API and everything behind it that a test may want to look at, and archives to send it."""

import io
import zipfile
from dataclasses import dataclass

from fastapi import FastAPI
from PIL import Image
from sqlalchemy import func, select
from starlette.testclient import TestClient

from core.platform.datasets import repository as datasets
from core.platform.db.base import Base
from core.platform.db.engine import Database
from core.settings import Settings
from core.types import DatasetState

TESTS_URL = "http://127.0.0.1"

#: Settings of a process that serves what it imports, and computes the same on every machine.
SERVES: dict[str, object] = {
    "roles": ["control", "inference"],
    "device": "cpu",
    "threads": 1,
    "inference_precision": "fp32",
}


def build_png(shade: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


def build_zip(classes: int = 2, images: int = 3) -> bytes:
    """An archive of class folders."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for label in range(classes):
            for index in range(images):
                archive.writestr(f"class{label}/{index}.png", build_png(10 * label + index))
    return buffer.getvalue()


@dataclass
class Rig:
    """An API and everything behind it that a test may want to look at."""

    settings: Settings
    app: FastAPI
    client: TestClient
    database: Database

    def count_rows(self) -> dict[str, int]:
        """Rows per table, empty tables left out, and the projects: one is there from the start."""
        with self.database.read() as session:
            counts = {
                name: session.scalar(select(func.count()).select_from(table)) or 0
                for name, table in Base.metadata.tables.items()
            }
        del counts["projects"]
        return {name: count for name, count in counts.items() if count}

    def list_files(self) -> list[str]:
        """Every file of the scratch folder and the store."""
        folders = (self.settings.scratch_dir, self.settings.data_dir / "blobs")
        return sorted(str(p) for folder in folders for p in folder.rglob("*") if p.is_file())

    def assert_untouched(self) -> None:
        """Nothing was left behind: no file, no blob, no row."""
        assert self.list_files() == []
        assert self.count_rows() == {}

    def upload(self, archive: bytes | None = None, **form: str) -> str:
        """Upload an archive; return the dataset's id."""
        files = {"file": ("flowers.zip", archive or build_zip())}
        answer = self.client.post("/v1/datasets", files=files, data=form)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def finish_validation(self, *, state: DatasetState = DatasetState.READY) -> None:
        """End the validation of the oldest pending dataset, as a worker would."""
        with self.database.write() as session:
            claim = datasets.claim_dataset(session, owner="test", ttl_s=60)
            assert claim is not None
            if state is DatasetState.READY:
                datasets.mark_ready(
                    session,
                    claim,
                    manifest_sha256="1" * 64,
                    caches={},
                    classes=["class0", "class1"],
                    splits={"train": 40, "val": 10, "test": 10},
                    report={"summary": {"images": 60}, "errors": [], "warnings": []},
                )
            else:
                error = {"code": "images_bad", "message": "all broken"}
                datasets.mark_unusable(session, claim, state=state, error=error)
