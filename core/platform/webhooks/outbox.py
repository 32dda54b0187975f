"""The outbox: an event is written in the transaction that makes it true.

If the transaction is rolled back there is no event; once it is committed, there is one for each
endpoint that wants to be told, whatever becomes of the process. Nothing here sends.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import (
    DatasetRow,
    JobRow,
    WebhookDeliveryRow,
    WebhookEndpointRow,
)
from core.platform.webhooks.event_types import TEST_EVENT, WebhookEventType, wants
from core.platform.webhooks.payloads import (
    build_payload,
    describe_dataset,
    describe_job,
    describe_prediction,
)
from core.types import BatchPredictionState, DatasetState, JobState, new_event_id

_JOB_EVENTS = {
    JobState.SUCCEEDED: WebhookEventType.JOB_SUCCEEDED,
    JobState.FAILED: WebhookEventType.JOB_FAILED,
    JobState.CANCELLED: WebhookEventType.JOB_CANCELLED,
}
_DATASET_EVENTS = {
    DatasetState.READY: WebhookEventType.DATASET_READY,
    DatasetState.INVALID: WebhookEventType.DATASET_INVALID,
    DatasetState.FAILED: WebhookEventType.DATASET_FAILED,
}
_PREDICTION_EVENTS = {
    BatchPredictionState.SUCCEEDED: WebhookEventType.BATCH_PREDICTION_SUCCEEDED,
    BatchPredictionState.FAILED: WebhookEventType.BATCH_PREDICTION_FAILED,
    BatchPredictionState.CANCELLED: WebhookEventType.BATCH_PREDICTION_CANCELLED,
}


def tell_job_end(session: Session, job_id: str) -> None:
    """Owe every endpoint of the job's project, that wants it, the news that the job has ended.

    Args:
        session: the transaction that ends the job, after it has done so.
        job_id: the job.
    """
    session.flush()
    job = session.get_one(JobRow, job_id, populate_existing=True)
    _tell(session, job, _JOB_EVENTS[JobState(job.state)], describe_job(job))


def tell_dataset_end(session: Session, dataset_id: str) -> None:
    """Owe every endpoint of the dataset's project, that wants it, the news of its validation's end.

    Args:
        session: the transaction that ends the validation, after it has done so.
        dataset_id: the dataset.
    """
    session.flush()
    dataset = session.get_one(DatasetRow, dataset_id, populate_existing=True)
    event_type = _DATASET_EVENTS[DatasetState(dataset.state)]
    _tell(session, dataset, event_type, describe_dataset(dataset))


def tell_prediction_end(session: Session, prediction_id: str) -> None:
    """Owe every endpoint of a batch prediction's project, that wants it, the news of its end.

    Args:
        session: the transaction that ends the prediction, after it has done so.
        prediction_id: the prediction.
    """
    session.flush()
    row = session.get_one(BatchPredictionRow, prediction_id, populate_existing=True)
    event_type = _PREDICTION_EVENTS[BatchPredictionState(row.state)]
    _tell(session, row, event_type, describe_prediction(row))


def add_test(session: Session, endpoint: WebhookEndpointRow) -> WebhookDeliveryRow:
    """Owe an endpoint an event that tells of nothing."""
    now_s = session.scalars(select(db_now())).one()
    data = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "description": endpoint.description,
        "links": {"webhook_endpoint": f"/v1/webhook_endpoints/{endpoint.id}"},
    }
    return _add(session, endpoint, TEST_EVENT, build_payload(TEST_EVENT, now_s, data))


def _tell(
    session: Session,
    subject: JobRow | DatasetRow | BatchPredictionRow,
    event_type: str,
    data: Mapping[str, Any],
) -> None:
    open_endpoints = select(WebhookEndpointRow).where(
        WebhookEndpointRow.project_id == subject.project_id,
        WebhookEndpointRow.disabled_at.is_(None),
        WebhookEndpointRow.deleted_at.is_(None),
    )
    endpoints = [
        row for row in session.scalars(open_endpoints) if wants(row.event_types, event_type)
    ]
    if endpoints:
        assert subject.finished_at is not None
        payload = build_payload(event_type, subject.finished_at, data)
        for endpoint in endpoints:
            _add(session, endpoint, event_type, payload, subject_id=subject.id)


def _add(
    session: Session,
    endpoint: WebhookEndpointRow,
    event_type: str,
    payload: str,
    *,
    subject_id: str | None = None,
) -> WebhookDeliveryRow:
    delivery = WebhookDeliveryRow(
        id=new_event_id(),
        project_id=endpoint.project_id,
        endpoint_id=endpoint.id,
        type=event_type,
        subject_id=subject_id,
        payload=payload,
    )
    session.add(delivery)
    session.flush()
    return delivery
