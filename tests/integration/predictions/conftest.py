"""A worker's runtime, and a real model of the starter student to predict with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.platform.db.tables import ModelRow
from core.settings import Settings
from tests.integration.api.models import CLASSES, Files, build_files
from tests.integration.predictions.rows import add_model_row
from worker.runtime import Runtime


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model's two files."""
    return build_files(tmp_path_factory.mktemp("model"))


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    """What a pool process of a worker has at hand."""
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path / "data",
            "database_url": sqlite_url,
            "device": "cpu",
            "threads": 1,
            "inference_precision": "fp32",
            "inference_max_batch": 4,
            "inference_decode_threads": 2,
            "lease_ttl_s": 40.0,
        }
    )
    settings.scratch_dir.mkdir(parents=True)
    runtime = Runtime(settings)
    yield runtime
    runtime.database.dispose()


@pytest.fixture
def model(runtime: Runtime, files: Files) -> ModelRow:
    """The model, published."""
    return add_model_row(
        runtime.database,
        backbone="idat_starter_student",
        adapter_sha256=runtime.store.put_bytes(files.adapter).sha256,
        config_sha256=runtime.store.put_bytes(files.config).sha256,
        classes=CLASSES,
    )
