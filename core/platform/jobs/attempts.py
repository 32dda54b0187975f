"""What an attempt does to its job, and a sweep to one whose attempt is lost. All of it fenced."""

from typing import Any

from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform import leases
from core.platform.db.tables import JobRow, ModelRow
from core.platform.jobs.events import add_event
from core.platform.jobs.states import HELD
from core.platform.jobs.transitions import enter, enter_by_attempt, hold
from core.platform.leases import Claim, LeaseLostError
from core.platform.models.versions import assign_version
from core.types import JobState

_HELD = tuple(state.value for state in HELD)


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
    assign_version(session, model)
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


def expire_attempts(session: Session, *, max_attempts: int) -> list[str]:
    """End the attempts whose lease has run out; return the ids of the jobs touched."""
    jobs = leases.lock_expired(session, JobRow, _HELD)
    for job in jobs:
        if job.state == JobState.CANCELLING:
            enter(session, job, JobState.CANCELLED)
            add_event(session, job.id, "job cancelled", event_type="job.cancelled")
            continue
        _charge_attempt(session, job, leases.describe_loss(job), max_attempts=max_attempts)
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
