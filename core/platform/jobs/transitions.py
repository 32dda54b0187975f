"""The only ways in which a job's state changes; both ask the table in `core.platform.jobs.states`.

The one exception is the claim (queued → running), which is a single statement of its own, in
`core.platform.leases`.
"""

from typing import Any

from sqlalchemy import case, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow
from core.platform.jobs.states import HELD, TERMINAL, TRANSITIONS
from core.platform.leases import Claim
from core.platform.webhooks.outbox import tell_job_end
from core.types import JobState

_HELD = tuple(sorted(state.value for state in HELD))


class ForbiddenTransitionError(Exception):
    """The table has no such edge: a bug of the caller."""


def enter(session: Session, job: JobRow, target: JobState) -> None:
    """Move a job whose row this transaction has locked into another state.

    Raises:
        ForbiddenTransitionError: the table has no such edge.
    """
    origin = JobState(job.state)
    if target not in TRANSITIONS[origin]:
        raise ForbiddenTransitionError(f"job {job.id} cannot go from {origin} to {target}")
    job.state = target.value
    if target in TERMINAL:
        job.finished_at = session.scalar(select(db_now()))
    if origin in HELD and target not in HELD:
        for column, value in _end_of_attempt().items():
            setattr(job, column.key, value)
    session.flush()
    if target in TERMINAL:
        tell_job_end(session, job.id)


def enter_by_attempt(
    session: Session,
    claim: Claim,
    target: JobState,
    values: dict[InstrumentedAttribute[Any], Any] | None = None,
) -> None:
    """Move the claimed job into another state, from wherever the table allows it, fenced.

    Args:
        session: a write transaction.
        claim: the attempt's.
        target: the new state.
        values: further columns to set.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job's state has no such edge.
    """
    origins = tuple(state for state in _HELD if target in TRANSITIONS[JobState(state)])
    changes: dict[InstrumentedAttribute[Any], Any] = {JobRow.state: target.value, **(values or {})}
    if target in TERMINAL:
        changes[JobRow.finished_at] = db_now()
    if target not in HELD:
        changes.update(_end_of_attempt())
    leases.fenced_update(session, JobRow, claim, states=origins, values=changes)
    if target in TERMINAL:
        tell_job_end(session, claim.row_id)


def _end_of_attempt() -> dict[InstrumentedAttribute[Any], Any]:
    """Return what every end of an attempt changes: its time counts, its lease is given up.

    A worker that was lost has run until its lease ran out at the most.
    """
    now = db_now()
    ended_at = case((JobRow.lease_expires_at < now, JobRow.lease_expires_at), else_=now)
    # Neither an attempt of the release before, which notes no beginning, nor a clock that is set
    # back while one runs makes this less.
    ran_s = case((ended_at > JobRow.claimed_at, ended_at - JobRow.claimed_at), else_=0.0)
    return {
        JobRow.ran_s: JobRow.ran_s + ran_s,
        JobRow.claimed_at: None,
        **leases.surrender(JobRow),
    }


def hold(session: Session, claim: Claim) -> JobRow:
    """Lock the claimed job for the rest of the transaction and return it as it is now.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job has ended.
    """
    leases.fenced_update(session, JobRow, claim, states=_HELD, values={})
    return session.get_one(JobRow, claim.row_id, populate_existing=True)
