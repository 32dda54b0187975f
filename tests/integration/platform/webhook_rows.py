"""Endpoints and deliveries in the states that the tests start from."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update

from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.webhooks import endpoints
from core.platform.webhooks.attempts import Outcome, conclude
from core.platform.webhooks.deliveries import Outgoing, claim_due
from core.platform.webhooks.outbox import add_test
from core.types import DeliveryState

OK = Outcome(status=200, error=None, duration_ms=5)
BROKEN = Outcome(status=500, error="the receiver answered 500", duration_ms=5)
TTL_S = 60.0


def add_endpoint(
    database: Database,
    url: str = "https://example.com/hook",
    *,
    project_id: str = "default",
    event_types: Sequence[str] = ("*",),
) -> WebhookEndpointRow:
    """An endpoint."""
    with database.write() as session:
        return endpoints.create_endpoint(
            session, project_id=project_id, url=url, event_types=event_types, description=""
        )


def add_event(database: Database, endpoint: WebhookEndpointRow) -> str:
    """A test event that the endpoint is owed; its id."""
    with database.write() as session:
        return add_test(session, session.get_one(WebhookEndpointRow, endpoint.id)).id


def endpoint_of(database: Database, endpoint_id: str) -> WebhookEndpointRow:
    """The endpoint as it is now."""
    with database.read() as session:
        return session.get_one(WebhookEndpointRow, endpoint_id)


def delivery_of(database: Database, event_id: str) -> WebhookDeliveryRow:
    """The delivery as it is now."""
    with database.read() as session:
        return session.get_one(WebhookDeliveryRow, event_id)


def deliveries_of(database: Database) -> list[WebhookDeliveryRow]:
    """All deliveries, oldest first."""
    with database.read() as session:
        query = select(WebhookDeliveryRow)
        return list(session.scalars(query.order_by(WebhookDeliveryRow.created_at)))


def claim(
    database: Database, owner: str = "host:1", *, only_healthy: bool = False
) -> Outgoing | None:
    """Claim the delivery that is next."""
    with database.write() as session:
        return claim_due(session, owner=owner, ttl_s=TTL_S, only_healthy=only_healthy)


def claim_one(database: Database) -> Outgoing:
    """Claim the delivery that is next; there is one."""
    outgoing = claim(database)
    assert outgoing is not None
    return outgoing


def end(database: Database, outgoing: Outgoing, outcome: Outcome) -> DeliveryState:
    """Conclude an attempt."""
    with database.write() as session:
        return conclude(session, outgoing, outcome)


def make_due(database: Database, **changes: Any) -> None:
    """Let every delivery that waits be due, and change what else is wanted."""
    with database.write() as session:
        pending = WebhookDeliveryRow.state == DeliveryState.PENDING.value
        values = {"due_at": db_now() - 1, **changes}
        session.execute(update(WebhookDeliveryRow).where(pending).values(values))


def change_endpoint(database: Database, endpoint_id: str, **values: Any) -> None:
    """Set columns of an endpoint."""
    with database.write() as session:
        session.execute(
            update(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id).values(values)
        )
