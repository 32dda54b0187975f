"""Cancelling in every state, again and again, and while the job changes hands."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from sqlalchemy import event

from core.errors import NotFoundError
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming, control, events
from core.platform.jobs.control import JobTerminalError
from core.platform.leases import LeaseLostError
from core.types import JobState
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_job,
    add_job_in,
    cancel,
    claim,
    columns_of,
    job_of,
    lose,
)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("validating_files", "cancelled"),
        ("queued", "cancelled"),
        ("running", "cancelling"),
        ("pausing", "cancelling"),
        ("paused", "cancelled"),
        ("cancelling", "cancelling"),
        ("cancelled", "cancelled"),
    ],
)
def test_cancelling_is_repeatable(database: Database, state: str, expected: str) -> None:
    job_id = add_job_in(database, JobState(state)).row_id
    assert cancel(database, job_id) == expected
    once = columns_of(job_of(database, job_id))
    with database.read() as session:
        events_once = len(events.list_events(session, job_id, after=0, limit=100))
    assert cancel(database, job_id) == expected
    assert columns_of(job_of(database, job_id)) == once
    with database.read() as session:
        assert len(events.list_events(session, job_id, after=0, limit=100)) == events_once
    assert (once["finished_at"] is not None) == (expected == "cancelled")
    assert (once["lease_expires_at"] is not None) == (expected == "cancelling")


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_an_ended_job_refuses(database: Database, state: str) -> None:
    job_id = add_job_in(database, JobState(state)).row_id
    before = columns_of(job_of(database, job_id))
    with pytest.raises(JobTerminalError, match=state):
        cancel(database, job_id)
    assert columns_of(job_of(database, job_id)) == before


def test_an_unknown_job_is_not_found(database: Database) -> None:
    with pytest.raises(NotFoundError):
        cancel(database, "ftjob_none")


def test_the_heartbeat_tells_the_attempt(database: Database) -> None:
    add_job(database)
    claimed = claim(database)
    cancel(database, claimed.row_id)
    with database.write() as session:
        assert attempts.report_progress(session, claimed, ttl_s=TTL_S) == "cancelling"
    with database.write() as session:
        attempts.finish_cancel(session, claimed)
    job = job_of(database, claimed.row_id)
    assert (job.state, job.lease_owner, job.lease_expires_at) == ("cancelled", None, None)
    assert job.finished_at is not None


def test_a_cancelling_job_whose_worker_died_is_cancelled_not_tried_again(
    database: Database,
) -> None:
    claimed = add_job_in(database, JobState.CANCELLING)
    lose(database, claimed)
    job = job_of(database, claimed.row_id)
    assert (job.state, job.failures, job.error) == ("cancelled", 0, None)
    assert job.finished_at is not None
    with database.write() as session:
        assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is None


def test_a_finish_without_a_request_is_refused(database: Database) -> None:
    add_job(database)
    claimed = claim(database)
    with pytest.raises(LeaseLostError), database.write() as session:
        attempts.finish_cancel(session, claimed)
    assert job_of(database, claimed.row_id).state == "running"


@pytest.mark.parametrize("hand_back", ["release", "give_up_attempt"])
def test_a_cancel_is_not_lost_between_hands(postgresql: Database, hand_back: str) -> None:
    """The attempt hands the job back right after the request's first look at it.

    SQLite has one writer at a time; there is no such moment.
    """
    job_id = add_job(postgresql)
    claimed = claim(postgresql)

    def end_attempt() -> None:
        with postgresql.write() as session:
            if hand_back == "release":
                attempts.release(session, claimed)
            else:
                attempts.give_up_attempt(session, claimed, CRASH, max_attempts=3)

    with ThreadPoolExecutor(1) as pool:
        endings: list[Future[None]] = []

        def interfere(*_args: object) -> None:
            if not endings:
                endings.append(pool.submit(end_attempt))
                # One that the request holds back ends after it.
                wait(endings, timeout=1.0)

        with postgresql.write() as session:
            event.listen(session.connection(), "after_cursor_execute", interfere)
            answer = control.request_cancel(session, job_id).state
        error = endings[0].exception()
    expected = "cancelled" if error is None else "cancelling"
    assert answer == job_of(postgresql, job_id).state == expected
    assert error is None or isinstance(error, LeaseLostError)


def test_a_cancel_and_an_end_that_race_agree(database: Database) -> None:
    """Succeeded with a model, or cancelled without: never both, never neither."""
    for _ in range(5):
        add_job(database)
        claimed = claim(database)
        barrier = threading.Barrier(2)

        def ask(barrier: threading.Barrier = barrier, job_id: str = claimed.row_id) -> str:
            barrier.wait()
            try:
                return cancel(database, job_id)
            except JobTerminalError:
                return "refused"

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            barrier.wait()
            try:
                with database.write() as session:
                    attempts.fail(session, claimed, CRASH)
                ended = "failed"
            except LeaseLostError:
                ended = "cancelling"
            assert asking.result() == ("refused" if ended == "failed" else "cancelling")
        assert job_of(database, claimed.row_id).state == ended
