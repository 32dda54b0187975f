"""The tables. All times are unix seconds on the database's clock."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from core.platform.db import model_tables as _model_tables  # noqa: F401 - registers them too
from core.platform.db import prediction_tables as _prediction_tables  # noqa: F401 - likewise
from core.platform.db.base import Base, JsonObject, Leased
from core.platform.db.clock import db_now
from core.types import DEFAULT_PROJECT, DatasetState, DeliveryState, JobState

_ID = String(40)
_SHA256 = String(64)


class ProjectRow(Base):
    """A tenant: its share of the workers and its limits. Made when it creates its first job."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    #: share of the workers, relative to the other projects' weights
    weight: Mapped[float] = mapped_column(Float(53), default=1.0, server_default=text("1"))
    #: jobs at once; null for the setting's number, 0 for no limit
    max_running_jobs: Mapped[int | None] = mapped_column(Integer, default=None)
    #: virtual time at which the project's last job was claimed; null before its first
    pass_: Mapped[float | None] = mapped_column("pass", Float(53), default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class DatasetRow(Leased, Base):
    """An uploaded archive and, once validated, the immutable dataset made of it."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    #: the server's default is for processes of the release before, which know no projects
    project_id: Mapped[str] = mapped_column(
        _ID, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20), default=DatasetState.PENDING.value)
    seed: Mapped[int] = mapped_column(BigInteger, default=0)
    #: share of images that may be undecodable and are then left out, 0 to 1
    tolerance: Mapped[float] = mapped_column(Float(53), default=0.0)
    archive_sha256: Mapped[str] = mapped_column(_SHA256)
    archive_bytes: Mapped[int] = mapped_column(BigInteger)
    archive_name: Mapped[str] = mapped_column(String(300), default="")
    manifest_sha256: Mapped[str | None] = mapped_column(_SHA256, default=None)
    #: side length in pixels, as text -> SHA-256 of that image cache
    caches: Mapped[JsonObject] = mapped_column(default=dict)
    classes: Mapped[list[str]] = mapped_column(default=list)
    #: split -> number of images
    splits: Mapped[JsonObject] = mapped_column(default=dict)
    report: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    progress: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    error: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    finished_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: set when its user has deleted it; the row stays for as long as jobs or models point at it
    deleted_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (
        Index("ix_datasets_state_created_at", "state", "created_at"),
        Index("ix_datasets_project_created_at", "project_id", "created_at", "id"),
    )


class JobRow(Leased, Base):
    """A user's request to fine-tune, and all that is known of it."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    #: the server's default is for processes of the release before, which know no projects
    project_id: Mapped[str] = mapped_column(
        _ID, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )
    name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20), default=JobState.VALIDATING_FILES.value)
    #: higher is claimed first; the server's default is for processes of the release before
    priority: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    #: the request with every default resolved: `core.platform.jobs.specs.JobSpec`
    spec: Mapped[JsonObject]
    labels: Mapped[JsonObject] = mapped_column("metadata", JSON, default=dict)
    progress: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    error: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    checkpoint_sha256: Mapped[str | None] = mapped_column(_SHA256, default=None)
    checkpoint_step: Mapped[int | None] = mapped_column(Integer, default=None)
    model_id: Mapped[str | None] = mapped_column(_ID, default=None)
    #: the failed job that this one repeats; no reference, as that one may be deleted
    retried_from: Mapped[str | None] = mapped_column(_ID, default=None)
    #: what it needs of a device, as estimated when it was created; 0 in rows of earlier releases
    memory_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    #: longest running time of all attempts together that its user allows, seconds
    max_seconds: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: running time of the attempts that have ended, seconds
    ran_s: Mapped[float] = mapped_column(Float(53), default=0.0, server_default=text("0"))
    #: when the attempt that holds it was claimed; null while nobody does
    claimed_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: the worker that keeps memory free for it, and until when
    reserved_by: Mapped[str | None] = mapped_column(String(200), default=None)
    reserved_until: Mapped[float | None] = mapped_column(Float(53), default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    started_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    finished_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at"),
        # The order of claims of the release before.
        Index("ix_jobs_queue", "state", priority.desc(), "created_at", "id"),
        # The order of claims within a project: `core.platform.jobs.claiming`. With the memory, so
        # that jobs which do not fit are passed over without being read.
        Index(
            "ix_jobs_project_queue",
            "project_id",
            "state",
            priority.desc(),
            "created_at",
            "id",
            "memory_bytes",
        ),
        Index("ix_jobs_project_created_at", "project_id", "created_at", "id"),
    )


class JobEventRow(Base):
    """One line of a job's log, append-only."""

    __tablename__ = "job_events"

    #: SQLite hands out row ids for INTEGER PRIMARY KEY only
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    level: Mapped[str] = mapped_column(String(10))
    type: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[JsonObject] = mapped_column(default=dict)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class JobEpochRow(Base):
    """The metrics of one epoch of a job; a resumed attempt writes the same values again."""

    __tablename__ = "job_epochs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    metrics: Mapped[JsonObject]
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class ModelRow(Base):
    """A published model: the student's adapter and head. Immutable."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    #: the server's default is for processes of the release before, which know no projects
    project_id: Mapped[str] = mapped_column(
        _ID, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )
    name: Mapped[str] = mapped_column(String(200), index=True)
    #: counts the models of a name, from 1; null while only a process of the release before knows it
    version: Mapped[int | None] = mapped_column(Integer, default=None)
    #: unique: a job publishes at most one model, whatever its attempts do; null if it was imported
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), unique=True, default=None)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), default=None)
    backbone: Mapped[str] = mapped_column(String(200))
    adapter_sha256: Mapped[str] = mapped_column(_SHA256)
    adapter_bytes: Mapped[int] = mapped_column(BigInteger)
    config_sha256: Mapped[str] = mapped_column(_SHA256)
    card_sha256: Mapped[str] = mapped_column(_SHA256)
    classes: Mapped[list[str]]
    metrics: Mapped[JsonObject]
    #: null in models of the first release, which were not evaluated
    evaluation_sha256: Mapped[str | None] = mapped_column(_SHA256, default=None)
    #: name of a figure -> its status, reason, json_sha256 and png_sha256; null where none was asked
    figures: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    #: set when its user has deleted it; a sweep removes the row a little later. An imported model
    #: has a date that never comes: `core.platform.models.liveness`
    deleted_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (Index("ix_models_project_created_at", "project_id", "created_at", "id"),)


class IdempotencyRow(Base):
    """The answer once given under an `Idempotency-Key`, written with the thing that it created."""

    __tablename__ = "idempotency_keys"

    #: the caller's; for any but the default project its digest, after the project and a space
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(_SHA256)
    resource_id: Mapped[str] = mapped_column(_ID)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class SweepRow(Base):
    """A sweep of a worker that changed something, met a fault, or walked through the store."""

    __tablename__ = "sweeps"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    owner: Mapped[str] = mapped_column(String(200))
    #: what was done, by kind -> how often
    counts: Mapped[JsonObject]
    #: part of the sweep that failed -> why
    faults: Mapped[JsonObject]
    started_at: Mapped[float] = mapped_column(Float(53))
    finished_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now(), index=True)


class TurnRow(Base):
    """When something that one worker does for all of them is due next."""

    __tablename__ = "turns"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    due_at: Mapped[float] = mapped_column(Float(53))


class WebhookEndpointRow(Base):
    """Where a project wants to be told of events, and what signs them."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(
        _ID, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )
    url: Mapped[str] = mapped_column(String(2000))
    #: names of `core.platform.webhooks.event_types`, or `*`
    event_types: Mapped[list[str]]
    description: Mapped[str] = mapped_column(String(200), default="")
    secret: Mapped[str] = mapped_column(String(100))
    #: signs beside `secret` until the time below
    previous_secret: Mapped[str | None] = mapped_column(String(100), default=None)
    previous_secret_until: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: attempts that have failed since the last one that did not
    failures: Mapped[int] = mapped_column(Integer, default=0)
    failing_since: Mapped[float | None] = mapped_column(Float(53), default=None)
    disabled_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: code and message
    disabled_reason: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    #: set when its user has deleted it; a sweep removes the row later
    deleted_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (
        Index("ix_webhook_endpoints_project_id_created_at", "project_id", "created_at"),
    )


class WebhookDeliveryRow(Leased, Base):
    """The outbox: an event that one endpoint is owed, written with what it tells of."""

    __tablename__ = "webhook_deliveries"

    #: the event's id, and the header `webhook-id` of every attempt
    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(
        _ID, default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT
    )
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    type: Mapped[str] = mapped_column(String(60))
    #: the job or dataset that it tells of; null for a test
    subject_id: Mapped[str | None] = mapped_column(_ID, default=None)
    #: the bytes that are signed and sent, the same for every attempt
    payload: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(20), default=DeliveryState.PENDING.value)
    due_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    #: what the last attempts met, oldest first
    attempts: Mapped[list[JsonObject]] = mapped_column(JSON, default=list)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    finished_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (
        Index("ix_webhook_deliveries_state_due_at", "state", "due_at"),
        Index("ix_webhook_deliveries_endpoint_id_created_at", "endpoint_id", "created_at"),
        # An end is told to an endpoint once, whatever attempts and sweeps do.
        UniqueConstraint("endpoint_id", "subject_id", "type"),
    )
