"""The claim: a worker gets the queued job that is next, and that fits into its memory.

Which job is next: `core.platform.jobs.fair_share`. Claims take turns, on PostgreSQL by an advisory
lock: of two at once, each would count one running job too few.

A job that is next and does not fit is passed over for others that do. Small ones that keep coming
would keep it waiting for ever, so after a time the first worker that has to pass it over reserves
itself for it: it starts nothing else until the job fits, which it does when all else on the worker
has ended. One worker at a time reserves itself for a job, so that the others go on. A reservation
is renewed by each look of its worker and runs out without: a dead worker reserves nothing.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, or_, select, text, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow
from core.platform.jobs.events import add_event
from core.platform.jobs.fair_share import charge_project, choose_next
from core.platform.leases import Claim
from core.types import JobState

#: Longer than any worker takes from one look to the next, unless all its slots are busy.
RESERVATION_TTL_S = 60.0

_QUEUED = JobState.QUEUED.value
#: Key of the advisory lock under which claims take turns.
_TURN = 0x1DA7_C1A1
#: A claim whose process stops in the middle of it keeps the others waiting for so long at the most.
_STALLED_CLAIM_MS = 5_000


@dataclass(frozen=True)
class Room:
    """What a worker has free for another job.

    Attributes:
        worker: its name, the same for all its processes.
        free_bytes: memory that its running jobs leave; None when nothing runs on it, and any job
            may start: one that needs more than the worker has would wait for ever otherwise.
        reserve_after_s: how long a job may be passed over because it does not fit, seconds.
    """

    worker: str
    free_bytes: int | None
    reserve_after_s: float


def claim_job(
    session: Session,
    *,
    owner: str,
    ttl_s: float,
    max_running_jobs: int = 0,
    room: Room | None = None,
) -> Claim | None:
    """Claim the queued job that is next for a new attempt, or return None.

    Args:
        session: a write transaction of its own.
        owner: who claims.
        ttl_s: how long the lease lasts without a renewal, seconds.
        max_running_jobs: limit of the projects that have none of their own; 0 for none.
        room: what the worker has free; None if memory is no matter.
    """
    if not session.scalar(select(exists().where(JobRow.state == _QUEUED))):
        return None
    _take_turn(session)
    fits = None
    if room is not None:
        reserved = _find_reserved(session, room, max_running_jobs)
        if reserved is None and room.free_bytes is not None:
            reserved = _reserve_next(session, room, max_running_jobs)
        if reserved is not None and not _has_place(room, reserved):
            _renew(session, room, reserved)
            return None
        if reserved is not None:
            fits = JobRow.id == reserved.id
        elif room.free_bytes is not None:
            fits = JobRow.memory_bytes <= room.free_bytes
    return _claim_next(
        session, owner=owner, ttl_s=ttl_s, max_running_jobs=max_running_jobs, fits=fits
    )


def _take_turn(session: Session) -> None:
    """Wait until no other claim is under way, and keep others waiting until the transaction ends.

    On SQLite every transaction that writes is alone.
    """
    if session.get_bind().dialect.name != "postgresql":
        return
    stalled = text(f"SET LOCAL idle_in_transaction_session_timeout = {_STALLED_CLAIM_MS}")
    session.execute(stalled)
    session.execute(select(func.pg_advisory_xact_lock(_TURN)))


def _claim_next(
    session: Session,
    *,
    owner: str,
    ttl_s: float,
    max_running_jobs: int,
    fits: ColumnElement[bool] | None,
) -> Claim | None:
    extra: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.started_at: func.coalesce(JobRow.started_at, db_now()),
        JobRow.claimed_at: db_now(),
        JobRow.reserved_by: None,
        JobRow.reserved_until: None,
    }
    claim = leases.claim_next(
        session,
        JobRow,
        eligible=_QUEUED,
        active=JobState.RUNNING,
        owner=owner,
        ttl_s=ttl_s,
        candidate=choose_next(max_running_jobs, fits),
        extra=extra,
    )
    if claim is not None:
        charge_project(session, claim.row_id)
        add_event(
            session,
            claim.row_id,
            f"attempt {claim.attempt} started on {owner}",
            event_type="attempt.started",
            attempt=claim.attempt,
        )
    return claim


def _has_place(room: Room, job: JobRow) -> bool:
    return room.free_bytes is None or job.memory_bytes <= room.free_bytes


def _find_reserved(session: Session, room: Room, max_running_jobs: int) -> JobRow | None:
    """Return the job that the worker has reserved itself for and that may still start."""
    reserved = JobRow.reserved_by == room.worker
    wanted = choose_next(max_running_jobs, reserved)
    return session.scalars(
        select(JobRow)
        .where(JobRow.id == wanted, JobRow.reserved_until >= db_now())
        .execution_options(populate_existing=True)
    ).one_or_none()


def _reserve_next(session: Session, room: Room, max_running_jobs: int) -> JobRow | None:
    """Return the job that is next if it does not fit, has waited, and is nobody's reservation."""
    is_free = or_(JobRow.reserved_until.is_(None), JobRow.reserved_until < db_now())
    return session.scalars(
        select(JobRow)
        .where(
            JobRow.id == choose_next(max_running_jobs),
            JobRow.memory_bytes > room.free_bytes,
            JobRow.created_at <= db_now() - room.reserve_after_s,
            is_free,
        )
        .execution_options(populate_existing=True)
    ).one_or_none()


def _renew(session: Session, room: Room, job: JobRow) -> None:
    values = {
        JobRow.reserved_by: room.worker,
        JobRow.reserved_until: db_now() + RESERVATION_TTL_S,
    }
    statement = update(JobRow).where(JobRow.id == job.id, JobRow.state == _QUEUED)
    session.execute(statement.values(values).execution_options(synchronize_session=False))
