"""The log of sweeps: what they did, for operators."""

from collections.abc import Mapping

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.tables import SweepRow


def record_sweep(
    session: Session,
    *,
    owner: str,
    duration_s: float,
    counts: Mapping[str, int],
    faults: Mapping[str, str],
) -> None:
    """Write down what a sweep did that ends now.

    Args:
        session: a write transaction.
        owner: the worker, `host:pid`.
        duration_s: how long it took.
        counts: what was done -> how often.
        faults: part that failed -> why.
    """
    row = {
        "owner": owner,
        "counts": dict(counts),
        "faults": dict(faults),
        "started_at": db_now() - duration_s,
    }
    session.execute(insert(SweepRow).values(row))


def list_sweeps(
    session: Session, *, after: int, limit: int, descending: bool = True
) -> list[SweepRow]:
    """Return up to `limit` sweeps beyond the one numbered `after` (0 for the start)."""
    query = select(SweepRow).order_by(SweepRow.id.desc() if descending else SweepRow.id)
    if after:
        query = query.where(SweepRow.id < after if descending else SweepRow.id > after)
    return list(session.scalars(query.limit(limit)))
