"""What users ask of a job that is there: cancel, pause, resume, retry, another priority.

What changes a job locks it before it looks: one that is handed back between the look and the write
would lose what was asked for. Asking again for what is so already changes nothing. A job of another
project than the given one is not there; None stands for all of them.
"""

from sqlalchemy.orm import Session

from core.errors import ConflictError, NotFoundError
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.jobs.events import add_event
from core.platform.jobs.repository import (
    DatasetUnusableError,
    check_usable,
    create_job,
    get_job,
    lock_job,
)
from core.platform.jobs.specs import JobSpec
from core.platform.jobs.states import HELD, TERMINAL, WAITING
from core.platform.jobs.transitions import enter
from core.types import DatasetId, DatasetState, JobState

_JOBS = "/v1/fine_tuning/jobs"


class JobTerminalError(ConflictError):
    """The job has already ended."""

    code = "job_terminal"


class JobCancellingError(ConflictError):
    """The job is being cancelled, which nothing undoes."""

    code = "job_cancelling"


class JobNotFailedError(ConflictError):
    """Only a job that has failed can be tried again."""

    code = "job_not_failed"


class JobNotWaitingError(ConflictError):
    """The job does not wait for a worker."""

    code = "job_not_waiting"


def request_cancel(session: Session, job_id: str, *, project: str | None = None) -> JobRow:
    """Cancel at once a job that nobody works on; ask the supervisor of one that runs.

    Raises:
        NotFoundError: no such job.
        JobTerminalError: the job has succeeded or failed.
    """
    job = lock_job(session, job_id, project=project)
    state = JobState(job.state)
    if state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    if state in TERMINAL:
        raise JobTerminalError(f"job {job_id} has already {state}; nothing is left to cancel")
    if state in HELD:
        enter(session, job, JobState.CANCELLING)
        add_event(session, job_id, "cancellation asked for", event_type="job.cancelling")
    else:
        enter(session, job, JobState.CANCELLED)
        add_event(session, job_id, "job cancelled", event_type="job.cancelled")
    return job


def request_pause(session: Session, job_id: str, *, project: str | None = None) -> JobRow:
    """Pause at once a job that nobody works on; ask the supervisor of one that runs.

    Raises:
        NotFoundError: no such job.
        JobTerminalError: the job has ended.
        JobCancellingError: it is about to.
    """
    job = lock_job(session, job_id, project=project)
    state = JobState(job.state)
    if state in (JobState.PAUSING, JobState.PAUSED):
        return job
    _check_open(job, "pause")
    if state in HELD:
        enter(session, job, JobState.PAUSING)
        add_event(session, job_id, "pause asked for", event_type="job.pausing")
    else:
        enter(session, job, JobState.PAUSED)
        add_event(session, job_id, "job paused", event_type="job.paused")
    return job


def request_resume(session: Session, job_id: str, *, project: str | None = None) -> JobRow:
    """Queue a paused job again, or take a pause back that its attempt has not followed yet.

    Raises:
        NotFoundError: no such job.
        JobTerminalError: the job has ended.
        JobCancellingError: it is about to.
        DatasetUnusableError: its dataset is invalid or failed.
    """
    job = lock_job(session, job_id, project=project)
    match JobState(job.state):
        case JobState.PAUSED:
            # Read after the job was locked: the end of a validation locks paused jobs, too, so that
            # it has either been committed or will find this job waiting.
            dataset = session.get_one(DatasetRow, job.dataset_id, populate_existing=True)
            check_usable(dataset)
            is_ready = dataset.state == DatasetState.READY
            enter(session, job, JobState.QUEUED if is_ready else JobState.VALIDATING_FILES)
        case JobState.PAUSING:
            enter(session, job, JobState.RUNNING)
        case _:
            _check_open(job, "resume")
            return job
    add_event(session, job_id, "job resumed", event_type="job.resumed")
    return job


def retry_job(
    session: Session, job_id: str, *, project: str | None = None, max_queued_jobs: int = 0
) -> JobRow:
    """Create a job that asks for the same as one that failed, and return it.

    Only failures: a job that somebody cancelled was ended on purpose, and what it asked for can be
    asked for again.

    Raises:
        NotFoundError: no such job.
        JobNotFailedError: it has not failed.
        DatasetUnusableError: its dataset is invalid, failed or deleted.
        TooManyQueuedJobsError: the project has as many jobs waiting as it may.
    """
    job = get_job(session, job_id, project=project)  # not locked: what has failed stays failed
    match JobState(job.state):
        case JobState.FAILED:
            pass
        case JobState.CANCELLED:
            raise JobNotFailedError(
                f"job {job_id} was cancelled, and has not failed; send POST {_JOBS} what it was "
                "created with to run it after all"
            )
        case JobState.SUCCEEDED:
            raise JobNotFailedError(
                f"job {job_id} has succeeded; its model is {job.model_id}. To train once more, "
                f"create another job with POST {_JOBS}"
            )
        case state:
            raise JobNotFailedError(
                f"job {job_id} is {state} and may still succeed; only a failed job is tried again"
            )
    try:
        return create_job(
            session,
            dataset_id=DatasetId(job.dataset_id),
            name=job.name,
            spec=JobSpec.from_json(job.spec),
            metadata=dict(job.labels),
            priority=job.priority,
            retried_from=job.id,
            project=job.project_id,
            memory_bytes=job.memory_bytes,
            max_seconds=job.max_seconds,
            max_queued_jobs=max_queued_jobs,
        )
    except NotFoundError as error:
        raise DatasetUnusableError(
            f"dataset {job.dataset_id}, on which job {job_id} trained, has been deleted; upload "
            f"its archive again and create a job on the new dataset with POST {_JOBS}"
        ) from error


def change_priority(
    session: Session, job_id: str, priority: int, *, project: str | None = None
) -> JobRow:
    """Give a job that waits another priority.

    Raises:
        NotFoundError: no such job.
        JobTerminalError: the job has ended.
        JobNotWaitingError: a worker has it.
    """
    job = lock_job(session, job_id, project=project)
    if job.state in TERMINAL:
        raise JobTerminalError(f"job {job_id} has already {job.state}; its turn is over")
    if job.state not in WAITING:
        raise JobNotWaitingError(
            f"job {job_id} is {job.state}: a worker has it, and its priority no longer matters; "
            f"POST {_JOBS}/{job_id}/pause first if it should make room"
        )
    if job.priority != priority:
        message = f"priority changed from {job.priority} to {priority}"
        job.priority = priority
        session.flush()
        data = {"priority": priority}
        add_event(session, job_id, message, event_type="job.priority_changed", data=data)
    return job


def _check_open(job: JobRow, wish: str) -> None:
    """Refuse what can only be asked of a job that may still go on.

    Raises:
        JobTerminalError: the job has ended.
        JobCancellingError: it is about to.
    """
    match JobState(job.state):
        case JobState.CANCELLING:
            raise JobCancellingError(
                f"job {job.id} is being cancelled, which cannot be undone: too late to {wish} it; "
                f"create another with POST {_JOBS}"
            )
        case JobState.FAILED:
            raise JobTerminalError(
                f"job {job.id} has already failed: nothing is left to {wish}; POST {_JOBS}/"
                f"{job.id}/retry makes a new job of it"
            )
        case JobState.SUCCEEDED:
            raise JobTerminalError(
                f"job {job.id} has already succeeded: nothing is left to {wish}; its model is "
                f"{job.model_id}"
            )
        case JobState.CANCELLED:
            raise JobTerminalError(
                f"job {job.id} has been cancelled: nothing is left to {wish}; create another with "
                f"POST {_JOBS}"
            )
        case _:
            return
