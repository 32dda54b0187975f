"""Validation of a dataset runs under the same lease as a job, and moves the waiting jobs on."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.platform.datasets import repository
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow
from core.platform.jobs import control
from core.platform.jobs import repository as jobs
from core.platform.jobs.repository import DatasetUnusableError
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetId, DatasetState
from tests.integration.platform.rows import (
    SPEC,
    TTL_S,
    add_dataset,
    add_job,
    columns_of,
    dataset_of,
    job_of,
    let_lease_run_out,
)

PENDING = DatasetState.PENDING
REPORT = {"summary": {"images": 60}, "errors": [], "warnings": []}


def claim(database: Database, owner: str = "host:1") -> Claim:
    with database.write() as session:
        claimed = repository.claim_dataset(session, owner=owner, ttl_s=TTL_S)
    assert claimed is not None
    return claimed


def mark_ready(session: Session, claimed: Claim) -> None:
    repository.mark_ready(
        session,
        claimed,
        manifest_sha256="1" * 64,
        caches={"224": "2" * 64},
        classes=["a", "b"],
        splits={"train": 40},
        report=REPORT,
    )


def mark_unusable(session: Session, claimed: Claim, state: DatasetState) -> None:
    error = {"code": "images_bad", "message": "all broken"}
    repository.mark_unusable(session, claimed, state=state, error=error, report=REPORT)


def lose(database: Database, claimed: Claim) -> None:
    let_lease_run_out(database, claimed.row_id, DatasetRow)
    with database.write() as session:
        assert repository.expire_attempts(session, max_attempts=3) == [claimed.row_id]


WRITES: dict[str, Callable[[Session, Claim], Any]] = {
    "report_progress": lambda s, c: repository.report_progress(s, c, ttl_s=TTL_S),
    "mark_ready": mark_ready,
    "mark_unusable": lambda s, c: mark_unusable(s, c, DatasetState.INVALID),
    "release": repository.release,
    "give_up_attempt": lambda s, c: repository.give_up_attempt(
        s, c, {"code": "x", "message": "x"}, max_attempts=3
    ),
}


class TestLease:
    def test_racing_workers_claim_every_dataset_once(self, database: Database) -> None:
        ids = [add_dataset(database, PENDING) for _ in range(8)]
        barrier = threading.Barrier(4)

        def claim_some(_n: int) -> list[Claim]:
            barrier.wait()
            claims = []
            for _ in range(4):
                with database.write() as session:
                    claims.append(repository.claim_dataset(session, owner="host:1", ttl_s=TTL_S))
            return [claimed for claimed in claims if claimed is not None]

        with ThreadPoolExecutor(4) as pool:
            claims = [claimed for share in pool.map(claim_some, range(4)) for claimed in share]
        assert sorted(c.row_id for c in claims) == sorted(ids)
        assert {c.attempt for c in claims} == {1}

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_an_overtaken_attempt_writes_nothing(
        self, database: Database, write: Callable[[Session, Claim], Any]
    ) -> None:
        dataset_id = add_dataset(database, PENDING)
        job_id = add_job(database, dataset_id)
        first = claim(database)
        lose(database, first)
        second = claim(database, owner="host:2")
        assert second.attempt == 2
        before = columns_of(dataset_of(database, dataset_id))
        with pytest.raises(LeaseLostError), database.write() as session:
            write(session, first)
        assert columns_of(dataset_of(database, dataset_id)) == before
        assert job_of(database, job_id).state == "validating_files"

    @pytest.mark.parametrize("end", ["ready", "invalid", "failed"])
    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_an_ended_dataset_never_changes(
        self, sqlite: Database, write: Callable[[Session, Claim], Any], end: str
    ) -> None:
        dataset_id = add_dataset(sqlite, PENDING)
        claimed = claim(sqlite)
        with sqlite.write() as session:
            if end == "ready":
                mark_ready(session, claimed)
            else:
                mark_unusable(session, claimed, DatasetState(end))
        before = columns_of(dataset_of(sqlite, dataset_id))
        with pytest.raises(LeaseLostError), sqlite.write() as session:
            write(session, claimed)
        let_lease_run_out(sqlite, dataset_id, DatasetRow)
        with sqlite.write() as session:
            assert repository.claim_dataset(session, owner="host:1", ttl_s=TTL_S) is None
            assert repository.expire_attempts(session, max_attempts=3) == []
        after = columns_of(dataset_of(sqlite, dataset_id))
        assert {**after, "lease_expires_at": None} == before

    def test_a_release_is_not_charged(self, database: Database) -> None:
        dataset_id = add_dataset(database, PENDING)
        for attempt in range(1, 6):
            claimed = claim(database)
            assert claimed.attempt == attempt
            with database.write() as session:
                repository.release(session, claimed)
        dataset = dataset_of(database, dataset_id)
        assert (dataset.state, dataset.failures) == ("pending", 0)
        assert (dataset.lease_owner, dataset.lease_expires_at) == (None, None)

    def test_the_third_loss_or_crash_fails_dataset_and_waiting_jobs(
        self, database: Database
    ) -> None:
        dataset_id = add_dataset(database, PENDING)
        job_id = add_job(database, dataset_id)
        lose(database, claim(database))
        claimed = claim(database)
        crash = {"code": "process_died", "message": "it crashed"}
        with database.write() as session:
            state = repository.give_up_attempt(session, claimed, crash, max_attempts=3)
        assert state == "pending"
        assert job_of(database, job_id).state == "validating_files"
        lose(database, claim(database))
        dataset = dataset_of(database, dataset_id)
        assert (dataset.state, dataset.failures, dataset.attempt) == ("failed", 3, 3)
        assert dataset.error is not None
        assert (dataset.error["code"], dataset.error["attempts"]) == ("worker_lost", 3)
        job = job_of(database, job_id)
        assert job.error is not None
        assert (job.state, job.error["code"], job.error["class"]) == (
            "failed",
            "dataset_not_usable",
            "system",
        )


class TestPromotion:
    def test_ready_queues_the_jobs_that_wait_and_no_others(self, database: Database) -> None:
        dataset_id = add_dataset(database, PENDING)
        waiting = [add_job(database, dataset_id) for _ in range(2)]
        cancelled = add_job(database, dataset_id)
        with database.write() as session:
            control.request_cancel(session, cancelled)
        elsewhere = add_job(database, add_dataset(database, DatasetState.VALIDATING))
        claimed = claim(database)
        with database.write() as session:
            mark_ready(session, claimed)
        dataset = dataset_of(database, dataset_id)
        assert (dataset.state, dataset.classes, dataset.report) == ("ready", ["a", "b"], REPORT)
        assert (dataset.lease_owner, dataset.lease_expires_at) == (None, None)
        assert [job_of(database, j).state for j in waiting] == ["queued", "queued"]
        assert job_of(database, cancelled).state == "cancelled"
        assert job_of(database, elsewhere).state == "validating_files"

    @pytest.mark.parametrize(("state", "to_blame"), [("invalid", "user"), ("failed", "system")])
    def test_an_unusable_dataset_fails_the_jobs_that_wait(
        self, database: Database, state: str, to_blame: str
    ) -> None:
        dataset_id = add_dataset(database, PENDING)
        job_id = add_job(database, dataset_id)
        claimed = claim(database)
        with database.write() as session:
            mark_unusable(session, claimed, DatasetState(state))
        job = job_of(database, job_id)
        assert job.error is not None
        assert (job.state, job.error["class"]) == ("failed", to_blame)
        assert dataset_id in str(job.error["message"])
        assert job.finished_at is not None
        with pytest.raises(DatasetUnusableError, match=dataset_id):
            add_job(database, dataset_id)

    def test_a_job_on_a_ready_dataset_is_queued_at_once(self, database: Database) -> None:
        assert job_of(database, add_job(database)).state == "queued"

    def test_a_job_created_while_its_dataset_becomes_ready_is_not_forgotten(
        self, database: Database
    ) -> None:
        for _ in range(5):
            dataset_id = add_dataset(database, PENDING)
            claimed = claim(database)
            barrier = threading.Barrier(2)

            def create(
                barrier: threading.Barrier = barrier, dataset_id: DatasetId = dataset_id
            ) -> str:
                barrier.wait()
                return add_job(database, dataset_id)

            with ThreadPoolExecutor(1) as pool:
                creation = pool.submit(create)
                barrier.wait()
                with database.write() as session:
                    mark_ready(session, claimed)
                assert job_of(database, creation.result()).state == "queued"

    def test_creation_holds_the_dataset_until_the_job_is_there(self, postgresql: Database) -> None:
        dataset_id = add_dataset(postgresql, PENDING)
        claimed = claim(postgresql)

        def validate() -> None:
            with postgresql.write() as session:
                mark_ready(session, claimed)

        with ThreadPoolExecutor(1) as pool:
            with postgresql.write() as session:
                job = jobs.create_job(
                    session, dataset_id=dataset_id, name="f", spec=SPEC, metadata={}
                )
                assert job.state == "validating_files"
                validation = pool.submit(validate)
                with pytest.raises(TimeoutError):
                    validation.result(timeout=0.5)
            validation.result()
        assert job_of(postgresql, job.id).state == "queued"


def test_a_cache_of_another_size_is_added(database: Database) -> None:
    dataset_id = add_dataset(database, PENDING)
    job_id = add_job(database, dataset_id)
    claimed = claim(database)
    with database.write() as session:
        mark_ready(session, claimed)
    with database.write() as session:
        repository.add_cache(session, job_id=job_id, image_px=256, sha256="3" * 64)
    assert dataset_of(database, dataset_id).caches == {"224": "2" * 64, "256": "3" * 64}
