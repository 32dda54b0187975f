"""Every change to an endpoint's row. Callers bring the transaction; nothing here commits."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from core.errors import ConflictError, NotFoundError
from core.platform.db.clock import db_now
from core.platform.db.tables import WebhookEndpointRow
from core.platform.webhooks.deliveries import abandon_waiting
from core.platform.webhooks.signing import new_secret
from core.types import new_webhook_endpoint_id

#: Each is another row in every transaction that ends something.
MAX_ENDPOINTS = 20
#: How long the secret before still signs after a rotation.
ROTATION_GRACE_S = 86_400.0


class TooManyEndpointsError(ConflictError):
    """The project has as many endpoints as it may have."""

    code = "too_many_webhook_endpoints"


class EndpointDisabledError(ConflictError):
    """Nothing is sent to a disabled endpoint."""

    code = "webhook_endpoint_disabled"


def create_endpoint(
    session: Session, *, project_id: str, url: str, event_types: Sequence[str], description: str
) -> WebhookEndpointRow:
    """Create an endpoint with a secret of its own.

    Args:
        session: a write transaction.
        project_id: whose events it is told of.
        url: checked by `core.platform.webhooks.targets`.
        event_types: names of `WebhookEventType`, or `*`.
        description: for people.

    Raises:
        TooManyEndpointsError: the project has `MAX_ENDPOINTS` already.
    """
    count = session.scalar(select(func.count()).where(*_are_there(project_id)))
    if count is not None and count >= MAX_ENDPOINTS:
        raise TooManyEndpointsError(
            f"the project has {count} webhook endpoints, and may not have more; delete one first"
        )
    endpoint = WebhookEndpointRow(
        id=new_webhook_endpoint_id(),
        project_id=project_id,
        url=url,
        event_types=list(event_types),
        description=description,
        secret=new_secret(),
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get_endpoint(
    session: Session, endpoint_id: str, *, project_id: str, lock: bool = False
) -> WebhookEndpointRow:
    """Return an endpoint of the project, locked against other changes if asked for.

    Raises:
        NotFoundError: no such endpoint, or it is another project's, or has been deleted.
    """
    query = select(WebhookEndpointRow).where(WebhookEndpointRow.id == endpoint_id)
    query = query.where(*_are_there(project_id))
    if lock:
        # The weaker lock, beside which transactions that end jobs may write what they owe.
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    endpoint = session.scalars(query).one_or_none()
    if endpoint is None:
        raise _unknown(endpoint_id)
    return endpoint


def list_endpoints(
    session: Session, *, project_id: str, after: str | None, limit: int, descending: bool = True
) -> list[WebhookEndpointRow]:
    """Return up to `limit` endpoints of the project beyond the one named, newest first by default.

    Raises:
        NotFoundError: the project never had the endpoint `after`.
    """
    query = select(WebhookEndpointRow).where(*_are_there(project_id))
    if after is not None:
        anchor = session.get(WebhookEndpointRow, after)  # a deleted one still has its place
        if anchor is None or anchor.project_id != project_id:
            raise _unknown(after)
        query = query.where(_beyond(anchor, descending=descending))
    keys = (WebhookEndpointRow.created_at, WebhookEndpointRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def delete_endpoint(session: Session, endpoint_id: str, *, project_id: str) -> None:
    """Delete an endpoint; what it is still owed is given up.

    Raises:
        NotFoundError: as in `get_endpoint`.
    """
    endpoint = get_endpoint(session, endpoint_id, project_id=project_id, lock=True)
    endpoint.deleted_at = session.scalar(select(db_now()))
    session.flush()
    abandon_waiting(session, endpoint.id)


def disable_endpoint(
    session: Session, endpoint: WebhookEndpointRow, code: str, reason: str
) -> None:
    """Send an endpoint, whose row is locked, nothing more; what it is still owed is given up."""
    if endpoint.disabled_at is not None:
        return
    endpoint.disabled_at = session.scalar(select(db_now()))
    endpoint.disabled_reason = {"code": code, "message": reason}
    session.flush()
    abandon_waiting(session, endpoint.id)


def enable_endpoint(session: Session, endpoint: WebhookEndpointRow) -> None:
    """Begin anew with an endpoint whose row is locked: it is told of what happens from now on."""
    endpoint.disabled_at = endpoint.disabled_reason = None
    endpoint.failures, endpoint.failing_since = 0, None
    session.flush()


def rotate_secret(session: Session, endpoint: WebhookEndpointRow) -> None:
    """Give an endpoint, whose row is locked, another secret; for a day the one before signs, too.

    A second rotation within the day drops the secret before the last: two sign, never three.
    """
    endpoint.previous_secret = endpoint.secret
    endpoint.previous_secret_until = session.scalar(select(db_now() + ROTATION_GRACE_S))
    endpoint.secret = new_secret()
    session.flush()


def check_enabled(endpoint: WebhookEndpointRow) -> None:
    """Refuse what makes no sense with a disabled endpoint.

    Raises:
        EndpointDisabledError: it is disabled.
    """
    if endpoint.disabled_at is not None:
        raise EndpointDisabledError(
            f"webhook endpoint {endpoint.id} is disabled; PATCH it with "
            '{"enabled": true} to send to it again'
        )


def _are_there(project_id: str) -> tuple[ColumnElement[bool], ...]:
    return (WebhookEndpointRow.project_id == project_id, WebhookEndpointRow.deleted_at.is_(None))


def _beyond(anchor: WebhookEndpointRow, *, descending: bool) -> ColumnElement[bool]:
    created_at, key = WebhookEndpointRow.created_at, WebhookEndpointRow.id
    same = created_at == anchor.created_at
    if descending:
        return or_(created_at < anchor.created_at, and_(same, key < anchor.id))
    return or_(created_at > anchor.created_at, and_(same, key > anchor.id))


def _unknown(endpoint_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no webhook endpoint {endpoint_id}; GET /v1/webhook_endpoints lists them",
        code="webhook_endpoint_not_found",
    )
