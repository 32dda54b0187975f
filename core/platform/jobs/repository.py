"""Every change to a job's row. Callers bring the transaction; nothing here commits."""

from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import ConflictError, NotFoundError
from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs.events import add_event
from core.platform.jobs.specs import JobSpec
from core.platform.jobs.states import HELD, TERMINAL, TRANSITIONS
from core.platform.leases import Claim
from core.types import DatasetId, DatasetState, JobState, new_job_id

_RUNNING = (JobState.RUNNING.value,)
_HELD = tuple(state.value for state in HELD)


class JobTerminalError(ConflictError):
    """The job has already ended."""

    code = "job_terminal"


class DatasetUnusableError(ConflictError):
    """The dataset was rejected or could not be validated."""

    code = "dataset_not_usable"


def create_job(
    session: Session,
    *,
    dataset_id: DatasetId,
    name: str,
    spec: JobSpec,
    metadata: dict[str, Any],
) -> JobRow:
    """Accept a job: queued if its dataset is ready, else waiting for it.

    Raises:
        NotFoundError: no such dataset.
        DatasetUnusableError: the dataset is invalid or failed.
    """
    # Locked, so that the dataset cannot become ready between this look and this job's insert,
    # which would leave the job waiting for a promotion that has already passed.
    dataset = session.scalars(
        select(DatasetRow).where(DatasetRow.id == dataset_id).with_for_update()
    ).one_or_none()
    if dataset is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found")
    check_usable(dataset)
    ready = dataset.state == DatasetState.READY
    job = JobRow(
        id=new_job_id(),
        name=name,
        state=(JobState.QUEUED if ready else JobState.VALIDATING_FILES).value,
        dataset_id=dataset_id,
        spec=spec.to_json(),
        labels=metadata,
    )
    session.add(job)
    session.flush()
    add_event(session, job.id, "job accepted", event_type="job.created")
    return job


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


def find_job(session: Session, job_id: str) -> JobRow | None:
    """Return the job, or None."""
    return session.get(JobRow, job_id)


def get_job(session: Session, job_id: str) -> JobRow:
    """Return the job.

    Raises:
        NotFoundError: no such job.
    """
    job = find_job(session, job_id)
    if job is None:
        raise NotFoundError(
            f"there is no fine-tuning job {job_id}; GET /v1/fine_tuning/jobs lists them",
            code="job_not_found",
        )
    return job


def get_dataset_of(session: Session, job: JobRow) -> DatasetRow:
    """Return the dataset that a job trains on."""
    return session.get_one(DatasetRow, job.dataset_id)


def list_jobs(
    session: Session,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    state: str | None = None,
) -> list[JobRow]:
    """Return up to `limit` jobs beyond the job `after`, newest first unless told otherwise."""
    query = select(JobRow)
    if state is not None:
        query = query.where(JobRow.state == state)
    if after is not None:
        query = query.where(_beyond(get_job(session, after), descending=descending))
    keys = (JobRow.created_at, JobRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: JobRow, *, descending: bool) -> ColumnElement[bool]:
    same = JobRow.created_at == anchor.created_at
    if descending:
        return or_(JobRow.created_at < anchor.created_at, and_(same, JobRow.id < anchor.id))
    return or_(JobRow.created_at > anchor.created_at, and_(same, JobRow.id > anchor.id))


def queue_position(session: Session, job: JobRow) -> int | None:
    """Return how many queued jobs are ahead of this one, or None when it is not queued."""
    if job.state != JobState.QUEUED:
        return None
    ahead = _beyond(job, descending=True)
    query = select(func.count()).select_from(JobRow).where(JobRow.state == JobState.QUEUED, ahead)
    return session.scalar(query) or 0


def claim_job(session: Session, *, owner: str, ttl_s: float) -> Claim | None:
    """Claim the oldest queued job for a new attempt, or return None."""
    claim = leases.claim_next(
        session,
        JobRow,
        eligible=JobState.QUEUED,
        active=JobState.RUNNING,
        owner=owner,
        ttl_s=ttl_s,
        extra={JobRow.started_at: func.coalesce(JobRow.started_at, db_now())},
    )
    if claim is not None:
        add_event(
            session,
            claim.row_id,
            f"attempt {claim.attempt} started on {owner}",
            event_type="attempt.started",
            attempt=claim.attempt,
        )
    return claim


def report_progress(
    session: Session, claim: Claim, *, ttl_s: float, progress: dict[str, Any] | None = None
) -> str:
    """Renew the lease, store progress, and return the state (`cancelling` asks to stop).

    Raises:
        LeaseLostError: another attempt, or the end of the job, has overtaken this one.
    """
    values = leases.renewal(JobRow, ttl_s)
    if progress is not None:
        values[JobRow.progress] = progress
    return leases.fenced_update(session, JobRow, claim, states=_HELD, values=values)


def record_checkpoint(session: Session, claim: Claim, *, sha256: str, step: int) -> None:
    """Point the job at a newer checkpoint, from which the next attempt goes on.

    Raises:
        LeaseLostError: as in `report_progress`.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.checkpoint_sha256: sha256,
        JobRow.checkpoint_step: step,
    }
    leases.fenced_update(session, JobRow, claim, states=_HELD, values=values)


def publish(session: Session, claim: Claim, model: ModelRow) -> None:
    """End the job as succeeded and publish its model, both or neither.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.state: JobState.SUCCEEDED.value,
        JobRow.model_id: model.id,
        JobRow.finished_at: db_now(),
        **leases.surrender(JobRow),
    }
    leases.fenced_update(session, JobRow, claim, states=_RUNNING, values=values)
    session.add(model)
    session.flush()
    add_event(
        session,
        claim.row_id,
        f"model {model.id} published",
        event_type="job.succeeded",
        attempt=claim.attempt,
        data={"model_id": model.id},
    )


def fail(session: Session, claim: Claim, error: dict[str, Any]) -> None:
    """End the job as failed for a reason that another attempt would meet again.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.state: JobState.FAILED.value,
        JobRow.error: error,
        JobRow.finished_at: db_now(),
        **leases.surrender(JobRow),
    }
    leases.fenced_update(session, JobRow, claim, states=_RUNNING, values=values)
    add_event(
        session,
        claim.row_id,
        str(error["message"]),
        event_type="job.failed",
        level="error",
        attempt=claim.attempt,
        data=error,
    )


def release(session: Session, claim: Claim) -> None:
    """Give a running job back without charging the attempt (the worker is shutting down).

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.state: JobState.QUEUED.value,
        **leases.surrender(JobRow),
    }
    leases.fenced_update(session, JobRow, claim, states=_RUNNING, values=values)
    add_event(
        session,
        claim.row_id,
        "attempt handed back: its worker is shutting down",
        event_type="attempt.released",
        attempt=claim.attempt,
    )


def give_up_attempt(
    session: Session, claim: Claim, error: dict[str, Any], *, max_attempts: int
) -> str:
    """End an attempt that crashed: back to the queue, or failed when it was the last one.

    Returns:
        The job's new state.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    leases.fenced_update(session, JobRow, claim, states=_RUNNING, values={})
    job = session.get_one(JobRow, claim.row_id, populate_existing=True)
    _charge_attempt(session, job, error, max_attempts=max_attempts)
    return job.state


def finish_cancel(session: Session, claim: Claim) -> None:
    """End a job whose cancellation was asked for, its trainer being stopped.

    Raises:
        LeaseLostError: the attempt was overtaken.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        JobRow.state: JobState.CANCELLED.value,
        JobRow.finished_at: db_now(),
        **leases.surrender(JobRow),
    }
    states = (JobState.CANCELLING.value,)
    leases.fenced_update(session, JobRow, claim, states=states, values=values)
    add_event(
        session, claim.row_id, "job cancelled", event_type="job.cancelled", attempt=claim.attempt
    )


def request_cancel(session: Session, job_id: str) -> JobRow:
    """Cancel at once a job that nobody works on; ask the supervisor of one that runs.

    Repeating the call changes nothing.

    Raises:
        NotFoundError: no such job.
        JobTerminalError: the job has succeeded or failed.
    """
    # Locked before it is looked at: a job that is handed back between the look and the write would
    # lose the cancellation.
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise NotFoundError(
            f"there is no fine-tuning job {job_id}; GET /v1/fine_tuning/jobs lists them",
            code="job_not_found",
        )
    state = JobState(job.state)
    if JobState.CANCELLING in TRANSITIONS[state]:
        job.state = JobState.CANCELLING.value
        add_event(session, job_id, "cancellation asked for", event_type="job.cancelling")
    elif state in TERMINAL and state != JobState.CANCELLED:
        raise JobTerminalError(f"job {job_id} has already {state}; nothing is left to cancel")
    elif state not in HELD and state not in TERMINAL:
        job.state = JobState.CANCELLED.value
        job.finished_at = session.scalar(select(db_now()))
        add_event(session, job_id, "job cancelled", event_type="job.cancelled")
    session.flush()
    return job


def promote_waiting(session: Session, dataset_id: str, state: DatasetState) -> int:
    """Move the jobs that waited for a dataset on, now that it is ready or never will be.

    Returns:
        How many jobs became queued.
    """
    waiting = select(JobRow).where(
        JobRow.dataset_id == dataset_id, JobRow.state == JobState.VALIDATING_FILES
    )
    queued = 0
    for job in session.scalars(waiting.with_for_update()):
        if state == DatasetState.READY:
            job.state = JobState.QUEUED.value
            add_event(session, job.id, "dataset ready, job queued", event_type="job.queued")
            queued += 1
        else:
            error: dict[str, Any] = {
                "code": "dataset_not_usable",
                "message": f"dataset {dataset_id} is {state}; see GET /v1/datasets/{dataset_id}",
                "class": "user" if state == DatasetState.INVALID else "system",
            }
            job.state = JobState.FAILED.value
            job.error = error
            job.finished_at = session.scalar(select(db_now()))
            add_event(
                session,
                job.id,
                error["message"],
                event_type="job.failed",
                level="error",
                data=error,
            )
    session.flush()
    return queued


def expire_attempts(session: Session, *, max_attempts: int) -> list[str]:
    """End the attempts whose lease has run out; return the ids of the jobs touched."""
    lost = select(JobRow).where(JobRow.state.in_(_HELD), leases.expired(JobRow))
    jobs = list(session.scalars(lost.with_for_update(skip_locked=True)))
    for job in jobs:
        if job.state == JobState.CANCELLING:
            job.state = JobState.CANCELLED.value
            job.finished_at = session.scalar(select(db_now()))
            job.lease_owner = job.lease_expires_at = None
            add_event(session, job.id, "job cancelled", event_type="job.cancelled")
            continue
        error = {
            "code": "worker_lost",
            "message": f"attempt {job.attempt} on {job.lease_owner} stopped renewing its lease",
            "class": "system",
        }
        _charge_attempt(session, job, error, max_attempts=max_attempts)
    session.flush()
    return [job.id for job in jobs]


def _charge_attempt(
    session: Session, job: JobRow, error: dict[str, Any], *, max_attempts: int
) -> None:
    """Count a failed attempt and send the job back to the queue, or to `failed` after the last."""
    job.failures += 1
    job.lease_owner = job.lease_expires_at = None
    final = job.failures >= max_attempts
    if final:
        job.state = JobState.FAILED.value
        job.error = {**error, "attempts": job.failures}
        job.finished_at = session.scalar(select(db_now()))
    else:
        job.state = JobState.QUEUED.value
    again = "given up" if final else "will be tried again from its last checkpoint"
    add_event(
        session,
        job.id,
        f"{error['message']} (failure {job.failures} of {max_attempts}, {again})",
        event_type="job.failed" if final else "attempt.lost",
        level="error" if final else "warning",
        attempt=job.attempt,
        data=error,
    )
    session.flush()
