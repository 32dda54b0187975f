"""One sweep: what it puts right, rings for and removes; alone, beside another, and in trouble."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from core.platform.collection.blobs import Budget
from core.platform.collection.log import list_sweeps
from core.platform.datasets import repository
from core.platform.db.clock import db_now
from core.platform.db.tables import (
    DatasetRow,
    IdempotencyRow,
    JobRow,
    ModelRow,
    SweepRow,
    TurnRow,
)
from core.platform.doorbell import TRAIN_TASK, VALIDATE_TASK
from core.platform.idempotency import remember
from core.platform.storage.local import LocalStore
from core.settings import Settings
from core.types import DatasetState
from tests.integration.platform.garbage import age, delete_long_ago, put_old
from tests.integration.platform.rows import (
    add_dataset,
    add_job,
    claim,
    dataset_of,
    job_of,
    let_lease_run_out,
    models_of,
    publish,
)
from worker import sweeper
from worker.runtime import Runtime
from worker.sweeper import sweep
from worker.workdirs import hold_worker_folder


class Bell:
    """Remembers the rings."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, task: str) -> bool:
        self.rung.append(task)
        return True


def build_runtime(tmp_path: Path, database_url: str, **changes: object) -> Runtime:
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "data", "database_url": database_url, **changes}
    )
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    return Runtime(settings)


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    runtime = build_runtime(tmp_path, sqlite_url)
    yield runtime
    runtime.database.dispose()


@pytest.fixture
def broker_runtime(tmp_path: Path, sqlite_url: str) -> Iterator[tuple[Runtime, Bell]]:
    runtime = build_runtime(tmp_path, sqlite_url, broker_url="redis://127.0.0.1:1/0")
    runtime.doorbell = bell = Bell()
    yield runtime, bell
    runtime.database.dispose()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def last_sweeps(runtime: Runtime) -> list[SweepRow]:
    with runtime.database.read() as session:
        return list_sweeps(session, after=0, limit=10)


def lose_a_job(runtime: Runtime) -> str:
    job_id = add_job(runtime.database)
    claim(runtime.database)
    let_lease_run_out(runtime.database, job_id)
    return job_id


class TestLeases:
    def test_expired_ones_of_jobs_and_datasets_end(self, runtime: Runtime) -> None:
        dataset_id = add_dataset(runtime.database, DatasetState.PENDING)
        with runtime.database.write() as session:
            repository.claim_dataset(session, owner="host:1", ttl_s=60)
        lost, live = add_job(runtime.database), add_job(runtime.database)
        assert {claim(runtime.database).row_id, claim(runtime.database).row_id} == {lost, live}
        let_lease_run_out(runtime.database, dataset_id, DatasetRow)
        let_lease_run_out(runtime.database, lost)
        assert sweep(runtime).counts["expired_leases"] == 2
        assert dataset_of(runtime.database, dataset_id).state == "pending"
        assert job_of(runtime.database, lost).state == "queued"
        assert job_of(runtime.database, live).state == "running"

    def test_the_limit_of_attempts_is_the_settings(self, tmp_path: Path, sqlite_url: str) -> None:
        runtime = build_runtime(tmp_path, sqlite_url, max_attempts=1)
        job_id = lose_a_job(runtime)
        sweep(runtime)
        assert job_of(runtime.database, job_id).state == "failed"
        runtime.database.dispose()


class TestRings:
    def test_what_was_sent_back_is_rung_for_at_once(
        self, broker_runtime: tuple[Runtime, Bell]
    ) -> None:
        runtime, bell = broker_runtime
        with runtime.database.write() as session:
            session.add(TurnRow(name="ring", due_at=2e9 * 2))  # not this sweep's turn
        lose_a_job(runtime)
        sweep(runtime)
        assert bell.rung == [TRAIN_TASK]

    def test_what_waits_is_rung_for_once_in_an_interval(
        self, broker_runtime: tuple[Runtime, Bell]
    ) -> None:
        runtime, bell = broker_runtime
        for _ in range(3):
            add_job(runtime.database)
        add_dataset(runtime.database, DatasetState.PENDING)
        assert sweep(runtime).counts["rings"] == 4
        assert sorted(bell.rung) == sorted([TRAIN_TASK] * 3 + [VALIDATE_TASK])
        assert "rings" not in sweep(runtime).counts

    def test_a_long_queue_wakes_no_more_than_a_few(
        self, broker_runtime: tuple[Runtime, Bell]
    ) -> None:
        runtime, bell = broker_runtime
        dataset_id = add_dataset(runtime.database)
        for _ in range(40):
            add_job(runtime.database, dataset_id)
        sweep(runtime)
        assert bell.rung == [TRAIN_TASK] * 16

    def test_a_broker_that_takes_no_ring_is_not_asked_for_each(
        self, broker_runtime: tuple[Runtime, Bell], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A frozen one holds each up for seconds, and with it the end of the worker."""
        runtime, bell = broker_runtime
        for _ in range(3):
            add_job(runtime.database)
        monkeypatch.setattr(bell, "ring", bell.rung.append)  # which returns None
        assert "rings" not in sweep(runtime).counts
        assert bell.rung == [TRAIN_TASK]

    def test_without_a_broker_nobody_is_rung_for(self, runtime: Runtime) -> None:
        add_job(runtime.database)
        assert "rings" not in sweep(runtime).counts


class TestScratch:
    def test_folders_of_dead_workers_and_attempts_are_removed(self, runtime: Runtime) -> None:
        scratch_dir = runtime.settings.scratch_dir
        live = scratch_dir / "slots-other-host-7"
        descriptor = hold_worker_folder(live)
        of_the_release_before = scratch_dir / f"worker-{os.getppid()}"
        kept = [runtime.folder, of_the_release_before, scratch_dir / "uploads"]
        gone = [
            scratch_dir / "slots-other-host-8",
            scratch_dir / f"worker-{dead_pid()}",
            scratch_dir / "attempt-ftjob_1-1",
        ]
        for folder in (*kept, *gone):
            folder.mkdir()
            (folder / "file").touch()
        counts = sweep(runtime).counts
        os.close(descriptor)
        assert (counts["worker_folders"], counts["attempt_folders"]) == (2, 1)
        assert sorted(scratch_dir.iterdir()) == sorted([*kept, live])

    def test_leftovers_of_killed_uploads_are_removed_when_they_are_old(
        self, runtime: Runtime
    ) -> None:
        scratch_dir = runtime.settings.scratch_dir
        dead, young, live = (scratch_dir / f"upload-{name}" for name in ("dead", "young", "live"))
        for path in (dead, young, live):
            path.write_bytes(b"half an archive")
        code = (
            "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX);"
            "print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(live)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as uploader:
            assert uploader.stdout is not None
            uploader.stdout.readline()
            age(dead)
            age(live)
            assert sweep(runtime).counts["abandoned_uploads"] == 1
            assert sorted(scratch_dir.glob("upload-*")) == [live, young]
            uploader.kill()
            uploader.wait()
            assert sweep(runtime).counts["abandoned_uploads"] == 1
        assert list(scratch_dir.glob("upload-*")) == [young]


def litter(runtime: Runtime) -> dict[str, int]:
    """One or more of everything that a sweep collects; return what it should count."""
    database, store = runtime.database, runtime.store
    assert isinstance(store, LocalStore)
    for _ in range(3):
        lose_a_job(runtime)
    for number in range(4):
        put_old(store, b"%d" % number)
    incoming = runtime.settings.data_dir / "blobs" / "incoming"
    for path in (incoming / "half", runtime.settings.scratch_dir / "upload-dead"):
        path.write_bytes(b"half")
        age(path)
    (incoming / "being-written").write_bytes(b"half")
    (runtime.settings.scratch_dir / "attempt-ftjob_1-1").mkdir()
    with database.write() as session:
        for key in ("a", "b"):
            remember(session, key, "0" * 64, "ds_1")
        session.execute(update(IdempotencyRow).values(created_at=db_now() - 90_000))
        remember(session, "young", "0" * 64, "ds_1")
    add_job(database)
    publish(database, claim(database))
    (model,) = models_of(database)
    delete_long_ago(database, ModelRow, model.id)
    dataset_id = add_dataset(database)
    delete_long_ago(database, DatasetRow, dataset_id)
    return {
        "expired_leases": 3,
        "abandoned_uploads": 1,
        "attempt_folders": 1,
        "idempotency_keys": 2,
        "deleted_models": 1,
        "deleted_datasets": 1,
        "partial_blobs": 1,
        "blobs": 4,
        "bytes": 4,
        "blobs_seen": 4,
        "bytes_seen": 4,
    }


class TestWhole:
    def test_everything_is_counted_and_written_down(self, runtime: Runtime) -> None:
        expected = litter(runtime)
        result = sweep(runtime)
        assert (dict(result.counts), result.faults, result.has_walked) == (expected, {}, True)
        (row,) = last_sweeps(runtime)
        assert (row.counts, row.faults, row.owner) == (expected, {}, runtime.owner)

    def test_a_sweep_with_nothing_to_tell_writes_nothing_down(self, runtime: Runtime) -> None:
        sweep(runtime)
        assert len(last_sweeps(runtime)) == 1  # the walk through the store
        sweep(runtime)
        assert len(last_sweeps(runtime)) == 1

    def test_the_line_in_the_log_has_the_figures(
        self, runtime: Runtime, caplog: pytest.LogCaptureFixture
    ) -> None:
        put_old(runtime.store, b"orphan")  # type: ignore[arg-type]
        with caplog.at_level("INFO", logger=sweeper.__name__):
            sweep(runtime)
        (line,) = [text for text in caplog.messages if text.startswith("sweep ")]
        assert {"blobs=1", "bytes=6", "blobs_seen=1", "faults=0"} <= set(line.split())

    def test_two_at_once_do_everything_once(self, tmp_path: Path, database_url: str) -> None:
        runtimes = [build_runtime(tmp_path, database_url) for _ in range(2)]
        expected = litter(runtimes[0])
        together = threading.Barrier(2)

        def run(runtime: Runtime) -> sweeper.SweepResult:
            together.wait()
            return sweep(runtime)

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(run, runtimes))
        assert results[0].counts + results[1].counts == expected
        assert [result.faults for result in results] == [{}, {}]
        assert sorted(result.has_walked for result in results) == [False, True]
        with runtimes[0].database.read() as session:
            failures = session.scalars(select(JobRow.failures).where(JobRow.model_id.is_(None)))
            assert list(failures) == [1, 1, 1]
        for runtime in runtimes:
            runtime.database.dispose()

    def test_partial_blobs_are_looked_for_once_in_an_interval(
        self, tmp_path: Path, sqlite_url: str
    ) -> None:
        runtime = build_runtime(tmp_path, sqlite_url, collect_interval_s=600)
        store = LocalStore(runtime.settings.data_dir / "blobs")
        asked: list[float] = []
        store.remove_abandoned = lambda *, older_than_s: asked.append(older_than_s) or 0  # type: ignore[method-assign]
        runtime.store = store
        sweep(runtime)
        sweep(runtime)
        assert asked == [runtime.settings.collect_grace_s]
        age(runtime.folder / "partial-blobs-removed", 601)
        sweep(runtime)
        assert len(asked) == 2
        runtime.database.dispose()

    def test_a_fault_in_one_part_leaves_the_others_at_work(
        self, runtime: Runtime, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = litter(runtime)

        class Broken(LocalStore):
            def remove_abandoned(self, *, older_than_s: float) -> int:
                raise PermissionError("read-only file system")

        runtime.store = Broken(runtime.settings.data_dir / "blobs")
        del expected["partial_blobs"]
        result = sweep(runtime)
        assert dict(result.counts) == expected
        assert result.faults == {"partial_blobs": "PermissionError: read-only file system"}
        assert last_sweeps(runtime)[0].faults == result.faults
        assert "partial_blobs" in caplog.text

    def test_a_database_that_is_away_stops_no_worker(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail() -> None:
            raise OperationalError("BEGIN", None, ConnectionError("gone"))

        monkeypatch.setattr(runtime.database, "write", fail)
        result = sweep(runtime)
        assert result.faults.keys() == {"leases", "webhooks", "turn"}

    def test_a_walk_that_was_cut_short_goes_on_with_the_next_sweep(
        self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(3):
            put_old(runtime.store, b"%d" % number)  # type: ignore[arg-type]
        collect = sweeper.collect_blobs

        def collect_two(*args: object, **options: object) -> None:
            collect(*args, **options, budget=Budget(blobs=2))  # type: ignore[arg-type]

        monkeypatch.setattr(sweeper, "collect_blobs", collect_two)
        assert [sweep(runtime).counts["blobs"] for _ in range(3)] == [2, 1, 0]
