"""How an attempt ended, and what that means for the delivery and for its endpoint."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.webhooks.deliveries import Outgoing, finish, hold, postpone
from core.platform.webhooks.endpoints import disable_endpoint
from core.platform.webhooks.schedule import (
    DAY_S,
    DISABLE_AFTER_FAILURES,
    DISABLE_AFTER_S,
    find_retry_delay_s,
)
from core.types import DeliveryState

_GONE = 410
#: Attempts whose outcome is kept; there are more of them only where workers die.
_KEPT_ATTEMPTS = 10
_MAX_ERROR_CHARS = 300


@dataclass(frozen=True)
class Outcome:
    """What came of sending an event once.

    Attributes:
        status: HTTP status of the reply, None without one.
        error: why it counts as failed, None if it was delivered.
        duration_ms: from the name's resolution to the reply's end, milliseconds.
    """

    status: int | None
    error: str | None
    duration_ms: int


def conclude(session: Session, outgoing: Outgoing, outcome: Outcome) -> DeliveryState:
    """Write down how an attempt ended; try again later, give up, or disable the endpoint.

    Returns:
        The delivery's new state.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    # The endpoint first, as users' changes do, and with the lock that lets others owe it events.
    endpoint = session.get_one(
        WebhookEndpointRow,
        outgoing.endpoint_id,
        with_for_update={"key_share": True},
        populate_existing=True,
    )
    delivery = hold(session, outgoing.claim)
    _note(delivery, outgoing, outcome)
    if outcome.error is None:
        endpoint.failures, endpoint.failing_since = 0, None
        finish(session, delivery, DeliveryState.DELIVERED)
        return DeliveryState.DELIVERED
    delivery.failures += 1
    _count_failure(session, endpoint, outcome)
    delay_s = find_retry_delay_s(delivery.failures)
    is_closed = endpoint.disabled_at is not None or endpoint.deleted_at is not None
    if is_closed or delay_s is None:
        finish(session, delivery, DeliveryState.FAILED)
        return DeliveryState.FAILED
    postpone(session, delivery, delay_s)
    return DeliveryState.PENDING


def _note(delivery: WebhookDeliveryRow, outgoing: Outgoing, outcome: Outcome) -> None:
    note: dict[str, Any] = {
        "attempt": outgoing.claim.attempt,
        "sent_at": int(outgoing.sent_at_s),
        "status": outcome.status,
        "error": None if outcome.error is None else outcome.error[:_MAX_ERROR_CHARS],
        "duration_ms": outcome.duration_ms,
    }
    delivery.attempts = [*delivery.attempts, note][-_KEPT_ATTEMPTS:]


def _count_failure(session: Session, endpoint: WebhookEndpointRow, outcome: Outcome) -> None:
    now_s = session.scalars(select(db_now())).one()
    endpoint.failures += 1
    if endpoint.failing_since is None:
        endpoint.failing_since = now_s
    failing_s = now_s - endpoint.failing_since
    if outcome.status == _GONE:
        disable_endpoint(session, endpoint, "gone", "the receiver answered 410 Gone")
    elif endpoint.failures >= DISABLE_AFTER_FAILURES and failing_s >= DISABLE_AFTER_S:
        reason = (
            f"the last {endpoint.failures} attempts, over {failing_s / DAY_S:.1f} days, have "
            f"failed; the last one: {outcome.error}"
        )
        disable_endpoint(session, endpoint, "failing", reason[:_MAX_ERROR_CHARS])
    session.flush()
