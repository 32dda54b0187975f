"""Words that every part shares: ids and the states of datasets and jobs."""

import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import NewType

DatasetId = NewType("DatasetId", str)
JobId = NewType("JobId", str)
ModelId = NewType("ModelId", str)
BatchPredictionId = NewType("BatchPredictionId", str)
WebhookEndpointId = NewType("WebhookEndpointId", str)
EventId = NewType("EventId", str)

#: The project of keys that name none, and of everything made before there were projects.
DEFAULT_PROJECT = "default"
#: What the name of a project looks like.
PROJECT_PATTERN = r"[a-z0-9][a-z0-9._-]{0,39}"

_ID_BYTES = 12


def new_dataset_id() -> DatasetId:
    """Return a fresh dataset id, `ds_…`."""
    return DatasetId(f"ds_{secrets.token_hex(_ID_BYTES)}")


def new_job_id() -> JobId:
    """Return a fresh job id, `ftjob_…`."""
    return JobId(f"ftjob_{secrets.token_hex(_ID_BYTES)}")


def new_model_id() -> ModelId:
    """Return a fresh model id, `mdl_…`."""
    return ModelId(f"mdl_{secrets.token_hex(_ID_BYTES)}")


def new_batch_prediction_id() -> BatchPredictionId:
    """Return a fresh batch prediction id, `bp_…`."""
    return BatchPredictionId(f"bp_{secrets.token_hex(_ID_BYTES)}")


def new_webhook_endpoint_id() -> WebhookEndpointId:
    """Return a fresh webhook endpoint id, `whk_…`."""
    return WebhookEndpointId(f"whk_{secrets.token_hex(_ID_BYTES)}")


def new_event_id() -> EventId:
    """Return a fresh id of an event that is told to a webhook endpoint, `evt_…`."""
    return EventId(f"evt_{secrets.token_hex(_ID_BYTES)}")


def to_rfc3339(timestamp_s: float) -> str:
    """Return unix seconds as people and other services write them: `2026-01-31T12:00:00.250Z`."""
    text = datetime.fromtimestamp(timestamp_s, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class DatasetState(StrEnum):
    """Where a dataset stands between upload and use."""

    PENDING = "pending"  #: accepted, waiting for a worker
    VALIDATING = "validating"  #: a worker decodes its images
    READY = "ready"  #: immutable and usable by jobs; final
    INVALID = "invalid"  #: the archive's content is at fault; final
    FAILED = "failed"  #: the service is at fault, after all attempts; final


class JobState(StrEnum):
    """Where a fine-tuning job stands. Terminal states never change."""

    VALIDATING_FILES = "validating_files"  #: its dataset is not ready yet
    QUEUED = "queued"  #: eligible: any worker may claim it
    RUNNING = "running"  #: one attempt holds the lease
    PAUSING = "pausing"  #: pause asked for; the attempt has still to hand the job back
    PAUSED = "paused"  #: nobody works on it until somebody resumes it
    CANCELLING = "cancelling"  #: cancel asked for; the attempt's supervisor has still to stop it
    SUCCEEDED = "succeeded"  #: its model is published; final
    FAILED = "failed"  #: final, with `error`
    CANCELLED = "cancelled"  #: final


class BatchPredictionState(StrEnum):
    """Where a batch prediction stands. Terminal states never change."""

    PENDING = "pending"  #: eligible: any worker may claim it
    RUNNING = "running"  #: one attempt holds the lease
    CANCELLING = "cancelling"  #: cancel asked for; the attempt's supervisor has still to stop it
    SUCCEEDED = "succeeded"  #: its results are published; final
    FAILED = "failed"  #: final, with `error`
    CANCELLED = "cancelled"  #: final


class DeliveryState(StrEnum):
    """Where an event stands on its way to one webhook endpoint."""

    PENDING = "pending"  #: to be sent when it is due
    SENDING = "sending"  #: one attempt holds the lease
    DELIVERED = "delivered"  #: the receiver answered 2xx; final
    FAILED = "failed"  #: given up; final


class Split(StrEnum):
    """The part of a dataset that an image belongs to."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
