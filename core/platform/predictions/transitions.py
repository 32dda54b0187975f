"""The only ways in which a batch prediction's state changes; both ask the table in `states`.

The one exception is the claim (pending → running), which is a single statement of its own, in
`core.platform.leases`.
"""

from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.leases import Claim
from core.platform.predictions.states import HELD, TERMINAL, TRANSITIONS
from core.platform.webhooks.outbox import tell_prediction_end
from core.types import BatchPredictionState

HELD_VALUES = tuple(sorted(state.value for state in HELD))


class ForbiddenTransitionError(Exception):
    """The table has no such edge: a bug of the caller."""


def enter(session: Session, row: BatchPredictionRow, target: BatchPredictionState) -> None:
    """Move a prediction whose row this transaction has locked into another state.

    Raises:
        ForbiddenTransitionError: the table has no such edge.
    """
    origin = BatchPredictionState(row.state)
    if target not in TRANSITIONS[origin]:
        raise ForbiddenTransitionError(f"{row.id} cannot go from {origin} to {target}")
    row.state = target.value
    if target in TERMINAL:
        row.finished_at = session.scalar(select(db_now()))
    if origin in HELD and target not in HELD:
        for column, value in _end_of_attempt().items():
            setattr(row, column.key, value)
    session.flush()
    if target in TERMINAL:
        tell_prediction_end(session, row.id)


def enter_by_attempt(
    session: Session,
    claim: Claim,
    target: BatchPredictionState,
    values: dict[InstrumentedAttribute[Any], Any] | None = None,
) -> None:
    """Move the claimed prediction into another state, from where the table allows it, fenced.

    Args:
        session: a write transaction.
        claim: the attempt's.
        target: the new state.
        values: further columns to set.

    Raises:
        LeaseLostError: the attempt was overtaken, or the state has no such edge.
    """
    origins = tuple(s for s in HELD_VALUES if target in TRANSITIONS[BatchPredictionState(s)])
    changes: dict[InstrumentedAttribute[Any], Any] = {
        BatchPredictionRow.state: target.value,
        **(values or {}),
    }
    if target in TERMINAL:
        changes[BatchPredictionRow.finished_at] = db_now()
    if target not in HELD:
        changes.update(_end_of_attempt())
    leases.fenced_update(session, BatchPredictionRow, claim, states=origins, values=changes)
    if target in TERMINAL:
        tell_prediction_end(session, claim.row_id)


def _end_of_attempt() -> dict[InstrumentedAttribute[Any], Any]:
    """Return what every end of an attempt changes: its time counts, its lease is given up.

    A worker that was lost has run until its lease ran out at the most.
    """
    now, row = db_now(), BatchPredictionRow
    ended_at = case((row.lease_expires_at < now, row.lease_expires_at), else_=now)
    return {
        row.ran_s: row.ran_s + func.coalesce(ended_at - row.claimed_at, 0.0),
        **leases.surrender(row),
    }
