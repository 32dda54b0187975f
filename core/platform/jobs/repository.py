"""Jobs as they are created and read.

How one is claimed is in `core.platform.jobs.claiming`, what an attempt or a sweep does to one in
`attempts` beside it, and what users ask of one that is there in `control`. Callers bring the
transaction; nothing here commits.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from core.errors import ConflictError, NotFoundError, RateLimitedError
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.jobs.events import add_event
from core.platform.jobs.specs import JobSpec
from core.platform.projects.repository import ensure_project, lock_project
from core.types import DEFAULT_PROJECT, DatasetId, DatasetState, JobState, new_job_id

#: States that count against the limit on waiting jobs.
_WAITING = (JobState.QUEUED.value, JobState.VALIDATING_FILES.value)


class DatasetUnusableError(ConflictError):
    """The dataset was rejected or could not be validated."""

    code = "dataset_not_usable"


class TooManyQueuedJobsError(RateLimitedError):
    """The project has as many jobs waiting as it may."""

    code = "too_many_queued_jobs"


def create_job(
    session: Session,
    *,
    dataset_id: DatasetId,
    name: str,
    spec: JobSpec,
    metadata: dict[str, Any],
    priority: int = 0,
    retried_from: str | None = None,
    project: str = DEFAULT_PROJECT,
    memory_bytes: int = 0,
    max_seconds: float | None = None,
    max_queued_jobs: int = 0,
) -> JobRow:
    """Accept a job: queued if its dataset is ready, else waiting for it.

    Args:
        session: a write transaction.
        dataset_id: what to train on.
        name: the job's, and its model's.
        spec: what to do.
        metadata: kept for the user.
        priority: higher is claimed first.
        retried_from: the job that this one repeats.
        project: whose it is, and whose dataset must be.
        memory_bytes: what it needs of a device; 0 if nothing is known.
        max_seconds: longest running time of all its attempts together; None for the setting's.
        max_queued_jobs: how many of the project's jobs may wait, this one included; 0 for any.

    Raises:
        NotFoundError: no such dataset in the project.
        DatasetUnusableError: the dataset is invalid or failed.
        TooManyQueuedJobsError: the project has as many jobs waiting as it may.
    """
    # Locked, so that the dataset cannot become ready between this look and this job's insert,
    # which would leave the job waiting for a promotion that has already passed.
    # And read anew: the caller may have looked at it before, when it was not ready or not deleted.
    dataset = session.get(DatasetRow, dataset_id, with_for_update=True, populate_existing=True)
    if dataset is None or dataset.deleted_at is not None or dataset.project_id != project:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found")
    check_usable(dataset)
    ensure_project(session, project)
    if max_queued_jobs:
        _check_queue(session, project, max_queued_jobs)
    ready = dataset.state == DatasetState.READY
    job = JobRow(
        id=new_job_id(),
        project_id=project,
        name=name,
        state=(JobState.QUEUED if ready else JobState.VALIDATING_FILES).value,
        dataset_id=dataset_id,
        spec=spec.to_json(),
        labels=metadata,
        priority=priority,
        retried_from=retried_from,
        memory_bytes=memory_bytes,
        max_seconds=max_seconds,
    )
    session.add(job)
    session.flush()
    again = f" as another try of {retried_from}" if retried_from else ""
    data = {"retried_from": retried_from} if retried_from else {}
    add_event(session, job.id, f"job accepted{again}", event_type="job.created", data=data)
    return job


def _check_queue(session: Session, project: str, max_queued_jobs: int) -> None:
    lock_project(session, project)  # of two that come at once, the second counts the first
    waiting = select(func.count()).where(JobRow.project_id == project, JobRow.state.in_(_WAITING))
    count = session.scalars(waiting).one()
    if count >= max_queued_jobs:
        raise TooManyQueuedJobsError(
            f"{count} jobs of project {project} wait already, and it may have {max_queued_jobs} "
            "(IDAT_MAX_QUEUED_JOBS); try again when one has started, or cancel one"
        )


def check_usable(dataset: DatasetRow) -> None:
    """Refuse a dataset that no job can ever train on.

    Raises:
        DatasetUnusableError: it is invalid or failed.
    """
    if dataset.state in (DatasetState.INVALID, DatasetState.FAILED):
        raise DatasetUnusableError(
            f"dataset {dataset.id} is {dataset.state}; see GET /v1/datasets/{dataset.id} for the "
            "reason, fix the archive and upload it again"
        )


def find_job(session: Session, job_id: str, *, project: str | None = None) -> JobRow | None:
    """Return the job, or None; `project` as in `get_job`."""
    job = session.get(JobRow, job_id)
    return job if job is None or project in (None, job.project_id) else None


def get_job(session: Session, job_id: str, *, project: str | None = None) -> JobRow:
    """Return the job.

    Args:
        session: any transaction.
        job_id: which.
        project: whose it must be; None for a worker, which works for all of them.

    Raises:
        NotFoundError: no such job in the project.
    """
    job = find_job(session, job_id, project=project)
    if job is None:
        raise _unknown_job(job_id)
    return job


def lock_job(session: Session, job_id: str, *, project: str | None = None) -> JobRow:
    """Return the job as it is now; it stays so until this transaction ends or changes it.

    Raises:
        NotFoundError: no such job in the project; see `get_job`.
    """
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None or project not in (None, job.project_id):
        raise _unknown_job(job_id)
    return job


def _unknown_job(job_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no fine-tuning job {job_id}; GET /v1/fine_tuning/jobs lists them",
        code="job_not_found",
    )


def get_dataset_of(session: Session, job: JobRow) -> DatasetRow:
    """Return the dataset that a job trains on."""
    return session.get_one(DatasetRow, job.dataset_id)


def get_datasets_of(session: Session, jobs: Sequence[JobRow]) -> dict[str, DatasetRow]:
    """Return the datasets that jobs train on, by id, with one query."""
    ids = {job.dataset_id for job in jobs}
    return {
        row.id: row for row in session.scalars(select(DatasetRow).where(DatasetRow.id.in_(ids)))
    }


def list_jobs(
    session: Session,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    state: str | None = None,
    project: str = DEFAULT_PROJECT,
) -> list[JobRow]:
    """Return up to `limit` of a project's jobs beyond `after`, newest first by default."""
    query = select(JobRow).where(JobRow.project_id == project)
    if state is not None:
        query = query.where(JobRow.state == state)
    if after is not None:
        query = query.where(
            _beyond(get_job(session, after, project=project), descending=descending)
        )
    keys = (JobRow.created_at, JobRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: JobRow, *, descending: bool) -> ColumnElement[bool]:
    same = JobRow.created_at == anchor.created_at
    if descending:
        return or_(JobRow.created_at < anchor.created_at, and_(same, JobRow.id < anchor.id))
    return or_(JobRow.created_at > anchor.created_at, and_(same, JobRow.id > anchor.id))
