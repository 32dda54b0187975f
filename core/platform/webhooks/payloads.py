"""What an event says: its subject in the words of the API, small, as it was at that moment.

Lists that may be long (classes, reports, a job's full spec) are left out; `links` lead to them.
"""

import json
from collections.abc import Mapping
from typing import Any

from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, JobRow
from core.types import to_rfc3339

_JOBS = "/v1/fine_tuning/jobs"
_MAX_MESSAGE_CHARS = 1000
#: Of an error; what else one holds may be as long as a log.
_ERROR_FIELDS = ("code", "message", "class", "attempts")


def build_payload(event_type: str, occurred_at_s: float, data: Mapping[str, Any]) -> str:
    """Return the body of an event, as it is signed and sent.

    Args:
        event_type: its type.
        occurred_at_s: when it happened, unix seconds.
        data: what it tells of.
    """
    content = {
        "type": event_type,
        "timestamp": to_rfc3339(occurred_at_s),
        "data": dict(data),
    }
    return json.dumps(content, separators=(",", ":"))


def describe_job(job: JobRow) -> dict[str, Any]:
    """Return a job as `GET /v1/fine_tuning/jobs/{id}` names its fields, without the long ones."""
    links = {"job": f"{_JOBS}/{job.id}", "events": f"{_JOBS}/{job.id}/events"}
    if job.model_id is not None:
        links["model"] = f"/v1/models/{job.model_id}"
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "name": job.name,
        "status": job.state,
        "dataset_id": job.dataset_id,
        "model_id": job.model_id,
        "metadata": job.labels,
        "attempt": job.attempt,
        "retried_from": job.retried_from,
        "error": _shorten_error(job.error),
        "created_at": _to_unix_s(job.created_at),
        "started_at": _to_unix_s(job.started_at),
        "finished_at": _to_unix_s(job.finished_at),
        "links": links,
    }


def describe_dataset(dataset: DatasetRow) -> dict[str, Any]:
    """Return a dataset as `GET /v1/datasets/{id}` names its fields, without the long ones."""
    links = {"dataset": f"/v1/datasets/{dataset.id}"}
    if dataset.report is not None:
        links["report"] = f"/v1/datasets/{dataset.id}/report"
    return {
        "id": dataset.id,
        "object": "dataset",
        "name": dataset.name,
        "status": dataset.state,
        "splits": dataset.splits,
        "error": _shorten_error(dataset.error),
        "created_at": _to_unix_s(dataset.created_at),
        "finished_at": _to_unix_s(dataset.finished_at),
        "links": links,
    }


def describe_prediction(row: BatchPredictionRow) -> dict[str, Any]:
    """Return a batch prediction as `GET /v1/batch_predictions/{id}` names its fields."""
    links = {"batch_prediction": f"/v1/batch_predictions/{row.id}"}
    if row.results_sha256 is not None:
        links["results"] = f"/v1/batch_predictions/{row.id}/results"
    return {
        "id": row.id,
        "object": "batch_prediction",
        "status": row.state,
        "model": row.model_reference,
        "model_id": row.model_id,
        "dataset_id": row.dataset_id,
        "images": row.images,
        "counts": row.counts,
        "error": _shorten_error(row.error),
        "created_at": _to_unix_s(row.created_at),
        "started_at": _to_unix_s(row.started_at),
        "finished_at": _to_unix_s(row.finished_at),
        "links": links,
    }


def _to_unix_s(timestamp_s: float | None) -> int | None:
    return None if timestamp_s is None else int(timestamp_s)


def _shorten_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if error is None:
        return None
    short = {name: error[name] for name in _ERROR_FIELDS if name in error}
    if "message" in short:
        short["message"] = str(short["message"])[:_MAX_MESSAGE_CHARS]
    return short
