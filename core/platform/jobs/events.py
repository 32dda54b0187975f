"""The log of a job and its metrics: append-only, read in pages."""

from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from core.platform.db.tables import JobEpochRow, JobEventRow


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    event_type: str = "message",
    level: str = "info",
    attempt: int = 0,
    data: dict[str, Any] | None = None,
) -> None:
    """Append one line to a job's log."""
    session.execute(
        insert(JobEventRow).values(
            job_id=job_id,
            attempt=attempt,
            level=level,
            type=event_type,
            message=_storable(message),
            data=data or {},
        )
    )


def _storable(text: str) -> str:
    """Replace what no database takes as text: lone surrogates, and NUL on PostgreSQL."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def record_epoch(session: Session, job_id: str, epoch: int, metrics: dict[str, Any]) -> None:
    """Write the metrics of an epoch; a resumed attempt replaces them by the same values."""
    session.execute(
        delete(JobEpochRow).where(JobEpochRow.job_id == job_id, JobEpochRow.epoch == epoch)
    )
    session.execute(insert(JobEpochRow).values(job_id=job_id, epoch=epoch, metrics=metrics))


def list_events(
    session: Session, job_id: str, *, after: int, limit: int, descending: bool = False
) -> list[JobEventRow]:
    """Return up to `limit` events beyond the event id `after` (0 for the start)."""
    order = JobEventRow.id.desc() if descending else JobEventRow.id
    query = select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(order).limit(limit)
    if after:
        query = query.where(JobEventRow.id < after if descending else JobEventRow.id > after)
    return list(session.scalars(query))


def list_epochs(session: Session, job_id: str) -> list[JobEpochRow]:
    """Return the metrics of all epochs so far, in order."""
    query = select(JobEpochRow).where(JobEpochRow.job_id == job_id).order_by(JobEpochRow.epoch)
    return list(session.scalars(query))
