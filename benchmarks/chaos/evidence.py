"""What is left after a run: rows, blobs, files and processes, read without the service's help."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, select, text

from core.platform.db.engine import Database
from core.platform.db.tables import (
    DatasetRow,
    IdempotencyRow,
    JobEventRow,
    JobRow,
    ModelRow,
    WebhookDeliveryRow,
)
from core.platform.storage.base import BlobStore


@dataclass(frozen=True)
class JobFact:
    """A job's row."""

    id: str
    state: str
    attempt: int
    failures: int
    key: str | None
    dataset_id: str
    model_id: str | None = None
    error_code: str | None = None
    retried_from: str | None = None


@dataclass(frozen=True)
class EventFact:
    """A line of a job's log."""

    id: int
    type: str
    attempt: int


@dataclass(frozen=True)
class ModelFact:
    """A model's row; `blobs` has the digests of its files by what they are."""

    id: str
    job_id: str
    blobs: dict[str, str | None]


@dataclass(frozen=True)
class DatasetFact:
    """A dataset's row; `blobs` likewise."""

    id: str
    state: str
    is_deleted: bool
    blobs: dict[str, str | None]


@dataclass(frozen=True)
class NewsFact:
    """A row of the outbox: an event that the receiver is owed."""

    id: str
    subject_id: str | None
    type: str
    state: str
    attempt: int


@dataclass
class Evidence:
    """Everything that the oracle looks at.

    Attributes:
        jobs, events, models, datasets, keys, news: the rows; events by job, in the order of ids.
        blobs: name in the store -> digest of what is there.
        documents: digests of blobs that are JSON objects.
        leftovers: files and folders that nobody should have left.
        processes: those that should have ended.
        faults: what the database or the APIs say is wrong with them.
        max_attempts: of the service.
    """

    max_attempts: int = 3
    jobs: list[JobFact] = field(default_factory=list)
    events: dict[str, list[EventFact]] = field(default_factory=dict)
    models: list[ModelFact] = field(default_factory=list)
    datasets: list[DatasetFact] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    news: list[NewsFact] = field(default_factory=list)
    blobs: dict[str, str] = field(default_factory=dict)
    documents: set[str] = field(default_factory=set)
    leftovers: list[str] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def attempts(self) -> Counter[int]:
        """How many attempts it took -> how many jobs."""
        return Counter(job.attempt for job in self.jobs)


def read_rows(database: Database, evidence: Evidence) -> None:
    """Read every row that the oracle looks at, in one transaction."""
    events: dict[str, list[EventFact]] = defaultdict(list)
    with database.read() as session:
        evidence.jobs = [_read_job(row) for row in session.scalars(select(JobRow))]
        for line in session.scalars(select(JobEventRow).order_by(JobEventRow.id)):
            events[line.job_id].append(EventFact(line.id, line.type, line.attempt))
        evidence.models = [_read_model(row) for row in session.scalars(select(ModelRow))]
        evidence.datasets = [_read_dataset(row) for row in session.scalars(select(DatasetRow))]
        evidence.keys = {
            row.key: row.resource_id for row in session.scalars(select(IdempotencyRow))
        }
        evidence.news = [
            NewsFact(row.id, row.subject_id, row.type, row.state, row.attempt)
            for row in session.scalars(select(WebhookDeliveryRow))
        ]
    evidence.events = dict(events)


def read_blobs(store: BlobStore, evidence: Evidence) -> None:
    """Read every blob, and note what its bytes really are."""
    for blob in list(store.iter_blobs()):
        with store.open(blob.sha256) as file:
            data = file.read()
        evidence.blobs[blob.sha256] = hashlib.sha256(data).hexdigest()
        if data.startswith(b"{") and _is_object(data):
            evidence.documents.add(blob.sha256)


def read_integrity(database: Database) -> list[str]:
    """Return what the database finds wrong with itself, and rows that point nowhere."""
    faults = []
    with database.read() as session:
        if database.engine.dialect.name == "sqlite":
            checked = session.execute(text("PRAGMA integrity_check")).scalars()
            faults += [f"integrity_check: {line}" for line in checked if line != "ok"]
            dangling = session.execute(text("PRAGMA foreign_key_check"))
            faults += [f"foreign_key_check: {tuple(row)}" for row in dangling]
            return faults
        tables = inspect(database.engine)
        for table in tables.get_table_names():
            for key in tables.get_foreign_keys(table):
                (column,), (target,) = key["constrained_columns"], key["referred_columns"]
                query = (
                    f"SELECT count(*) FROM {table} t WHERE t.{column} IS NOT NULL AND NOT EXISTS "  # noqa: S608 - names from the schema
                    f"(SELECT 1 FROM {key['referred_table']} o WHERE o.{target} = t.{column})"
                )
                if count := session.execute(text(query)).scalar_one():
                    faults.append(f"{count} rows of {table}.{column} point nowhere")
        locks = text(
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE d.datname = current_database() AND l.locktype = 'advisory'"
        )
        if count := session.execute(locks).scalar_one():
            faults.append(f"{count} advisory locks are still held")
    return faults


def list_leftovers(data_dir: Path, *, ours: Sequence[str] = ()) -> list[str]:
    """Return files in the making that are there although nothing is.

    Args:
        data_dir: of the service.
        ours: names that do not count.
    """
    incoming = [*data_dir.glob("blobs/incoming/*"), *data_dir.glob("cache/incoming/*")]
    paths = [*data_dir.glob("scratch/*"), *incoming]
    return [str(path.relative_to(data_dir)) for path in paths if path.name not in ours]


def _read_job(row: JobRow) -> JobFact:
    return JobFact(
        id=row.id,
        state=row.state,
        attempt=row.attempt,
        failures=row.failures,
        key=_text(row.labels.get("key")),
        dataset_id=row.dataset_id,
        model_id=row.model_id,
        error_code=_text((row.error or {}).get("code")),
        retried_from=row.retried_from,
    )


def _read_model(row: ModelRow) -> ModelFact:
    blobs: dict[str, str | None] = {
        "adapter": row.adapter_sha256,
        "config": row.config_sha256,
        "card": row.card_sha256,
        "evaluation": row.evaluation_sha256,
    }
    figures: dict[str, Any] = row.figures or {}
    for name, figure in figures.items():
        blobs[f"{name}.json"] = figure["json_sha256"]
        if figure["status"] == "ready":
            blobs[f"{name}.png"] = figure["png_sha256"]
    return ModelFact(row.id, str(row.job_id), blobs)


def _read_dataset(row: DatasetRow) -> DatasetFact:
    blobs = {"archive": row.archive_sha256, "manifest": row.manifest_sha256}
    blobs |= {f"cache {px}": str(sha256) for px, sha256 in row.caches.items()}
    return DatasetFact(row.id, row.state, row.deleted_at is not None, blobs)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
