"""Attempts whose blobs are collected before a row names them, and what an attempt rings for."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.clock import monotonic_s
from core.platform.collection.blobs import Collection, collect_blob, collect_blobs
from core.platform.collection.naming import BlobCollectedError
from core.platform.datasets import repository as datasets
from core.platform.doorbell import TRAIN_TASK, VALIDATE_TASK
from core.platform.storage.base import Blob
from core.settings import Settings
from core.types import DatasetState
from tests.integration.platform.garbage import (
    PausingStore,
    add_named,
    find_broken_archives,
    put_old,
    wait_a_moment,
)
from tests.integration.platform.rows import (
    add_dataset,
    add_job,
    claim,
    dataset_of,
    job_of,
    models_of,
)
from worker.ending import Ending, Limits, Outcome
from worker.runtime import Runtime
from worker.supervisor import Supervisor
from worker.training import TrainingAttempt
from worker.validation import ValidationAttempt

DONE = Outcome(Ending.DONE, {"type": "done", "metrics": {"test_accuracy": 0.5}})
CRASH = {"code": "process_died", "message": "it crashed", "class": "system"}


class Bell:
    """Remembers the rings."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, task: str) -> bool:
        self.rung.append(task)
        return True


class HastyStore(PausingStore):
    """A store whose blobs of one kind are swept away as soon as they are there."""

    swept = b""

    def put_file(self, path: Path) -> Blob:
        is_swept = bool(self.swept) and path.read_bytes() == self.swept
        blob = super().put_file(path)
        if is_swept:
            self.delete(blob.sha256)
        return blob


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    runtime = Runtime(settings)
    runtime.store = HastyStore(tmp_path / "data" / "blobs")
    runtime.doorbell = Bell()
    yield runtime
    runtime.database.dispose()


@pytest.fixture
def store(runtime: Runtime) -> HastyStore:
    assert isinstance(runtime.store, HastyStore)
    return runtime.store


@pytest.fixture
def bell(runtime: Runtime) -> Bell:
    assert isinstance(runtime.doorbell, Bell)
    return runtime.doorbell


@pytest.fixture
def training(runtime: Runtime) -> TrainingAttempt:
    add_job(runtime.database)
    return TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())


@pytest.fixture
def validation(runtime: Runtime, store: HastyStore) -> ValidationAttempt:
    dataset_id = add_dataset(runtime.database, DatasetState.PENDING)
    with runtime.database.write() as session:
        row = datasets.get_dataset(session, dataset_id)
        row.archive_sha256 = put_old(store, b"archive")
        claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=60)
    assert claimed is not None
    return ValidationAttempt(runtime, claimed, claimed_s=monotonic_s())


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    out = tmp_path / "workdir" / "out"
    out.mkdir(parents=True)
    for name in ("adapter.safetensors", "README.md", "images_64.npy"):
        (out / name).write_bytes(name.encode())
    (out / "config.json").write_text('{"backbone": {"name": "starter"}, "classes": ["a"]}')
    (out / "evaluation.json").write_text("{}")
    (out / "report.json").write_text("{}")
    manifest = {"classes": ["a"], "items": [{"split": "train"}]}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out.parent


def supervise(attempt: TrainingAttempt | ValidationAttempt, workdir: Path) -> Supervisor:
    """A supervisor whose child has ended."""
    return Supervisor(
        "worker.trainer",
        workdir,
        database=attempt._runtime.database,
        renew=attempt._renew,
        renewed_s=monotonic_s(),
        limits=Limits(heartbeat_s=100, fence_s=100, progress_timeout_s=100),
        is_draining=lambda: False,
        on_message=attempt._on_message,
    )


class TestCollected:
    @pytest.mark.parametrize("name", ["adapter.safetensors", "config.json", "evaluation.json"])
    def test_no_model_names_a_file_that_was_swept_away(
        self,
        runtime: Runtime,
        store: HastyStore,
        training: TrainingAttempt,
        workdir: Path,
        name: str,
    ) -> None:
        store.swept = (workdir / "out" / name).read_bytes()
        with pytest.raises(BlobCollectedError):
            training._conclude(DONE, supervise(training, workdir), workdir)
        assert models_of(runtime.database) == []
        # Its caller takes that for a fault of ours: the attempt is repeated.
        assert job_of(runtime.database, training._claim.row_id).state == "running"

    def test_no_dataset_names_a_cache_that_was_swept_away(
        self, runtime: Runtime, store: HastyStore, training: TrainingAttempt, workdir: Path
    ) -> None:
        store.swept = b"pixels"
        (workdir / "images_224.npy").write_bytes(b"pixels")
        write = training._store_cache(workdir / "images_224.npy", 224)
        with pytest.raises(BlobCollectedError), runtime.database.write() as session:
            write(session)
        job = job_of(runtime.database, training._claim.row_id)
        assert dataset_of(runtime.database, job.dataset_id).caches == {}

    @pytest.mark.parametrize("name", ["manifest.json", "images_64.npy"])
    def test_no_dataset_names_a_file_that_was_swept_away(
        self,
        runtime: Runtime,
        store: HastyStore,
        validation: ValidationAttempt,
        workdir: Path,
        name: str,
    ) -> None:
        store.swept = (workdir / "out" / name).read_bytes()
        done = Outcome(Ending.DONE, {"type": "done"})
        with pytest.raises(BlobCollectedError):
            validation._conclude(done, supervise(validation, workdir), workdir / "out")
        assert dataset_of(runtime.database, validation._claim.row_id).state == "validating"


def test_a_rejected_archive_is_left_to_the_sweeps(
    runtime: Runtime, store: HastyStore, validation: ValidationAttempt, workdir: Path
) -> None:
    failure = {"type": "failed", "code": "image_truncated", "message": "bad", "class": "user"}
    supervisor = supervise(validation, workdir)
    validation._conclude(Outcome(Ending.FAILED, failure), supervisor, workdir / "out")
    dataset = dataset_of(runtime.database, validation._claim.row_id)
    assert (dataset.state, store.exists(dataset.archive_sha256)) == ("invalid", True)
    assert collect_blob(runtime.database, store, dataset.archive_sha256)


def test_a_rejected_archive_that_is_uploaded_again_is_not_lost(
    runtime: Runtime, store: HastyStore, validation: ValidationAttempt, workdir: Path
) -> None:
    """The upload comes between the last look at who else needs the bytes and their deletion."""
    archive_sha256 = dataset_of(runtime.database, validation._claim.row_id).archive_sha256
    with ThreadPoolExecutor(1) as pool:

        def upload_again() -> None:
            store.put_bytes(b"archive")
            wait_a_moment(pool.submit(add_named, runtime.database, store, archive_sha256).done)

        store.before_deletion = upload_again
        failure = {"type": "failed", "code": "image_truncated", "message": "bad", "class": "user"}
        supervisor = supervise(validation, workdir)
        validation._conclude(Outcome(Ending.FAILED, failure), supervisor, workdir / "out")
        collect_blobs(runtime.database, store, Collection(), grace_s=0)
    assert store.before_deletion is None
    assert find_broken_archives(runtime.database, store) == []


class TestRings:
    @pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.CRASHED])
    def test_a_job_that_is_handed_back_is_rung_for(
        self, bell: Bell, training: TrainingAttempt, workdir: Path, ending: Ending
    ) -> None:
        training._conclude(Outcome(ending, CRASH), supervise(training, workdir), workdir)
        assert bell.rung == [TRAIN_TASK]

    @pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.CRASHED])
    def test_so_is_a_dataset(
        self, bell: Bell, validation: ValidationAttempt, workdir: Path, ending: Ending
    ) -> None:
        supervisor = supervise(validation, workdir)
        validation._conclude(Outcome(ending, CRASH), supervisor, workdir / "out")
        assert bell.rung == [VALIDATE_TASK]
