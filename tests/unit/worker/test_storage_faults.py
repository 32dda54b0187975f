"""A store that fails, lies or is slow, under an attempt at a job."""

import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.errors import StorageFullError
from core.platform.jobs import attempts
from core.platform.jobs.events import list_events
from core.platform.storage.base import Blob
from core.platform.storage.errors import (
    BlobCorruptError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from core.platform.storage.local import LocalStore
from core.settings import Settings
from core.types import DatasetState
from tests.integration.platform.rows import add_dataset, add_job, claim, dataset_of, job_of
from worker.ending import Limits
from worker.runtime import Runtime
from worker.supervisor import Supervisor
from worker.training import TrainingAttempt
from worker.validation import validate_next


class FailingStore(LocalStore):
    """A folder that fails as it is told."""

    put_fault: Exception | None = None
    fetch_fault: Exception | None = None
    delete_fault: Exception | None = None

    def put_file(self, path: Path) -> Blob:
        if self.put_fault:
            raise self.put_fault
        return super().put_file(path)

    def delete(self, sha256: str) -> None:
        if self.delete_fault:
            raise self.delete_fault
        super().delete(sha256)

    def fetch(self, sha256: str, *, into: Path | None = None) -> Path:
        if self.fetch_fault:
            raise self.fetch_fault
        return super().fetch(sha256, into=into)


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    runtime = Runtime(settings)
    runtime.store = FailingStore(tmp_path / "blobs")
    yield runtime
    runtime.database.dispose()


@pytest.fixture
def store(runtime: Runtime) -> FailingStore:
    assert isinstance(runtime.store, FailingStore)
    return runtime.store


@pytest.fixture
def attempt(runtime: Runtime) -> TrainingAttempt:
    add_job(runtime.database)
    return TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())


def told(runtime: Runtime, job_id: str) -> str:
    """Everything that the job's events say."""
    with runtime.database.read() as session:
        events = list_events(session, job_id, after=0, limit=1000)
        return "\n".join(f"{event.level}: {event.message} {event.data}" for event in events)


def offer_checkpoint(attempt: TrainingAttempt, folder: Path, step: int) -> None:
    path = folder / f"checkpoint-{step}"
    path.write_bytes(b"%d" % step)
    message = {"type": "checkpoint", "path": str(path), "step": step}
    writes = attempt._on_message(message)
    with attempt._runtime.database.write() as session:
        for write in writes:
            write(session)
    assert not path.exists()


class TestCheckpoints:
    @pytest.mark.parametrize(
        "fault",
        [
            StoreUnavailableError("no answer"),
            StoreMisconfiguredError("no right to write"),
            StorageFullError("full"),
        ],
    )
    def test_one_that_cannot_be_stored_costs_no_attempt(
        self, attempt: TrainingAttempt, store: FailingStore, tmp_path: Path, fault: Exception
    ) -> None:
        offer_checkpoint(attempt, tmp_path, 1)
        store.put_fault = fault
        offer_checkpoint(attempt, tmp_path, 2)
        job = job_of(attempt._runtime.database, attempt._claim.row_id)
        assert (job.state, job.checkpoint_step) == ("running", 1)
        assert store.exists(str(job.checkpoint_sha256))
        expected = f"warning: the checkpoint of step 2 could not be stored: {fault}"
        assert expected in told(attempt._runtime, job.id)
        store.put_fault = None
        offer_checkpoint(attempt, tmp_path, 3)
        assert job_of(attempt._runtime.database, job.id).checkpoint_step == 3

    def test_one_that_cannot_be_deleted_holds_nothing_up(
        self, attempt: TrainingAttempt, store: FailingStore, tmp_path: Path
    ) -> None:
        store.delete_fault = StoreUnavailableError("no answer")
        for step in (1, 2, 3):
            offer_checkpoint(attempt, tmp_path, step)
            with attempt._runtime.database.write() as session:
                attempt._renew(session, None)
        job = job_of(attempt._runtime.database, attempt._claim.row_id)
        assert (job.state, job.checkpoint_step) == ("running", 3)

    def test_a_damaged_one_is_dropped_and_the_job_starts_over(
        self, attempt: TrainingAttempt, store: FailingStore, tmp_path: Path
    ) -> None:
        sha256 = store.put_bytes(b"damaged").sha256
        store.fetch_fault = BlobCorruptError("not those bytes")
        assert attempt._fetch_checkpoint(sha256, tmp_path) is None
        assert not store.exists(sha256)
        store.fetch_fault = None
        sound = store.put_bytes(b"sound").sha256
        assert attempt._fetch_checkpoint(sound, tmp_path) == str(store.fetch(sound))


class TestBeforeTheChild:
    def test_an_attempt_without_its_files_is_charged_and_the_last_says_why(
        self, runtime: Runtime, store: FailingStore
    ) -> None:
        dataset_id = add_dataset(runtime.database, DatasetState.PENDING)
        store.fetch_fault = StoreUnavailableError("s3://bucket cannot be reached")
        states = []
        for _ in range(runtime.settings.max_attempts):
            assert validate_next(runtime)
            states.append(dataset_of(runtime.database, dataset_id).state)
        assert states == ["pending", "pending", "failed"]
        error = dataset_of(runtime.database, dataset_id).error
        assert error is not None
        assert (error["code"], error["class"]) == ("store_unavailable", "system")
        assert error["message"] == "s3://bucket cannot be reached"


class TestSlowStore:
    def test_the_lease_is_renewed_while_a_message_is_dealt_with(
        self, runtime: Runtime, attempt: TrainingAttempt, tmp_path: Path
    ) -> None:
        renewed = threading.Event()

        def renew(session: Session, progress: dict[str, Any] | None) -> str:
            state = attempts.report_progress(session, attempt._claim, ttl_s=60, progress=progress)
            renewed.set()
            return state

        def store_slowly(_message: dict[str, Any]) -> list[Any]:
            assert renewed.wait(timeout=30), "nobody renewed the lease meanwhile"
            return []

        supervisor = Supervisor(
            "worker.trainer",
            tmp_path,
            database=runtime.database,
            renew=renew,
            renewed_s=monotonic_s(),
            limits=Limits(heartbeat_s=0.1, fence_s=100, progress_timeout_s=100),
            is_draining=lambda: False,
            on_message=store_slowly,
        )
        messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        messages.put({"type": "checkpoint"})
        with subprocess.Popen(["sleep", "60"]) as child:
            assert supervisor._take_message(messages, child)
            child.kill()
