"""Webhook endpoints on the wire, and what was sent to them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from api.schemas.fields import METADATA_VALUE_PATTERN, to_unix_s
from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.webhooks.event_types import ALL_EVENTS, WebhookEventType
from core.platform.webhooks.targets import MAX_URL_LENGTH
from core.types import DeliveryState

_EVENT_TYPES = [ALL_EVENTS, *(event_type.value for event_type in WebhookEventType)]


def _known(event_type: str) -> str:
    if event_type not in _EVENT_TYPES:
        raise ValueError(f"must be one of {', '.join(_EVENT_TYPES)}")
    return event_type


def _without_repetitions(event_types: list[str]) -> list[str]:
    return list(dict.fromkeys(event_types))


_EventType = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": _EVENT_TYPES})]
_EventTypes = Annotated[
    list[_EventType],
    Field(
        min_length=1,
        max_length=len(_EVENT_TYPES),
        description="What to tell of; `*` is everything, what later releases tell of included.",
    ),
    AfterValidator(_without_repetitions),
]
_Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        description="http or https, of a public host or one that the operator allows.",
        examples=["https://example.com/hooks/idat"],
    ),
]
_Description = Annotated[
    str,
    StringConstraints(max_length=200, pattern=METADATA_VALUE_PATTERN),
    Field(description="Yours."),
]


class WebhookEndpointRequest(BaseModel):
    """An endpoint to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "url": "https://example.com/hooks/idat",
                    "event_types": ["fine_tuning.job.succeeded", "fine_tuning.job.failed"],
                }
            ]
        },
    )

    url: _Url
    event_types: _EventTypes = Field(default_factory=lambda: [ALL_EVENTS])
    description: _Description = ""


class WebhookEndpointChanges(BaseModel):
    """New values of an endpoint's fields; those left out stay as they are."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"enabled": False}]})

    url: _Url | None = None
    event_types: _EventTypes | None = None
    description: _Description | None = None
    enabled: Annotated[bool, Field(strict=True)] | None = Field(
        None,
        description="False: nothing more is sent, and what waits is given up. True: begin anew.",
    )

    @model_validator(mode="after")
    def _refuse_null(self) -> Self:
        empty = [name for name in sorted(self.model_fields_set) if getattr(self, name) is None]
        if empty:
            raise ValueError(f"{', '.join(empty)} cannot be null; leave out what is to stay")
        return self


class DisabledReason(BaseModel):
    """Why nothing is sent to an endpoint."""

    code: str = Field(
        description="`user`, `gone` (the receiver answered 410), or `failing` (for days)."
    )
    message: str


class WebhookEndpoint(BaseModel):
    """Where a project is told of what has ended."""

    id: str = Field(examples=["whk_1f0e9c2ab4d35e6f70819a2b"])
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    event_types: list[str]
    description: str
    enabled: bool
    disabled_at: int | None = Field(description="Unix seconds.")
    disabled_reason: DisabledReason | None
    failures: int = Field(description="Attempts that have failed since the last that did not.")
    failing_since: int | None
    previous_secret_until: int | None = Field(
        description="Until when the secret before the last rotation signs, too."
    )
    created_at: int = Field(description="Unix seconds.")

    @classmethod
    def from_row(cls, row: WebhookEndpointRow) -> Self:
        """Show a row, without its secret."""
        return cls.model_validate(_show(row))


class WebhookEndpointWithSecret(WebhookEndpoint):
    """An endpoint whose secret is new. It is shown this once."""

    secret: str = Field(
        description="Verifies signatures; keep it.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
    )

    @classmethod
    def from_row(cls, row: WebhookEndpointRow) -> Self:
        """Show a row with its secret."""
        return cls.model_validate({**_show(row), "secret": row.secret})


class DeliveryAttempt(BaseModel):
    """One attempt at telling the receiver."""

    attempt: int
    sent_at: int = Field(description="Unix seconds.")
    status: int | None = Field(description="Of the reply; null without one.")
    error: str | None = Field(description="Null if it was delivered.")
    duration_ms: int


class WebhookDelivery(BaseModel):
    """An event that an endpoint is owed, or has been told of."""

    id: str = Field(
        description="The event's, and the header `webhook-id` of every attempt.",
        examples=["evt_7c1f0e9c2ab4d35e6f70819a"],
    )
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint_id: str
    type: str
    status: DeliveryState
    attempts: list[DeliveryAttempt] = Field(description="The last ones, oldest first.")
    next_attempt_at: int | None = Field(description="While `pending`; unix seconds.")
    payload: dict[str, Any] = Field(description="What is sent.")
    created_at: int
    finished_at: int | None

    @classmethod
    def from_row(cls, row: WebhookDeliveryRow) -> Self:
        """Show a row."""
        is_pending = row.state == DeliveryState.PENDING
        return cls(
            id=row.id,
            endpoint_id=row.endpoint_id,
            type=row.type,
            status=DeliveryState(row.state),
            attempts=[DeliveryAttempt.model_validate(attempt) for attempt in row.attempts],
            next_attempt_at=to_unix_s(row.due_at) if is_pending else None,
            payload=json.loads(row.payload),
            created_at=int(row.created_at),
            finished_at=to_unix_s(row.finished_at),
        )


def _show(row: WebhookEndpointRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "event_types": row.event_types,
        "description": row.description,
        "enabled": row.disabled_at is None,
        "disabled_at": to_unix_s(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "failures": row.failures,
        "failing_since": to_unix_s(row.failing_since),
        "previous_secret_until": to_unix_s(row.previous_secret_until),
        "created_at": int(row.created_at),
    }
