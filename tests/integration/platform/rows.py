"""Rows in the states that the tests start from."""

import dataclasses
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.platform.datasets import repository as datasets
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs import attempts, claiming, control, events
from core.platform.jobs import repository as jobs
from core.platform.jobs.specs import JobSpec
from core.platform.leases import Claim
from core.types import DatasetId, DatasetState, JobState, new_model_id

TTL_S = 60.0
CRASH = {"code": "process_died", "message": "it crashed", "class": "system"}

SPEC = JobSpec(
    method="idat",
    pair="starter",
    student="idat_starter_student",
    teacher="idat_starter_teacher",
    adapter_kind="sequential",
    hidden_dim=4,
    scale=0.1,
    loss="mse",
    loss_weight=1.0,
    temperature=5.0,
    recipe="default",
    epochs=2,
    warmup_epochs=1,
    batch_size=8,
    learning_rate=0.1 + 0.2,  # not a short decimal
    weight_decay=1e-300,
    drop_path=0.0,
    precision="fp32",
    seed=2**53 + 1,
)


def add_dataset(
    database: Database, state: DatasetState = DatasetState.READY, *, project: str = "default"
) -> DatasetId:
    """A dataset in this state."""
    with database.write() as session:
        dataset = datasets.create_dataset(
            session,
            name="flowers",
            seed=0,
            archive_sha256="0" * 64,
            archive_bytes=1,
            archive_name="flowers.zip",
            project=project,
        )
        dataset.state = state.value
        return DatasetId(dataset.id)


def add_job(
    database: Database,
    dataset_id: DatasetId | None = None,
    *,
    priority: int = 0,
    project: str = "default",
) -> str:
    """A job on this dataset, or on a ready one of its own."""
    dataset_id = dataset_id or add_dataset(database, project=project)
    with database.write() as session:
        job = jobs.create_job(
            session,
            dataset_id=dataset_id,
            name="f",
            spec=SPEC,
            metadata={},
            priority=priority,
            project=project,
        )
        return job.id


def claim(database: Database, owner: str = "host:1") -> Claim:
    """Claim the queued job that is next."""
    with database.write() as session:
        claimed = claiming.claim_job(session, owner=owner, ttl_s=TTL_S)
    assert claimed is not None
    return claimed


def add_job_in(database: Database, state: JobState) -> Claim:
    """A job in this state, brought there by the repository, and the claim of its attempt.

    A job that nobody has claimed gets a claim all the same: what an attempt would hold that was
    released, or that never was.
    """
    waits = state == JobState.VALIDATING_FILES
    dataset_id = add_dataset(database, DatasetState.PENDING if waits else DatasetState.READY)
    job_id = add_job(database, dataset_id)
    if state in (JobState.VALIDATING_FILES, JobState.QUEUED):
        return Claim(job_id, attempt=0, owner="host:1")
    claimed = claim(database)
    with database.write() as session:
        if state in (JobState.CANCELLING, JobState.CANCELLED):
            control.request_cancel(session, job_id)
        if state in (JobState.PAUSING, JobState.PAUSED):
            control.request_pause(session, job_id)
        if state == JobState.PAUSED:
            attempts.release(session, claimed)
        if state == JobState.CANCELLED:
            attempts.finish_cancel(session, claimed)
        elif state == JobState.SUCCEEDED:
            attempts.publish(session, claimed, build_model(session, job_id))
        elif state == JobState.FAILED:
            attempts.fail(session, claimed, CRASH)
    assert job_of(database, job_id).state == state
    return claimed


def cancel(database: Database, job_id: str) -> str:
    """Ask for a cancellation; the state that the job is in then."""
    with database.write() as session:
        return control.request_cancel(session, job_id).state


def pause(database: Database, job_id: str) -> str:
    """Ask for a pause; the state that the job is in then."""
    with database.write() as session:
        return control.request_pause(session, job_id).state


def resume(database: Database, job_id: str) -> str:
    """Ask for a resumption; the state that the job is in then."""
    with database.write() as session:
        return control.request_resume(session, job_id).state


def retry(database: Database, job_id: str) -> str:
    """Try a failed job again; the new job's id."""
    with database.write() as session:
        return control.retry_job(session, job_id).id


def tell_events(database: Database, job_id: str) -> list[str]:
    """The types of a job's events, oldest first."""
    with database.read() as session:
        return [e.type for e in events.list_events(session, job_id, after=0, limit=1000)]


def build_model(session: Session, job_id: str) -> ModelRow:
    """A model that this job may publish."""
    job = jobs.get_job(session, job_id)
    return ModelRow(
        id=new_model_id(),
        project_id=job.project_id,
        name=job.name,
        job_id=job_id,
        dataset_id=job.dataset_id,
        backbone=SPEC.student,
        adapter_sha256="a" * 64,
        adapter_bytes=1,
        config_sha256="c" * 64,
        card_sha256="d" * 64,
        classes=["a", "b"],
        metrics={"test_accuracy": 0.5},
    )


def publish(database: Database, claimed: Claim) -> None:
    """Publish a model for this attempt."""
    with database.write() as session:
        attempts.publish(session, claimed, build_model(session, claimed.row_id))


def let_lease_run_out(
    database: Database, row_id: str, table: type[JobRow] | type[DatasetRow] = JobRow
) -> None:
    """Move the end of a row's lease into the past."""
    with database.write() as session:
        session.execute(
            update(table).where(table.id == row_id).values(lease_expires_at=db_now() - 1)
        )


def expire(database: Database, *, max_attempts: int = 3) -> list[str]:
    """Run the sweep of jobs."""
    with database.write() as session:
        return attempts.expire_attempts(session, max_attempts=max_attempts)


def lose(database: Database, claimed: Claim, *, max_attempts: int = 3) -> None:
    """Let an attempt's lease run out, and sweep."""
    let_lease_run_out(database, claimed.row_id)
    assert expire(database, max_attempts=max_attempts) == [claimed.row_id]


def job_of(database: Database, job_id: str) -> JobRow:
    """The job as it is now."""
    with database.read() as session:
        return jobs.get_job(session, job_id)


def dataset_of(database: Database, dataset_id: str) -> DatasetRow:
    """The dataset as it is now."""
    with database.read() as session:
        return datasets.get_dataset(session, dataset_id)


def models_of(database: Database) -> list[ModelRow]:
    """All models."""
    with database.read() as session:
        return list(session.scalars(select(ModelRow)))


def columns_of(row: JobRow | DatasetRow) -> dict[str, Any]:
    """Every column of a row, for comparison."""
    return {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}


def stale(claimed: Claim) -> Claim:
    """The claim of the attempt before."""
    return dataclasses.replace(claimed, attempt=claimed.attempt - 1)
