"""One sweep: expired leases, folders of dead attempts, folders of dead workers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.platform.datasets import repository
from core.platform.db.tables import DatasetRow
from core.settings import Settings
from core.types import DatasetState
from tests.integration.platform.rows import (
    add_dataset,
    add_job,
    claim,
    dataset_of,
    job_of,
    let_lease_run_out,
)
from worker.runtime import Runtime
from worker.sweeper import sweep


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    settings.scratch_dir.mkdir(parents=True)
    runtime = Runtime(settings)
    yield runtime
    runtime.database.dispose()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_expired_leases_of_jobs_and_datasets_end(runtime: Runtime) -> None:
    dataset_id = add_dataset(runtime.database, DatasetState.PENDING)
    with runtime.database.write() as session:
        repository.claim_dataset(session, owner="host:1", ttl_s=60)
    lost, live = add_job(runtime.database), add_job(runtime.database)
    assert {claim(runtime.database).row_id, claim(runtime.database).row_id} == {lost, live}
    let_lease_run_out(runtime.database, dataset_id, DatasetRow)
    let_lease_run_out(runtime.database, lost)
    sweep(runtime)
    assert dataset_of(runtime.database, dataset_id).state == "pending"
    assert job_of(runtime.database, lost).state == "queued"
    assert job_of(runtime.database, live).state == "running"


def test_the_limit_of_attempts_is_the_settings(tmp_path: Path, sqlite_url: str) -> None:
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "data", "database_url": sqlite_url, "max_attempts": 1}
    )
    runtime = Runtime(settings)
    job_id = add_job(runtime.database)
    claim(runtime.database)
    let_lease_run_out(runtime.database, job_id)
    sweep(runtime)
    assert job_of(runtime.database, job_id).state == "failed"
    runtime.database.dispose()


def test_folders_of_dead_workers_and_attempts_are_removed(runtime: Runtime) -> None:
    scratch_dir = runtime.settings.scratch_dir
    kept = [runtime.folder, scratch_dir / f"worker-{os.getppid()}", scratch_dir / "uploads"]
    gone = [scratch_dir / f"worker-{dead_pid()}", scratch_dir / "attempt-ftjob_1-1"]
    for folder in (*kept, *gone):
        folder.mkdir()
        (folder / "file").touch()
    sweep(runtime)
    assert sorted(scratch_dir.iterdir()) == sorted(kept)
