"""Which queued job is next, of all the projects'.

*Between projects* the order is fair by stride scheduling, in starts of jobs. There is a virtual
time; a project's `pass` is the virtual time at which its last job was claimed. Its next one is due
1/weight later, but never before now: a project that had nothing to do has saved nothing up. The
project that is due first is next, and now is when the last of all claims was due. *Within a
project* it is the higher priority, then the older job.

A project with as many jobs running as it may is passed over.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    ScalarSelect,
    and_,
    case,
    cast,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from core.platform.db.tables import JobRow, ProjectRow
from core.platform.jobs.states import HELD
from core.types import JobState

#: Which of a project's queued jobs is claimed first; `ix_jobs_project_queue` has it.
ORDER_IN_PROJECT: tuple[Any, ...] = (JobRow.priority.desc(), JobRow.created_at, JobRow.id)

_QUEUED = JobState.QUEUED.value
_HELD = tuple(sorted(state.value for state in HELD))


def choose_next(
    max_running_jobs: int, fits: ColumnElement[bool] | None = None
) -> ScalarSelect[Any]:
    """Return the query for the id of the job that is next; it locks the first of each project.

    A job that somebody else has locked, to cancel it for example, is skipped.
    """
    first = select(JobRow.id).where(JobRow.project_id == ProjectRow.id, JobRow.state == _QUEUED)
    if fits is not None:
        first = first.where(fits)
    first = first.order_by(*ORDER_IN_PROJECT).limit(1).with_for_update(skip_locked=True)
    # OFFSET 0 keeps the planner from merging this into the query around it, where it would look for
    # the first job twice.
    ranked = (
        select(
            first.correlate(ProjectRow).scalar_subquery().label("job_id"),
            _due().label("due"),
            func.coalesce(ProjectRow.pass_, -1.0).label("last"),
            ProjectRow.id.label("project_id"),
        )
        .where(_may_start(max_running_jobs))
        .offset(0)
        .subquery()
    )
    return (
        select(ranked.c.job_id)
        .where(ranked.c.job_id.is_not(None))
        .order_by(ranked.c.due, ranked.c.last, ranked.c.project_id)
        .limit(1)
        .scalar_subquery()
    )


def _may_start(max_running_jobs: int) -> ColumnElement[bool]:
    """Return the condition that a project has fewer jobs running than it may."""
    job = aliased(JobRow)
    running = (
        select(func.count())
        .where(job.project_id == ProjectRow.id, job.state.in_(_HELD))
        .correlate(ProjectRow)
        .scalar_subquery()
    )
    limit = func.coalesce(ProjectRow.max_running_jobs, max_running_jobs)
    return or_(limit == 0, running < limit)


def _due() -> ColumnElement[float]:
    """Return the virtual time at which a project's next job is due."""
    other = aliased(ProjectRow)
    now = select(func.coalesce(func.max(other.pass_), 0.0)).scalar_subquery()
    after_last = ProjectRow.pass_ + cast(1.0, Float(53)) / ProjectRow.weight
    return case((and_(ProjectRow.pass_.is_not(None), after_last > now), after_last), else_=now)


def charge_project(session: Session, job_id: str) -> None:
    """Note that a job of its project has just been claimed. To be called in the same turn."""
    owner = select(JobRow.project_id).where(JobRow.id == job_id).scalar_subquery()
    statement = update(ProjectRow).where(ProjectRow.id == owner).values({ProjectRow.pass_: _due()})
    session.execute(statement.execution_options(synchronize_session=False))
