"""Webhook endpoints: who is told when jobs and datasets are done, and what was told so far."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Response
from sqlalchemy.orm import Session

from api.deps import (
    DatabaseDep,
    DoorbellDep,
    ProjectDep,
    ReferencePath,
    SettingsDep,
    require_json,
)
from api.idempotency import REPLAYED_HEADER, IdempotencyKey, create_once, digest_request
from api.pagination import Page, PageDep
from api.schemas.problems import problems
from api.schemas.webhook_endpoints import (
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEndpointChanges,
    WebhookEndpointRequest,
    WebhookEndpointWithSecret,
)
from core.errors import FieldError, InvalidError, NotFoundError
from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.doorbell import DELIVER_TASK
from core.platform.webhooks import endpoints
from core.platform.webhooks.addresses import AllowedHosts
from core.platform.webhooks.deliveries import find_delivery, list_deliveries
from core.platform.webhooks.outbox import add_test
from core.platform.webhooks.targets import (
    TargetError,
    UnresolvedHostError,
    parse_target,
    resolve_target,
)
from core.settings import Settings
from core.types import DeliveryState

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])

_RESOLVE_TIMEOUT_S = 5.0


@router.post(
    "",
    status_code=201,
    responses=problems(400, 409, 415, 422),
    dependencies=[Depends(require_json)],
)
def create_webhook_endpoint(
    *,
    wanted: WebhookEndpointRequest,
    database: DatabaseDep,
    settings: SettingsDep,
    project: ProjectDep,
    response: Response,
    key: IdempotencyKey,
) -> WebhookEndpointWithSecret:
    """Create an endpoint. Its secret is in this answer, and in no later one."""
    _check_url(wanted.url, settings)
    digest = digest_request(f"POST {router.prefix}", wanted.model_dump(mode="json"))

    def create(session: Session) -> tuple[str, WebhookEndpointRow]:
        row = endpoints.create_endpoint(
            session,
            project_id=project,
            url=wanted.url,
            event_types=wanted.event_types,
            description=wanted.description,
        )
        session.refresh(row)
        return row.id, row

    load = partial(endpoints.get_endpoint, project_id=project)
    row, is_new = create_once(database, key, digest, create=create, load=load)
    if not is_new:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"{router.prefix}/{row.id}"
    return WebhookEndpointWithSecret.from_row(row)


@router.get("", responses=problems(422))
def list_webhook_endpoints(
    database: DatabaseDep, project: ProjectDep, page: PageDep
) -> Page[WebhookEndpoint]:
    """List the endpoints, newest first."""
    with database.read() as session:
        rows = endpoints.list_endpoints(
            session,
            project_id=project,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
        )
    return page.build_page(rows, WebhookEndpoint.from_row)


@router.get("/{endpoint_id}", responses=problems(404))
def get_webhook_endpoint(
    database: DatabaseDep, project: ProjectDep, endpoint_id: ReferencePath
) -> WebhookEndpoint:
    """Show one endpoint."""
    with database.read() as session:
        row = endpoints.get_endpoint(session, endpoint_id, project_id=project)
    return WebhookEndpoint.from_row(row)


@router.patch(
    "/{endpoint_id}",
    responses=problems(400, 404, 415, 422),
    dependencies=[Depends(require_json)],
)
def change_webhook_endpoint(
    *,
    changes: WebhookEndpointChanges,
    database: DatabaseDep,
    settings: SettingsDep,
    project: ProjectDep,
    endpoint_id: ReferencePath,
) -> WebhookEndpoint:
    """Change an endpoint. What it is still owed goes to the new URL."""
    if changes.url is not None:
        _check_url(changes.url, settings)
    with database.write() as session:
        row = endpoints.get_endpoint(session, endpoint_id, project_id=project, lock=True)
        for name in ("url", "event_types", "description"):
            value = getattr(changes, name)
            if value is not None:
                setattr(row, name, value)
        if changes.enabled is True:
            endpoints.enable_endpoint(session, row)
        elif changes.enabled is False:
            endpoints.disable_endpoint(session, row, "user", "disabled by its user")
        session.flush()
        return WebhookEndpoint.from_row(row)


@router.delete("/{endpoint_id}", status_code=204, responses=problems(404))
def delete_webhook_endpoint(
    database: DatabaseDep, project: ProjectDep, endpoint_id: ReferencePath
) -> None:
    """Delete an endpoint; what it is still owed is given up."""
    with database.write() as session:
        endpoints.delete_endpoint(session, endpoint_id, project_id=project)


@router.post("/{endpoint_id}/test", status_code=202, responses=problems(404, 409))
def test_webhook_endpoint(
    *,
    database: DatabaseDep,
    project: ProjectDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    response: Response,
    key: IdempotencyKey,
    endpoint_id: ReferencePath,
) -> WebhookDelivery:
    """Send an event of type `webhook_endpoint.test`; its delivery tells what came of it."""
    digest = digest_request(f"POST {router.prefix}/{endpoint_id}/test", {})

    def create(session: Session) -> tuple[str, WebhookDeliveryRow]:
        endpoint = endpoints.get_endpoint(session, endpoint_id, project_id=project)
        endpoints.check_enabled(endpoint)
        delivery = add_test(session, endpoint)
        session.refresh(delivery)
        return delivery.id, delivery

    def load(session: Session, event_id: str) -> WebhookDeliveryRow:
        delivery = find_delivery(session, event_id)
        if delivery is None:
            raise NotFoundError(f"there is no delivery {event_id}")
        return delivery

    row, is_new = create_once(database, key, digest, create=create, load=load)
    if is_new:
        # After the commit and after the answer: a broker that hangs delays nobody.
        background.add_task(doorbell.ring, DELIVER_TASK)
    else:
        response.headers[REPLAYED_HEADER] = "true"
    return WebhookDelivery.from_row(row)


@router.get("/{endpoint_id}/deliveries", responses=problems(404, 422))
def list_webhook_deliveries(
    database: DatabaseDep,
    project: ProjectDep,
    endpoint_id: ReferencePath,
    page: PageDep,
    status: Annotated[DeliveryState | None, Query(description="Only those there.")] = None,
) -> Page[WebhookDelivery]:
    """List what an endpoint is owed, and what it was told in the last seven days; newest first."""
    with database.read() as session:
        endpoints.get_endpoint(session, endpoint_id, project_id=project)
        rows = list_deliveries(
            session,
            endpoint_id,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
            state=status,
        )
    return page.build_page(rows, WebhookDelivery.from_row)


@router.post("/{endpoint_id}/rotate_secret", responses=problems(404, 409))
def rotate_webhook_secret(
    *,
    database: DatabaseDep,
    project: ProjectDep,
    response: Response,
    key: IdempotencyKey,
    endpoint_id: ReferencePath,
) -> WebhookEndpointWithSecret:
    """Make another secret, and show it this once; for 24 hours the one before signs, too."""
    digest = digest_request(f"POST {router.prefix}/{endpoint_id}/rotate_secret", {})

    def create(session: Session) -> tuple[str, WebhookEndpointRow]:
        row = endpoints.get_endpoint(session, endpoint_id, project_id=project, lock=True)
        endpoints.rotate_secret(session, row)
        return row.id, row

    load = partial(endpoints.get_endpoint, project_id=project)
    row, is_new = create_once(database, key, digest, create=create, load=load)
    if not is_new:
        response.headers[REPLAYED_HEADER] = "true"
    return WebhookEndpointWithSecret.from_row(row)


def _check_url(url: str, settings: Settings) -> None:
    """Refuse a URL that no delivery could go to.

    A name that cannot be resolved passes: the workers may know it, and every delivery looks again.

    Raises:
        InvalidError: with a pointer to the field.
    """
    allowed = AllowedHosts.from_settings(settings.webhook_allowed_hosts)
    try:
        target = parse_target(url, allowed)
        resolve_target(target, allowed, timeout_s=_RESOLVE_TIMEOUT_S)
    except UnresolvedHostError:
        return
    except TargetError as error:
        field = FieldError("/url", error.message, error.code)
        raise InvalidError(f"/url: {error.message}", code=error.code, fields=(field,)) from error
