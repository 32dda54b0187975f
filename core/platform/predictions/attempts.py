"""What attempts of workers do to batch predictions. Every write is fenced.

A prediction is cheap to make again, so that an attempt leaves nothing behind: the next one starts
from the first image, and writes the same lines.
"""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.leases import Claim
from core.platform.predictions.transitions import HELD_VALUES, enter, enter_by_attempt
from core.types import BatchPredictionState as State


def claim_prediction(session: Session, *, owner: str, ttl_s: float) -> Claim | None:
    """Claim a pending prediction, or return None.

    Projects take turns: of the one whose last claim is longest ago, the oldest.
    """
    row, other = BatchPredictionRow, aliased(BatchPredictionRow)
    last_turn = (
        select(func.coalesce(func.max(other.claimed_at), 0.0))
        .where(other.project_id == row.project_id)
        .correlate(row)
        .scalar_subquery()
    )
    candidate = (
        select(row.id)
        .where(row.state == State.PENDING.value)
        .order_by(last_turn, row.created_at, row.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return leases.claim_next(
        session,
        row,
        eligible=State.PENDING,
        active=State.RUNNING,
        owner=owner,
        ttl_s=ttl_s,
        candidate=candidate,
        extra={
            row.claimed_at: db_now(),
            row.started_at: func.coalesce(row.started_at, db_now()),
            row.progress: None,
        },
    )


def report_progress(
    session: Session, claim: Claim, *, ttl_s: float, progress: dict[str, Any] | None = None
) -> str:
    """Renew the lease and store progress; return the state.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    values = leases.renewal(BatchPredictionRow, ttl_s)
    if progress is not None:
        values[BatchPredictionRow.progress] = progress
    return leases.fenced_update(
        session, BatchPredictionRow, claim, states=HELD_VALUES, values=values
    )


def publish(
    session: Session,
    claim: Claim,
    *,
    results_sha256: str,
    results_bytes: int,
    counts: dict[str, int],
) -> None:
    """End with results; the caller holds their blob by `ensure_stored`.

    Raises:
        LeaseLostError: the attempt was overtaken, or a cancel came first.
    """
    row = BatchPredictionRow
    values: dict[Any, Any] = {
        row.results_sha256: results_sha256,
        row.results_bytes: results_bytes,
        row.counts: counts,
    }
    enter_by_attempt(session, claim, State.SUCCEEDED, values)


def fail(session: Session, claim: Claim, error: dict[str, Any]) -> None:
    """End for a reason that another attempt would meet again.

    Raises:
        LeaseLostError: the attempt was overtaken, or a cancel came first.
    """
    enter_by_attempt(session, claim, State.FAILED, {BatchPredictionRow.error: error})


def release(session: Session, claim: Claim) -> None:
    """Give a prediction back without charging the attempt (the worker is shutting down).

    Raises:
        LeaseLostError: the attempt was overtaken, or a cancel came first.
    """
    enter_by_attempt(session, claim, State.PENDING)


def finish_cancel(session: Session, claim: Claim) -> None:
    """End a cancellation whose child has stopped.

    Raises:
        LeaseLostError: the attempt was overtaken, or nobody asked for it.
    """
    enter_by_attempt(session, claim, State.CANCELLED)


def give_up_attempt(
    session: Session, claim: Claim, error: dict[str, Any], *, max_attempts: int
) -> str:
    """End an attempt that crashed: tried again, or failed when it was the last.

    Returns:
        The prediction's new state.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    leases.fenced_update(session, BatchPredictionRow, claim, states=HELD_VALUES, values={})
    row = session.get_one(BatchPredictionRow, claim.row_id, populate_existing=True)
    _charge_attempt(session, row, error, max_attempts=max_attempts)
    return row.state


def expire_attempts(session: Session, *, max_attempts: int) -> list[str]:
    """End the attempts whose lease has run out; return the ids of the predictions touched."""
    predictions = leases.lock_expired(session, BatchPredictionRow, HELD_VALUES)
    for prediction in predictions:
        loss = leases.describe_loss(prediction)
        _charge_attempt(session, prediction, loss, max_attempts=max_attempts)
    return [prediction.id for prediction in predictions]


def _charge_attempt(
    session: Session, row: BatchPredictionRow, error: dict[str, Any], *, max_attempts: int
) -> None:
    row.failures += 1
    if row.state == State.CANCELLING:
        enter(session, row, State.CANCELLED)
    elif row.failures >= max_attempts:
        row.error = {**error, "attempts": row.failures}
        enter(session, row, State.FAILED)
    else:
        enter(session, row, State.PENDING)
