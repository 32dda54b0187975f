"""A job that runs for too long is ended, and says with which numbers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from core.clock import monotonic_s
from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow
from core.platform.jobs import attempts
from core.platform.jobs.events import list_events
from core.settings import Settings
from tests.integration.platform.rows import add_job, claim, job_of, let_lease_run_out, lose
from worker.runtime import Runtime
from worker.time_limit import TimeLimit, find_time_limit
from worker.training import TrainingAttempt


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate(
        {"data_dir": tmp_path / "data", "database_url": sqlite_url, "max_job_s": 1000}
    )
    runtime = Runtime(settings)
    yield runtime
    runtime.database.dispose()


@pytest.mark.parametrize(
    ("own", "general", "expected"),
    [
        (None, 0.0, None),
        (None, 50.0, TimeLimit(50.0, 7.0, asked_for=False)),
        (20.0, 0.0, TimeLimit(20.0, 7.0, asked_for=True)),
        (20.0, 50.0, TimeLimit(20.0, 7.0, asked_for=True)),
        (90.0, 50.0, TimeLimit(50.0, 7.0, asked_for=False)),
    ],
)
def test_the_lower_limit_counts(
    own: float | None, general: float, expected: TimeLimit | None
) -> None:
    settings = Settings.model_validate({"max_job_s": general})
    assert find_time_limit(JobRow(max_seconds=own, ran_s=7.0), settings) == expected


def test_the_attempts_before_count() -> None:
    limit = TimeLimit(100.0, 80.0, asked_for=True)
    assert limit.find_overrun(20.0) is None
    error = limit.find_overrun(20.5)
    assert error is not None
    assert (error["code"], error["class"]) == ("time_limit_exceeded", "user")
    assert (error["ran_s"], error["limit_s"]) == (100.5, 100.0)


def test_ended_attempts_add_up(runtime: Runtime) -> None:
    job_id = add_job(runtime.database)
    for number, seconds in enumerate((30, 50), 1):
        claimed = claim(runtime.database)
        with runtime.database.write() as session:
            session.execute(update(JobRow).values(claimed_at=db_now() - seconds))
        with runtime.database.write() as session:
            attempts.release(session, claimed)
        job = job_of(runtime.database, job_id)
        assert job.ran_s == pytest.approx([30, 80][number - 1], abs=1)
        assert job.claimed_at is None


def test_a_lost_worker_has_run_until_its_lease_ran_out(runtime: Runtime) -> None:
    add_job(runtime.database)
    claimed = claim(runtime.database)
    let_lease_run_out(runtime.database, claimed.row_id)
    with runtime.database.write() as session:
        changed = {"claimed_at": db_now() - 500, "lease_expires_at": db_now() - 400}
        session.execute(update(JobRow).values(changed))
    attempts_lost = claimed
    with runtime.database.write() as session:
        assert attempts.expire_attempts(session, max_attempts=3) == [attempts_lost.row_id]
    assert job_of(runtime.database, claimed.row_id).ran_s == pytest.approx(100, abs=1)


def test_a_job_over_its_limit_fails_and_is_not_tried_again(runtime: Runtime) -> None:
    """Real child and supervisor; the attempt before it has used the time up."""
    job_id = add_job(runtime.database)
    lose(runtime.database, claim(runtime.database))
    with runtime.database.write() as session:
        session.execute(update(JobRow).values(ran_s=5.0, max_seconds=4.0))
    attempt = TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())
    attempt._build_request = lambda _inputs: {"job_id": attempt._get_job().id}  # type: ignore[method-assign]

    attempt.run()

    job = job_of(runtime.database, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "time_limit_exceeded"
    with runtime.database.read() as session:
        last = list_events(session, job_id, after=0, limit=1, descending=True)[0]
    assert (last.type, last.data["limit_s"]) == ("job.failed", 4.0)
