"""Many workers claim at once: every job is claimed, none twice."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import DBAPIError

from core.platform.db.engine import Database
from core.platform.db.tables import JobRow
from core.platform.jobs import claiming, control, events, repository
from core.platform.leases import Claim
from core.types import JobState
from tests.integration.platform.rows import (
    TTL_S,
    add_dataset,
    add_job,
    claim,
    job_of,
    lose,
)


def claim_all(database: Database, owner: str, start: Callable[[], object]) -> list[Claim]:
    """Claim until nothing is queued, beginning together with the others."""
    start()
    claims = []
    while True:
        with database.write() as session:
            claimed = claiming.claim_job(session, owner=owner, ttl_s=TTL_S)
            left = len(repository.list_jobs(session, after=None, limit=1000, state="queued"))
        if claimed is not None:
            claims.append(claimed)
        elif not left:
            return claims


def claim_all_in_process(url: str, owner: str, barrier: Any, results: Any) -> None:
    database = Database(url)
    results.put([(c.row_id, c.attempt) for c in claim_all(database, owner, barrier.wait)])
    database.dispose()


def assert_claimed_once(database: Database, job_ids: list[str], claims: list[Claim]) -> None:
    assert sorted(c.row_id for c in claims) == sorted(job_ids)
    assert {c.attempt for c in claims} == {1}
    for claimed in claims:
        job = job_of(database, claimed.row_id)
        assert (job.state, job.attempt, job.lease_owner) == ("running", 1, claimed.owner)


class TestClaim:
    @pytest.mark.parametrize("workers", [2, 8])
    def test_threads_claim_every_job_once(self, database: Database, workers: int) -> None:
        dataset_id = add_dataset(database)
        job_ids = [add_job(database, dataset_id) for _ in range(20)]
        barrier = threading.Barrier(workers)
        with ThreadPoolExecutor(workers) as pool:
            shares = pool.map(
                lambda n: claim_all(database, f"host:{n}", barrier.wait), range(workers)
            )
            claims = [claimed for share in shares for claimed in share]
        assert_claimed_once(database, job_ids, claims)

    def test_processes_claim_every_job_once(self, database_url: str, database: Database) -> None:
        dataset_id = add_dataset(database)
        job_ids = [add_job(database, dataset_id) for _ in range(12)]
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(2), context.SimpleQueue()
        processes = [
            context.Process(
                target=claim_all_in_process, args=(database_url, f"host:{n}", barrier, results)
            )
            for n in range(2)
        ]
        for process in processes:
            process.start()
        shares = [results.get() for _ in processes]
        for process in processes:
            process.join()
        assert sorted(row_id for share in shares for row_id, _ in share) == sorted(job_ids)
        assert {attempt for share in shares for _, attempt in share} == {1}

    def test_an_empty_queue_gives_nothing(self, database: Database) -> None:
        with database.write() as session:
            assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is None

    def test_the_oldest_job_comes_first(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        job_ids = [add_job(database, dataset_id) for _ in range(3)]
        with database.write() as session:
            for age, job_id in zip([2.0, 3.0, 1.0], job_ids, strict=True):
                aged = update(JobRow).where(JobRow.id == job_id).values(created_at=age)
                session.execute(aged)
        claimed = [claim(database).row_id for _ in range(3)]
        assert claimed == [job_ids[2], job_ids[0], job_ids[1]]

    def test_a_claim_sets_lease_owner_and_start(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database, owner="host:7")
        job = job_of(database, claimed.row_id)
        assert (job.state, job.attempt, job.failures) == ("running", 1, 0)
        assert job.lease_owner == "host:7"
        assert job.lease_expires_at is not None
        assert job.started_at is not None
        assert job.lease_expires_at - job.started_at == pytest.approx(TTL_S, abs=0.01)

    def test_a_later_claim_raises_the_attempt_and_keeps_the_start(self, database: Database) -> None:
        add_job(database)
        first = claim(database)
        started_at = job_of(database, first.row_id).started_at
        lose(database, first)
        second = claim(database)
        assert (first.attempt, second.attempt) == (1, 2)
        assert job_of(database, first.row_id).started_at == started_at

    def test_every_claim_leaves_an_event(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database, owner="host:7")
        with database.read() as session:
            last = events.list_events(session, claimed.row_id, after=0, limit=1, descending=True)
        assert [(e.type, e.attempt) for e in last] == [("attempt.started", 1)]
        assert "host:7" in last[0].message

    def test_a_claim_that_is_rolled_back_leaves_the_job_to_others(self, database: Database) -> None:
        add_job(database)

        def claim_and_die() -> None:
            with database.write() as session:
                assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is not None
                raise RuntimeError("died before the commit")

        with pytest.raises(RuntimeError, match="died"):
            claim_and_die()
        assert claim(database).attempt == 1

    def test_a_claim_and_a_cancel_that_race_agree(self, database: Database) -> None:
        dataset_id = add_dataset(database)
        for _ in range(10):
            job_id = add_job(database, dataset_id)
            barrier = threading.Barrier(2)

            def cancel(job_id: str = job_id, barrier: threading.Barrier = barrier) -> str:
                barrier.wait()
                with database.write() as session:
                    return control.request_cancel(session, job_id).state

            def try_claim(barrier: threading.Barrier = barrier) -> Claim | None:
                barrier.wait()
                with database.write() as session:
                    return claiming.claim_job(session, owner="host:1", ttl_s=TTL_S)

            with ThreadPoolExecutor(2) as pool:
                cancelling, claim_tried = pool.submit(cancel), pool.submit(try_claim)
                answer, claimed = cancelling.result(), claim_tried.result()
            expected = JobState.CANCELLED if claimed is None else JobState.CANCELLING
            assert answer == job_of(database, job_id).state == expected


def test_a_row_that_somebody_changes_does_not_hide_the_next(postgresql: Database) -> None:
    """While a cancellation is not yet committed, a claim gets the next job without waiting."""
    dataset_id = add_dataset(postgresql)
    first, second = add_job(postgresql, dataset_id), add_job(postgresql, dataset_id)
    with postgresql.write() as one, postgresql.write() as other:
        control.request_cancel(one, first)
        claimed = claiming.claim_job(other, owner="host:1", ttl_s=TTL_S)
    assert claimed is not None
    assert claimed.row_id == second
    assert job_of(postgresql, first).state == "cancelled"


def test_a_claim_that_stalls_holds_the_others_up_for_seconds_only(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims take turns; a process that stops in the middle of one loses its turn."""
    monkeypatch.setattr(claiming, "_STALLED_CLAIM_MS", 300)
    job_id = add_job(postgresql)
    stalled = postgresql.write()
    assert claiming.claim_job(stalled.__enter__(), owner="host:1", ttl_s=TTL_S) is not None
    assert claim(postgresql, owner="host:2").row_id == job_id
    with pytest.raises(DBAPIError):
        stalled.__exit__(None, None, None)
    assert job_of(postgresql, job_id).lease_owner == "host:2"
