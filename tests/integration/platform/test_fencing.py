"""Writes of an overtaken attempt hit nothing, and a model is published whole and once."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.platform.db.engine import Database
from core.platform.db.tables import JobEventRow, ModelRow
from core.platform.jobs import attempts, control
from core.platform.leases import Claim, LeaseLostError
from core.types import JobState
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_job,
    add_job_in,
    build_model,
    claim,
    columns_of,
    job_of,
    lose,
    models_of,
    publish,
)

Write = Callable[[Session, Claim], Any]

FENCED_WRITES: dict[str, Write] = {
    "report_progress": lambda s, c: attempts.report_progress(
        s, c, ttl_s=TTL_S, progress={"step": 1}
    ),
    "record_checkpoint": lambda s, c: attempts.record_checkpoint(s, c, sha256="e" * 64, step=1),
    "publish": lambda s, c: attempts.publish(s, c, build_model(s, c.row_id)),
    "fail": lambda s, c: attempts.fail(s, c, CRASH),
    "release": attempts.release,
    "give_up_attempt": lambda s, c: attempts.give_up_attempt(s, c, CRASH, max_attempts=3),
    "finish_cancel": attempts.finish_cancel,
}


def everything(database: Database, job_id: str) -> tuple[Any, ...]:
    """The job, its events and all models."""
    with database.read() as session:
        logged = list(session.scalars(select(JobEventRow.id).where(JobEventRow.job_id == job_id)))
    return columns_of(job_of(database, job_id)), logged, [m.id for m in models_of(database)]


@pytest.fixture(params=FENCED_WRITES)
def write(request: pytest.FixtureRequest) -> Write:
    return FENCED_WRITES[request.param]


def assert_hits_nothing(database: Database, claimed: Claim, write: Write) -> None:
    before = everything(database, claimed.row_id)
    with pytest.raises(LeaseLostError, match=claimed.row_id), database.write() as session:
        write(session, claimed)
    assert everything(database, claimed.row_id) == before


class TestOvertaken:
    def test_by_a_running_attempt(self, database: Database, write: Write) -> None:
        add_job(database)
        first = claim(database)
        lose(database, first)
        claim(database, owner="host:2")
        assert_hits_nothing(database, first, write)

    def test_while_a_cancel_of_the_next_attempt_is_on_its_way(
        self, database: Database, write: Write
    ) -> None:
        add_job(database)
        first = claim(database)
        lose(database, first)
        second = claim(database, owner="host:2")
        with database.write() as session:
            control.request_cancel(session, second.row_id)
        assert_hits_nothing(database, first, write)

    def test_when_the_job_waits_again(self, database: Database, write: Write) -> None:
        add_job(database)
        first = claim(database)
        lose(database, first)
        assert_hits_nothing(database, first, write)

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_when_the_job_has_ended(self, sqlite: Database, write: Write, state: str) -> None:
        assert_hits_nothing(sqlite, add_job_in(sqlite, JobState(state)), write)

    def test_when_nobody_may_have_claimed_it(self, sqlite: Database, write: Write) -> None:
        for state in (JobState.VALIDATING_FILES, JobState.QUEUED):
            assert_hits_nothing(sqlite, add_job_in(sqlite, state), write)


class TestPublish:
    def test_model_and_success_appear_together(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        publish(database, claimed)
        job = job_of(database, claimed.row_id)
        assert [m.job_id for m in models_of(database)] == [job.id]
        assert (job.state, job.model_id) == ("succeeded", models_of(database)[0].id)
        assert (job.lease_owner, job.lease_expires_at) == (None, None)
        assert job.finished_at is not None

    def test_neither_appears_when_the_model_cannot_be_written(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        before = everything(database, claimed.row_id)

        def publish_incomplete(session: Session) -> None:
            model = build_model(session, claimed.row_id)
            model.dataset_id = "ds_none"  # breaks the reference
            attempts.publish(session, claimed, model)

        with pytest.raises(IntegrityError), database.write() as session:
            publish_incomplete(session)
        assert everything(database, claimed.row_id) == before
        publish(database, claimed)
        assert job_of(database, claimed.row_id).state == "succeeded"

    def test_nobody_sees_the_success_before_the_model(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        with database.write() as session:
            attempts.publish(session, claimed, build_model(session, claimed.row_id))
            assert job_of(database, claimed.row_id).state == "running"
            assert models_of(database) == []
        assert len(models_of(database)) == 1

    def test_publishing_twice_leaves_one_model(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        publish(database, claimed)
        with pytest.raises(LeaseLostError):
            publish(database, claimed)
        assert len(models_of(database)) == 1

    def test_the_table_itself_refuses_a_second_model(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        publish(database, claimed)
        with pytest.raises(IntegrityError), database.write() as session:
            session.add(build_model(session, claimed.row_id))
        assert len(models_of(database)) == 1

    def test_the_overtaking_attempt_publishes_alone(self, database: Database) -> None:
        add_job(database)
        first = claim(database)
        lose(database, first)
        second = claim(database, owner="host:2")
        with pytest.raises(LeaseLostError):
            publish(database, first)
        assert models_of(database) == []
        publish(database, second)
        with pytest.raises(LeaseLostError):
            publish(database, first)
        with database.read() as session:
            assert session.scalars(select(ModelRow.job_id)).all() == [first.row_id]

    def test_a_cancelled_job_publishes_nothing(self, database: Database) -> None:
        claimed = add_job_in(database, JobState.CANCELLING)
        with pytest.raises(LeaseLostError):
            publish(database, claimed)
        assert models_of(database) == []


def test_progress_and_checkpoint_are_kept(database: Database) -> None:
    add_job(database)
    claimed = claim(database)
    with database.write() as session:
        progress = {"step": 3, "eta_s": 0.1 + 0.2}
        state = attempts.report_progress(session, claimed, ttl_s=TTL_S, progress=progress)
        attempts.record_checkpoint(session, claimed, sha256="e" * 64, step=3)
    with database.write() as session:
        attempts.report_progress(session, claimed, ttl_s=TTL_S)
    job = job_of(database, claimed.row_id)
    assert state == "running"
    assert job.progress == {"step": 3, "eta_s": 0.1 + 0.2}
    assert (job.checkpoint_sha256, job.checkpoint_step) == ("e" * 64, 3)
