"""What an endpoint can be told of."""

from enum import StrEnum

#: Stands for every type, those of later releases included.
ALL_EVENTS = "*"


class WebhookEventType(StrEnum):
    """Types of events; all end in the state that was entered."""

    JOB_SUCCEEDED = "fine_tuning.job.succeeded"
    JOB_FAILED = "fine_tuning.job.failed"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    DATASET_READY = "dataset.ready"
    DATASET_INVALID = "dataset.invalid"
    DATASET_FAILED = "dataset.failed"
    BATCH_PREDICTION_SUCCEEDED = "batch_prediction.succeeded"
    BATCH_PREDICTION_FAILED = "batch_prediction.failed"
    BATCH_PREDICTION_CANCELLED = "batch_prediction.cancelled"


#: Sent when somebody asks for it, whatever types the endpoint wants.
TEST_EVENT = "webhook_endpoint.test"


def wants(event_types: list[str], event_type: str) -> bool:
    """Return whether an endpoint with these types is to be told of such an event."""
    return ALL_EVENTS in event_types or event_type in event_types
