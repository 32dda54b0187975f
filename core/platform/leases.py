"""Claim, lease and fencing: how exactly one attempt works on a row at a time.

A worker *claims* the next eligible row with one conditional UPDATE, which raises the row's attempt
number and sets its lease. Every later write of that attempt is *fenced*: it names the attempt and
must hit exactly one row. When a lease expires, the row goes back to its eligible state and a new
attempt gets a new number, so that whatever the old attempt still writes hits nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, ScalarSelect, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, JobRow, WebhookDeliveryRow

LeasedRow = TypeVar("LeasedRow", DatasetRow, JobRow, WebhookDeliveryRow, BatchPredictionRow)


class LeaseLostError(Exception):
    """The row is no longer this attempt's: stop at once and write nothing more."""


@dataclass(frozen=True)
class Claim:
    """The right to write to one row.

    Attributes:
        row_id: the id of what was claimed.
        attempt: fencing token, from 1.
        owner: who claimed, for people.
    """

    row_id: str
    attempt: int
    owner: str


def claim_next(
    session: Session,
    table: type[LeasedRow],
    *,
    eligible: str,
    active: str,
    owner: str,
    ttl_s: float,
    candidate: ScalarSelect[Any] | None = None,
    extra: dict[Any, Any] | None = None,
) -> Claim | None:
    """Claim the eligible row that comes first, or return None when there is none.

    Args:
        session: a write transaction.
        table: the table to claim from.
        eligible: state from which rows may be claimed.
        active: state that the claimed row gets.
        owner: who claims.
        ttl_s: how long the lease lasts without a renewal, seconds.
        candidate: chooses and locks the row that comes first, by its id; None for the oldest.
        extra: further columns to set with the claim.

    The inner SELECT locks the row on PostgreSQL and skips rows that others are claiming; SQLite has
    one writer at a time. The outer condition on the state is what makes the claim exclusive.
    """
    if candidate is None:
        candidate = (
            select(table.id)
            .where(table.state == eligible)
            .order_by(table.created_at, table.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
    values: dict[Any, Any] = {
        table.state: active,
        table.attempt: table.attempt + 1,
        table.lease_owner: owner,
        table.lease_expires_at: db_now() + ttl_s,
    }
    statement = (
        update(table)
        .where(table.id == candidate, table.state == eligible)
        .values({**values, **(extra or {})})
        .returning(table.id, table.attempt)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else Claim(row_id=row[0], attempt=row[1], owner=owner)


def fenced_update(
    session: Session,
    table: type[LeasedRow],
    claim: Claim,
    *,
    states: tuple[str, ...],
    values: dict[InstrumentedAttribute[Any], Any],
) -> str:
    """Write to the claimed row, or raise if it is no longer this attempt's.

    Args:
        session: a write transaction.
        table: the claimed row's table.
        claim: what `claim_next` returned.
        states: the states in which this write is allowed.
        values: columns to set; an empty mapping only checks.

    Returns:
        The row's state after the write.

    Raises:
        LeaseLostError: the write hit no row.
    """
    statement = (
        update(table)
        .where(table.id == claim.row_id, table.attempt == claim.attempt, table.state.in_(states))
        .values(values or {table.attempt: claim.attempt})
        .returning(table.state)
        .execution_options(synchronize_session=False)
    )
    state = session.execute(statement).scalar_one_or_none()
    if state is None:
        raise LeaseLostError(f"attempt {claim.attempt} no longer holds {claim.row_id}")
    return state


def renewal(table: type[LeasedRow], ttl_s: float) -> dict[InstrumentedAttribute[Any], Any]:
    """Return the values that renew a lease for `ttl_s` seconds from now."""
    return {table.lease_expires_at: db_now() + ttl_s}


def surrender(table: type[LeasedRow]) -> dict[InstrumentedAttribute[Any], Any]:
    """Return the values that give a lease up."""
    return {table.lease_owner: None, table.lease_expires_at: None}


def expired(table: type[LeasedRow]) -> ColumnElement[bool]:
    """Return the condition that a row's lease has run out."""
    return table.lease_expires_at < db_now()


def lock_expired(
    session: Session, table: type[LeasedRow], states: Sequence[str]
) -> list[LeasedRow]:
    """Return and lock the rows in these states whose lease has run out; held ones are skipped."""
    lost = select(table).where(table.state.in_(states), expired(table))
    return list(session.scalars(lost.with_for_update(skip_locked=True)))


def describe_loss(row: LeasedRow) -> dict[str, Any]:
    """Return the error of an attempt whose lease has run out, in the form that rows keep."""
    return {
        "code": "worker_lost",
        "message": f"attempt {row.attempt} on {row.lease_owner} stopped renewing its lease",
        "class": "system",
    }
