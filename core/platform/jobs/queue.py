"""The queue as its jobs see it: who is claimed next, and when about.

The database knows of a worker's slot only while a job holds it, and that is enough: while jobs
wait, slots that could take one are not idle for longer than a poll. So a queue of jobs is laid out
over the slots that are busy now, each free when its job says that it will be done.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow
from core.platform.jobs.states import HELD
from core.types import JobState

#: Which queued job is claimed first; the index `ix_jobs_queue` has the state and this.
CLAIM_ORDER = (JobRow.priority.desc(), JobRow.created_at, JobRow.id)

_HELD = tuple(state.value for state in HELD)
#: How many of the newest successes say how long a job usually takes.
_RECENT = 50


@dataclass(frozen=True)
class Place:
    """Where a queued job stands.

    Attributes:
        position: how many queued jobs are claimed before it.
        starts_at: when it will start about, unix seconds on the database's clock; None when
            nothing is known to tell it from. Never in the past.
    """

    position: int
    starts_at: float | None


def find_places(session: Session, jobs: Sequence[JobRow]) -> dict[str, Place]:
    """Return where the queued ones among these jobs stand, by id.

    Takes four statements for any number of jobs, and none when no job is queued.
    """
    queued = [job.id for job in jobs if job.state == JobState.QUEUED]
    if not queued:
        return {}
    position = func.row_number().over(order_by=CLAIM_ORDER) - 1
    ranked = (
        select(JobRow.id, position.label("position"))
        .where(JobRow.state == JobState.QUEUED)
        .subquery()
    )
    wanted = select(ranked.c.id, ranked.c.position).where(ranked.c.id.in_(queued))
    positions = {job_id: int(place) for job_id, place in session.execute(wanted)}
    if not positions:
        return {}
    starts = _forecast(session, max(positions.values()) + 1)
    return {job_id: Place(place, starts[place]) for job_id, place in positions.items()}


def lay_out(free_in_s: Sequence[float], duration_s: float | None, count: int) -> list[float | None]:
    """Return in how many seconds each of the first `count` jobs of a queue starts.

    Each job takes the slot that is free first, and keeps it for `duration_s`.

    Args:
        free_in_s: in how many seconds each slot is free.
        duration_s: how long a job takes; None when that is unknown, and with it every start but
            the first on each slot.
        count: how many jobs.
    """
    slots = [max(0.0, seconds) for seconds in free_in_s]
    heapq.heapify(slots)
    starts: list[float | None] = []
    while slots and len(starts) < count:
        start = heapq.heappop(slots)
        starts.append(start)
        if duration_s is not None:
            heapq.heappush(slots, start + duration_s)
    return starts + [None] * (count - len(starts))


@dataclass(frozen=True)
class _Holder:
    """A job that a live worker has: how long for, and how long it will take, in seconds."""

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


def _forecast(session: Session, count: int) -> list[float | None]:
    """Return when each of the first `count` queued jobs starts, unix seconds."""
    now_s = session.scalars(select(db_now())).one()
    holders = _list_holders(session, now_s)
    duration_s = _find_typical_duration(session) if holders else None
    if duration_s is None:
        # None has succeeded yet: what the running ones expect of themselves.
        expected = [h.elapsed_s + h.eta_s for h in holders if h.eta_s is not None]
        duration_s = median(expected) if expected else None
    free_in_s = [free for h in holders if (free := h.free_in_s(duration_s)) is not None]
    waits_s = lay_out(free_in_s, duration_s, count)
    return [None if wait_s is None else now_s + wait_s for wait_s in waits_s]


def _list_holders(session: Session, now_s: float) -> list[_Holder]:
    live = select(JobRow.state, JobRow.started_at, JobRow.progress).where(
        JobRow.state.in_(_HELD), JobRow.lease_expires_at >= now_s
    )
    return [
        _Holder(
            is_running=state == JobState.RUNNING,
            elapsed_s=0.0 if started_at is None else max(0.0, now_s - started_at),
            eta_s=_read_eta(progress),
        )
        for state, started_at, progress in session.execute(live)
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
