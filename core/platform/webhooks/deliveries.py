"""What becomes of an event that an endpoint is owed: claimed, sent, tried again, given up.

As with jobs, an attempt holds a lease on the database's clock, and what it writes is fenced by its
number (`core.platform.leases`): of any number of workers, one sends at a time. A worker that dies
between sending and writing down leaves an event to be sent again, under the same id.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from core.errors import NotFoundError
from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.leases import Claim
from core.types import DeliveryState

_SENDING = (DeliveryState.SENDING.value,)


@dataclass(frozen=True)
class Outgoing:
    """A claimed delivery: all that sending it takes.

    Attributes:
        claim: the right to write to its row.
        endpoint_id: to whom.
        url: where to.
        is_suspect: whether the last attempt at the endpoint has failed.
        secrets: what signs, the newest first.
        payload: the body.
        sent_at_s: the database's time, unix seconds, for the header `webhook-timestamp`.
    """

    claim: Claim
    endpoint_id: str
    url: str
    is_suspect: bool
    secrets: tuple[str, ...]
    payload: str
    sent_at_s: float


def claim_due(
    session: Session, *, owner: str, ttl_s: float, only_healthy: bool = False
) -> Outgoing | None:
    """Claim the due delivery that comes first, or return None.

    Endpoints that answer come before those whose last attempt has failed, and one that is being
    sent to waits its turn: many events for a receiver that hangs hold up nobody else's. (Two claims
    in the same instant may both find it free on PostgreSQL, which harms nobody.)

    Args:
        session: a write transaction.
        owner: who claims.
        ttl_s: how long the lease lasts, seconds; longer than an attempt can take.
        only_healthy: leave out the endpoints whose last attempt has failed.
    """
    candidates = _candidates()
    if only_healthy:
        candidates = candidates.where(WebhookEndpointRow.failures == 0)
    chosen = (
        candidates.order_by(
            (WebhookEndpointRow.failures > 0), WebhookDeliveryRow.due_at, WebhookDeliveryRow.id
        )
        .limit(1)
        .with_for_update(skip_locked=True, of=WebhookDeliveryRow)
        .scalar_subquery()
    )
    statement = (
        update(WebhookDeliveryRow)
        .where(
            WebhookDeliveryRow.id == chosen, WebhookDeliveryRow.state == DeliveryState.PENDING.value
        )
        .values(
            state=DeliveryState.SENDING.value,
            attempt=WebhookDeliveryRow.attempt + 1,
            lease_owner=owner,
            lease_expires_at=db_now() + ttl_s,
        )
        .returning(WebhookDeliveryRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    delivery = session.scalars(statement).one_or_none()
    if delivery is None:
        return None
    endpoint = session.get_one(WebhookEndpointRow, delivery.endpoint_id)
    now_s = session.scalars(select(db_now())).one()
    secrets = [endpoint.secret]
    if endpoint.previous_secret is not None and (endpoint.previous_secret_until or 0) > now_s:
        secrets.append(endpoint.previous_secret)
    return Outgoing(
        claim=Claim(row_id=delivery.id, attempt=delivery.attempt, owner=owner),
        endpoint_id=endpoint.id,
        url=endpoint.url,
        is_suspect=endpoint.failures > 0,
        secrets=tuple(secrets),
        payload=delivery.payload,
        sent_at_s=now_s,
    )


def hold(session: Session, claim: Claim) -> WebhookDeliveryRow:
    """Lock the claimed delivery for the rest of the transaction and return it as it is now.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    leases.fenced_update(session, WebhookDeliveryRow, claim, states=_SENDING, values={})
    return session.get_one(WebhookDeliveryRow, claim.row_id, populate_existing=True)


def finish(session: Session, delivery: WebhookDeliveryRow, state: DeliveryState) -> None:
    """End a delivery that is held: delivered or failed."""
    delivery.state = state.value
    delivery.finished_at = session.scalar(select(db_now()))
    delivery.lease_owner = delivery.lease_expires_at = None
    session.flush()


def postpone(session: Session, delivery: WebhookDeliveryRow, delay_s: float) -> None:
    """Let a delivery that is held be sent again after `delay_s` seconds."""
    delivery.state = DeliveryState.PENDING.value
    delivery.due_at = session.scalars(select(db_now() + delay_s)).one()
    delivery.lease_owner = delivery.lease_expires_at = None
    session.flush()


def expire_attempts(session: Session) -> list[str]:
    """Send again, at once, what workers were sending whose lease has run out; return the ids."""
    statement = (
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.state.in_(_SENDING), leases.expired(WebhookDeliveryRow))
        .values(
            state=DeliveryState.PENDING.value,
            due_at=db_now(),
            lease_owner=None,
            lease_expires_at=None,
        )
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return list(session.scalars(statement))


def abandon_waiting(session: Session, endpoint_id: str | None = None) -> int:
    """Give up what still waits for an endpoint, or for any that is disabled or deleted.

    The second catches what was written while its endpoint was being disabled.

    Returns:
        How many.
    """
    closed = select(WebhookEndpointRow.id).where(
        or_(WebhookEndpointRow.disabled_at.is_not(None), WebhookEndpointRow.deleted_at.is_not(None))
    )
    of_endpoint = (
        WebhookDeliveryRow.endpoint_id.in_(closed)
        if endpoint_id is None
        else WebhookDeliveryRow.endpoint_id == endpoint_id
    )
    statement = (
        update(WebhookDeliveryRow)
        .where(WebhookDeliveryRow.state == DeliveryState.PENDING.value, of_endpoint)
        .values(state=DeliveryState.FAILED.value, finished_at=db_now())
        .returning(WebhookDeliveryRow.id)
        .execution_options(synchronize_session=False)
    )
    return len(session.scalars(statement).all())


def list_deliveries(
    session: Session,
    endpoint_id: str,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    state: DeliveryState | None = None,
) -> list[WebhookDeliveryRow]:
    """Return up to `limit` deliveries of an endpoint beyond the one named, newest first by default.

    Raises:
        NotFoundError: the endpoint has no delivery `after`.
    """
    row = WebhookDeliveryRow
    query = select(row).where(row.endpoint_id == endpoint_id)
    if state is not None:
        query = query.where(row.state == state.value)
    if after is not None:
        anchor = session.get(row, after)
        if anchor is None or anchor.endpoint_id != endpoint_id:
            raise NotFoundError(
                f"webhook endpoint {endpoint_id} has no delivery {after}; begin without `after`",
                code="webhook_delivery_not_found",
            )
        query = query.where(_beyond(anchor, descending=descending))
    keys = (row.created_at, row.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def find_delivery(session: Session, event_id: str) -> WebhookDeliveryRow | None:
    """Return the delivery of an event, or None."""
    return session.get(WebhookDeliveryRow, event_id)


def count_by_state(session: Session) -> dict[DeliveryState, int]:
    """Return how many deliveries there are in each state, for metrics."""
    query = select(WebhookDeliveryRow.state, func.count()).group_by(WebhookDeliveryRow.state)
    counts = {DeliveryState(state): count for state, count in session.execute(query)}
    return {state: counts.get(state, 0) for state in DeliveryState}


def find_oldest_due_s(session: Session) -> float | None:
    """Return for how many seconds the longest waiting delivery has been due, or None."""
    pending = WebhookDeliveryRow.state == DeliveryState.PENDING.value
    query = select(db_now() - func.min(WebhookDeliveryRow.due_at)).where(pending)
    overdue_s = session.scalar(query.where(WebhookDeliveryRow.due_at <= db_now()))
    return None if overdue_s is None else float(overdue_s)


def has_due(session: Session) -> bool:
    """Return whether a delivery is due and could be claimed."""
    return session.scalar(_candidates().limit(1)) is not None


def _candidates() -> Select[str]:
    """Select the ids that may be claimed now."""
    other = aliased(WebhookDeliveryRow)
    is_busy = exists().where(
        other.endpoint_id == WebhookDeliveryRow.endpoint_id,
        other.state == DeliveryState.SENDING.value,
    )
    return (
        select(WebhookDeliveryRow.id)
        .join(WebhookEndpointRow, WebhookEndpointRow.id == WebhookDeliveryRow.endpoint_id)
        .where(
            WebhookDeliveryRow.state == DeliveryState.PENDING.value,
            WebhookDeliveryRow.due_at <= db_now(),
            WebhookEndpointRow.disabled_at.is_(None),
            WebhookEndpointRow.deleted_at.is_(None),
            ~is_busy,
        )
    )


def _beyond(anchor: WebhookDeliveryRow, *, descending: bool) -> ColumnElement[bool]:
    created_at, key = WebhookDeliveryRow.created_at, WebhookDeliveryRow.id
    same = created_at == anchor.created_at
    if descending:
        return or_(created_at < anchor.created_at, and_(same, key < anchor.id))
    return or_(created_at > anchor.created_at, and_(same, key > anchor.id))
