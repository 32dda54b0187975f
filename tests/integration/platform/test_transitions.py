"""What can be done to a job is what the table of transitions says, no more and no less."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from core.errors import ConflictError
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming, control, promotion, repository
from core.platform.jobs.states import TERMINAL, TRANSITIONS
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetState, JobState
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_job_in,
    build_model,
    columns_of,
    expire,
    job_of,
    let_lease_run_out,
)

Act = Callable[[Database, Claim], Any]


def in_a_write(function: Callable[[Session, Claim], Any]) -> Act:
    def act(database: Database, claimed: Claim) -> None:
        with database.write() as session:
            function(session, claimed)

    return act


def sweep(database: Database, claimed: Claim, *, max_attempts: int) -> None:
    # Rows that nobody holds get an old lease too: the state alone must protect them.
    let_lease_run_out(database, claimed.row_id)
    expire(database, max_attempts=max_attempts)


def promote(session: Session, claimed: Claim, *, state: DatasetState) -> None:
    dataset_id = repository.get_job(session, claimed.row_id).dataset_id
    promotion.promote_waiting(session, dataset_id, state)


def resume_unready(session: Session, claimed: Claim) -> None:
    job = repository.get_job(session, claimed.row_id)
    repository.get_dataset_of(session, job).state = DatasetState.PENDING.value
    session.flush()
    control.request_resume(session, claimed.row_id)


ACTS: dict[str, Act] = {
    "claim": in_a_write(lambda s, _c: claiming.claim_job(s, owner="host:2", ttl_s=TTL_S)),
    "heartbeat": in_a_write(lambda s, c: attempts.report_progress(s, c, ttl_s=TTL_S)),
    "checkpoint": in_a_write(
        lambda s, c: attempts.record_checkpoint(s, c, sha256="e" * 64, step=1)
    ),
    "publish": in_a_write(lambda s, c: attempts.publish(s, c, build_model(s, c.row_id))),
    "fail": in_a_write(lambda s, c: attempts.fail(s, c, CRASH)),
    "release": in_a_write(attempts.release),
    "crash": in_a_write(lambda s, c: attempts.give_up_attempt(s, c, CRASH, max_attempts=3)),
    "last crash": in_a_write(lambda s, c: attempts.give_up_attempt(s, c, CRASH, max_attempts=1)),
    "finish cancel": in_a_write(attempts.finish_cancel),
    "ask to cancel": in_a_write(lambda s, c: control.request_cancel(s, c.row_id)),
    "ask to pause": in_a_write(lambda s, c: control.request_pause(s, c.row_id)),
    "ask to resume": in_a_write(lambda s, c: control.request_resume(s, c.row_id)),
    "ask to resume before its dataset is ready": in_a_write(resume_unready),
    "ask to retry": in_a_write(lambda s, c: control.retry_job(s, c.row_id)),
    "ask for a priority": in_a_write(lambda s, c: control.change_priority(s, c.row_id, 7)),
    "expire": functools.partial(sweep, max_attempts=3),
    "last expiry": functools.partial(sweep, max_attempts=1),
    "dataset ready": in_a_write(functools.partial(promote, state=DatasetState.READY)),
    "dataset invalid": in_a_write(functools.partial(promote, state=DatasetState.INVALID)),
    "dataset failed": in_a_write(functools.partial(promote, state=DatasetState.FAILED)),
}


def try_everything(database: Database, state: JobState) -> set[JobState]:
    """Do each thing to a job in this state; return the states that jobs got into."""
    reached = set()
    for act in ACTS.values():
        claimed = add_job_in(database, state)
        before = columns_of(job_of(database, claimed.row_id))
        with contextlib.suppress(LeaseLostError, ConflictError):
            act(database, claimed)
        after = columns_of(job_of(database, claimed.row_id))
        reached.add(JobState(after["state"]))
        if state in TERMINAL:
            lease = {"lease_expires_at": None}  # which `sweep` above has set itself
            assert {**after, **lease} == {**before, **lease}
        # Out of the way of the next claim, which takes the oldest: this job, and one made of it.
        with database.write() as session:
            for job in repository.list_jobs(session, after=None, limit=100, state="queued"):
                control.request_cancel(session, job.id)
    return reached - {state}


@pytest.mark.parametrize("state", list(JobState))
def test_exactly_the_listed_edges_can_be_taken(database: Database, state: JobState) -> None:
    assert try_everything(database, state) == TRANSITIONS[state]
