"""Jobs as they are created and read, and all that an attempt or a sweep does to them.

What users ask of a job that is there is in `core.platform.jobs.control`. Callers bring the
transaction; nothing here commits.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import ConflictError, NotFoundError
from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs.events import add_event
from core.platform.jobs.queue import CLAIM_ORDER
from core.platform.jobs.specs import JobSpec
from core.platform.jobs.states import HELD
from core.platform.jobs.transitions import enter, enter_by_attempt, hold
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetId, DatasetState, JobState, new_job_id

_HELD = tuple(state.value for state in HELD)


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
    priority: int = 0,
    retried_from: str | None = None,
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

    Raises:
        NotFoundError: no such dataset.
        DatasetUnusableError: the dataset is invalid or failed.
    """
    # Locked, so that the dataset cannot become ready between this look and this job's insert,
    # which would leave the job waiting for a promotion that has already passed.
    # And read anew: the caller may have looked at it before, when it was not ready or not deleted.
    dataset = session.get(DatasetRow, dataset_id, with_for_update=True, populate_existing=True)
    if dataset is None or dataset.deleted_at is not None:
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
        priority=priority,
        retried_from=retried_from,
    )
    session.add(job)
    session.flush()
    again = f" as another try of {retried_from}" if retried_from else ""
    data = {"retried_from": retried_from} if retried_from else {}
    add_event(session, job.id, f"job accepted{again}", event_type="job.created", data=data)
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
        raise _unknown_job(job_id)
    return job


def lock_job(session: Session, job_id: str) -> JobRow:
    """Return the job as it is now; it stays so until this transaction ends or changes it.

    Raises:
        NotFoundError: no such job.
    """
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None:
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


def claim_job(session: Session, *, owner: str, ttl_s: float) -> Claim | None:
    """Claim the queued job that is next for a new attempt, or return None."""
    claim = leases.claim_next(
        session,
        JobRow,
        eligible=JobState.QUEUED,
        active=JobState.RUNNING,
        owner=owner,
        ttl_s=ttl_s,
        order=CLAIM_ORDER,
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
    """Renew the lease, store progress, and return the state.

    `cancelling` asks to stop, `pausing` to stop at a checkpoint.

    Raises:
        LeaseLostError: another attempt, or the end of the job, has overtaken this one.
    """
    values = leases.renewal(JobRow, ttl_s)
    if progress is not None:
        values[JobRow.progress] = progress
    return leases.fenced_update(session, JobRow, claim, states=_HELD, values=values)


def record_checkpoint(
    session: Session, claim: Claim, *, sha256: str, step: int, starts_over: bool = False
) -> bool:
    """Point the job at a newer checkpoint, from which the next attempt goes on.

    Args:
        session: a write transaction.
        claim: the attempt's.
        sha256: the checkpoint.
        step: after how many steps it was taken. A step before the one that is recorded is refused.
        starts_over: whether the attempt could not use the recorded one, and began anew.

    Returns:
        Whether the job points at it now.

    Raises:
        LeaseLostError: as in `report_progress`.
    """
    job = hold(session, claim)
    if not starts_over and job.checkpoint_step is not None and step < job.checkpoint_step:
        return False
    job.checkpoint_sha256, job.checkpoint_step = sha256, step
    session.flush()
    return True


def publish(session: Session, claim: Claim, model: ModelRow) -> None:
    """End the job as succeeded and publish its model, both or neither.

    A pause that was asked for too late to stop the attempt changes nothing.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {JobRow.model_id: model.id}
    enter_by_attempt(session, claim, JobState.SUCCEEDED, values)
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
    enter_by_attempt(session, claim, JobState.FAILED, {JobRow.error: error})
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
    """Give a job back without charging the attempt: paused if that was asked for, else queued.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    job = hold(session, claim)
    target = _get_state_after(job)
    enter(session, job, target)
    is_paused = target is JobState.PAUSED
    add_event(
        session,
        claim.row_id,
        "job paused" if is_paused else "attempt handed back by its worker, and not counted",
        event_type="job.paused" if is_paused else "attempt.released",
        attempt=claim.attempt,
    )


def give_up_attempt(
    session: Session, claim: Claim, error: dict[str, Any], *, max_attempts: int
) -> str:
    """End an attempt that crashed: queued or paused again, or failed when it was the last one.

    Returns:
        The job's new state.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job is being cancelled.
    """
    job = hold(session, claim)
    _charge_attempt(session, job, error, max_attempts=max_attempts)
    return job.state


def finish_cancel(session: Session, claim: Claim) -> None:
    """End a job whose cancellation was asked for, its trainer being stopped.

    Raises:
        LeaseLostError: the attempt was overtaken.
    """
    enter_by_attempt(session, claim, JobState.CANCELLED)
    add_event(
        session, claim.row_id, "job cancelled", event_type="job.cancelled", attempt=claim.attempt
    )


def promote_waiting(session: Session, dataset_id: str, state: DatasetState) -> int:
    """Move the jobs that waited for a dataset on, now that it is ready or never will be.

    Paused jobs stay paused when it is ready; without a usable dataset they fail like the others.

    Returns:
        How many jobs became queued.
    """
    origins = (JobState.VALIDATING_FILES.value, JobState.PAUSED.value)
    waiting = select(JobRow).where(JobRow.dataset_id == dataset_id, JobRow.state.in_(origins))
    jobs = session.scalars(waiting.with_for_update()).all()
    queued = 0
    for job in jobs:
        if state == DatasetState.READY:
            if job.state == JobState.VALIDATING_FILES:
                enter(session, job, JobState.QUEUED)
                add_event(session, job.id, "dataset ready, job queued", event_type="job.queued")
                queued += 1
            continue
        error: dict[str, Any] = {
            "code": "dataset_not_usable",
            "message": f"dataset {dataset_id} is {state}; see GET /v1/datasets/{dataset_id}",
            "class": "user" if state == DatasetState.INVALID else "system",
        }
        job.error = error
        enter(session, job, JobState.FAILED)
        add_event(
            session,
            job.id,
            error["message"],
            event_type="job.failed",
            level="error",
            data=error,
        )
    return queued


def expire_attempts(session: Session, *, max_attempts: int) -> list[str]:
    """End the attempts whose lease has run out; return the ids of the jobs touched."""
    lost = select(JobRow).where(JobRow.state.in_(_HELD), leases.expired(JobRow))
    jobs = list(session.scalars(lost.with_for_update(skip_locked=True)))
    for job in jobs:
        if job.state == JobState.CANCELLING:
            enter(session, job, JobState.CANCELLED)
            add_event(session, job.id, "job cancelled", event_type="job.cancelled")
            continue
        error = {
            "code": "worker_lost",
            "message": f"attempt {job.attempt} on {job.lease_owner} stopped renewing its lease",
            "class": "system",
        }
        _charge_attempt(session, job, error, max_attempts=max_attempts)
    return [job.id for job in jobs]


def _get_state_after(job: JobRow) -> JobState:
    """Return where a job goes whose attempt ends without an end of the job."""
    match JobState(job.state):
        case JobState.RUNNING:
            return JobState.QUEUED
        case JobState.PAUSING:
            return JobState.PAUSED
        case _:
            raise LeaseLostError(f"{job.id} is {job.state}")


def _charge_attempt(
    session: Session, job: JobRow, error: dict[str, Any], *, max_attempts: int
) -> None:
    """Count a failed attempt and queue or pause the job again, or fail it after the last."""
    target = _get_state_after(job)
    job.failures += 1
    final = job.failures >= max_attempts
    if final:
        job.error = {**error, "attempts": job.failures}
        target = JobState.FAILED
    enter(session, job, target)
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
    if target is JobState.PAUSED:
        add_event(session, job.id, "job paused", event_type="job.paused", attempt=job.attempt)
