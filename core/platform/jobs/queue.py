"""The queue as its jobs see it: who is claimed next, and when about.

The database knows of a worker's slot only while a job holds it, and that is enough: while jobs
wait, slots that could take one are not idle for longer than a poll. So the queue is played out over
the slots that are busy now, each free when its job says that it will be done.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow, ProjectRow
from core.platform.jobs.fair_share import ORDER_IN_PROJECT
from core.platform.jobs.forecast import Busy, Share, play_out
from core.platform.jobs.states import HELD
from core.types import JobState

_HELD = tuple(state.value for state in HELD)
#: How many of the newest successes say how long a job usually takes.
_RECENT = 50


@dataclass(frozen=True)
class Place:
    """Where a queued job stands.

    Attributes:
        position: how many queued jobs, of all projects, are claimed before it.
        starts_at: when it will start about, unix seconds on the database's clock; None when
            nothing is known to tell it from. Never in the past.
    """

    position: int
    starts_at: float | None


def find_places(
    session: Session, jobs: Sequence[JobRow], *, max_running_jobs: int = 0
) -> dict[str, Place]:
    """Return where the queued ones among these jobs stand, by id.

    Takes five statements for any number of jobs, and none when no job is queued.

    Args:
        session: any transaction.
        jobs: those to tell of; jobs that are not queued have no place.
        max_running_jobs: limit of the projects that have none of their own; 0 for none.
    """
    wanted = {job.id for job in jobs if job.state == JobState.QUEUED}
    if not wanted:
        return {}
    now_s = session.scalars(select(db_now())).one()
    slots, duration_s = _list_slots(session, now_s)
    starts = play_out(
        _list_queues(session), _list_shares(session, max_running_jobs), slots, duration_s
    )
    return {
        start.job_id: Place(place, None if start.in_s is None else now_s + start.in_s)
        for place, start in enumerate(starts)
        if start.job_id in wanted
    }


def _list_queues(session: Session) -> dict[str, list[str]]:
    queued = select(JobRow.project_id, JobRow.id).where(JobRow.state == JobState.QUEUED)
    queues: dict[str, list[str]] = {}
    for project, job_id in session.execute(queued.order_by(*ORDER_IN_PROJECT)):
        queues.setdefault(project, []).append(job_id)
    return queues


def _list_shares(session: Session, max_running_jobs: int) -> dict[str, Share]:
    columns = (ProjectRow.id, ProjectRow.weight, ProjectRow.max_running_jobs, ProjectRow.pass_)
    return {
        name: Share(weight, max_running_jobs if own_limit is None else own_limit, last)
        for name, weight, own_limit, last in session.execute(select(*columns))
    }


def _list_slots(session: Session, now_s: float) -> tuple[list[Busy], float | None]:
    """Return the slots that are busy, and how long a job takes, seconds."""
    holders = _list_holders(session, now_s)
    duration_s = _find_typical_duration(session) if holders else None
    if duration_s is None:
        # None has succeeded yet: what the running ones expect of themselves.
        expected = [h.elapsed_s + h.eta_s for h in holders if h.eta_s is not None]
        duration_s = median(expected) if expected else None
    return [Busy(h.project, h.free_in_s(duration_s)) for h in holders], duration_s


@dataclass(frozen=True)
class _Holder:
    """A job that a live worker has: how long for, and how long it will take, in seconds."""

    project: str
    is_running: bool
    elapsed_s: float
    eta_s: float | None

    def free_in_s(self, duration_s: float | None) -> float | None:
        """Return in how many seconds it leaves its slot, None when nothing tells."""
        if not self.is_running:
            return 0.0  # it is being stopped
        if self.eta_s is not None:
            return self.eta_s
        return None if duration_s is None else duration_s - self.elapsed_s


def _list_holders(session: Session, now_s: float) -> list[_Holder]:
    columns = (JobRow.project_id, JobRow.state, JobRow.started_at, JobRow.progress)
    live = (
        select(*columns)
        .where(JobRow.state.in_(_HELD), JobRow.lease_expires_at >= now_s)
        .order_by(JobRow.claimed_at, JobRow.id)
    )
    return [
        _Holder(
            project=project,
            is_running=state == JobState.RUNNING,
            elapsed_s=0.0 if started_at is None else max(0.0, now_s - started_at),
            eta_s=_read_eta(progress),
        )
        for project, state, started_at, progress in session.execute(live)
    ]


def _read_eta(progress: Mapping[str, object] | None) -> float | None:
    """Return the seconds to go that the trainer reported last."""
    eta_s = (progress or {}).get("eta_s")
    if not isinstance(eta_s, int | float) or not math.isfinite(eta_s):
        return None
    return max(0.0, float(eta_s))


def _find_typical_duration(session: Session) -> float | None:
    """Return the median duration of those of the newest successes that needed one attempt.

    The others' times include what they spent in the queue or paused.
    """
    newest = (
        select(JobRow.finished_at - JobRow.started_at, JobRow.attempt)
        .where(JobRow.state == JobState.SUCCEEDED)
        # By creation, as an index has it: one by the end would be for this alone. And the attempts
        # are looked at here, so that nothing beyond the newest is read in search of them.
        .order_by(JobRow.created_at.desc())
        .limit(_RECENT)
    )
    durations = [
        seconds
        for seconds, attempt in session.execute(newest)
        if attempt == 1 and seconds is not None
    ]
    return median(durations) if durations else None
