"""Rows that have had their time: old keys, sweeps and webhooks, and what has been deleted."""

from typing import Any

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform.collection.references import READ_GRACE_S
from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import (
    DatasetRow,
    IdempotencyRow,
    JobRow,
    ModelRow,
    SweepRow,
    WebhookDeliveryRow,
    WebhookEndpointRow,
)

DAY_S = 86_400.0
#: How long a request may be repeated under its `Idempotency-Key`.
IDEMPOTENCY_KEY_TTL_S = DAY_S
SWEEPS_TTL_S = 7 * DAY_S
#: How long a webhook's delivery is shown after its end, and a deleted endpoint's row stays.
WEBHOOKS_TTL_S = 7 * DAY_S

#: A statement that deletes more would hold its locks for long.
_ROWS_AT_ONCE = 1000


def forget_idempotency_keys(session: Session) -> int:
    """Delete the keys of requests that are too long ago to be repeated; return how many."""
    return _delete(session, IdempotencyRow.key, _older(IdempotencyRow.created_at, DAY_S))


def forget_sweeps(session: Session) -> int:
    """Delete old entries of the log of sweeps; return how many."""
    return _delete(session, SweepRow.id, _older(SweepRow.finished_at, SWEEPS_TTL_S))


def purge_models(session: Session) -> int:
    """Delete the rows of deleted models that no request can be reading any more."""
    return _delete(session, ModelRow.id, _older(ModelRow.deleted_at, READ_GRACE_S))


def purge_datasets(session: Session) -> int:
    """Delete the rows of deleted datasets that no job and no model came from.

    A job that is created on one meanwhile is refused: it locks the row and finds it deleted.
    """
    unused = ~exists().where(JobRow.dataset_id == DatasetRow.id)
    unused &= ~exists().where(ModelRow.dataset_id == DatasetRow.id)
    return _delete(session, DatasetRow.id, _older(DatasetRow.deleted_at, READ_GRACE_S) & unused)


def purge_predictions(session: Session) -> int:
    """Delete the rows of deleted batch predictions that no request can be reading any more."""
    is_old = _older(BatchPredictionRow.deleted_at, READ_GRACE_S)
    return _delete(session, BatchPredictionRow.id, is_old)


def forget_webhook_deliveries(session: Session) -> int:
    """Delete deliveries that have ended long ago, well or not; return how many."""
    return _delete(
        session, WebhookDeliveryRow.id, _older(WebhookDeliveryRow.finished_at, WEBHOOKS_TTL_S)
    )


def purge_webhook_endpoints(session: Session) -> int:
    """Delete the rows of endpoints deleted long ago whose deliveries are gone; return how many.

    Long ago: a transaction that ends a job may have found the endpoint just before its deletion.
    """
    unused = ~exists().where(WebhookDeliveryRow.endpoint_id == WebhookEndpointRow.id)
    is_old = _older(WebhookEndpointRow.deleted_at, WEBHOOKS_TTL_S)
    return _delete(session, WebhookEndpointRow.id, is_old & unused)


def _older(column: InstrumentedAttribute[Any], age_s: float) -> ColumnElement[bool]:
    return column < db_now() - age_s


def _delete(
    session: Session, key: InstrumentedAttribute[Any], condition: ColumnElement[bool]
) -> int:
    """Delete up to a thousand rows; those that another sweep deletes first are not counted."""
    chosen = select(key).where(condition).limit(_ROWS_AT_ONCE)
    statement = delete(key.class_).where(key.in_(chosen)).returning(key)
    statement = statement.execution_options(synchronize_session=False)
    return len(session.execute(statement).all())
