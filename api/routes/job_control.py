"""What can be done to a fine-tuning job: cancel, pause, resume, retry, another priority."""

from fastapi import APIRouter, BackgroundTasks, Depends, Response
from sqlalchemy.orm import Session

from api.deps import (
    DatabaseDep,
    DoorbellDep,
    ProjectDep,
    ReferencePath,
    SettingsDep,
    require_json,
)
from api.idempotency import REPLAYED_HEADER, IdempotencyKey, create_once, digest_request
from api.job_views import show_job
from api.schemas.job_changes import JobChanges
from api.schemas.jobs import Job
from api.schemas.problems import problems
from core.platform.db.tables import JobRow
from core.platform.doorbell import DELIVER_TASK, TRAIN_TASK
from core.platform.jobs import control, repository
from core.types import JobState

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


@router.patch(
    "/{job_id}",
    responses=problems(400, 404, 409, 413, 415, 422),
    dependencies=[Depends(require_json)],
)
def change_job(
    changes: JobChanges,
    database: DatabaseDep,
    settings: SettingsDep,
    project: ProjectDep,
    job_id: ReferencePath,
) -> Job:
    """Change the priority of a job that waits for a worker, for its dataset or for you."""
    with database.write() as session:
        row = control.change_priority(session, job_id, changes.priority, project=project)
        return show_job(session, row, settings)


@router.post("/{job_id}/cancel", responses=problems(404, 409))
def cancel_job(
    *,
    database: DatabaseDep,
    settings: SettingsDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    project: ProjectDep,
    job_id: ReferencePath,
) -> Job:
    """Cancel a job; one that runs is `cancelling` until its trainer has stopped."""
    with database.write() as session:
        job = show_job(session, control.request_cancel(session, job_id, project=project), settings)
    _ring_for(job.status, doorbell, background)
    return job


@router.post("/{job_id}/pause", responses=problems(404, 409))
def pause_job(
    database: DatabaseDep, settings: SettingsDep, project: ProjectDep, job_id: ReferencePath
) -> Job:
    """Pause a job; one that runs is `pausing` until its trainer has left a checkpoint and its GPU.

    That takes 30 seconds at most. A trainer that has done its work by then succeeds all the same.
    """
    with database.write() as session:
        return show_job(session, control.request_pause(session, job_id, project=project), settings)


@router.post("/{job_id}/resume", responses=problems(404, 409))
def resume_job(
    *,
    database: DatabaseDep,
    settings: SettingsDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    project: ProjectDep,
    job_id: ReferencePath,
) -> Job:
    """Let a paused job go on from its checkpoint, in its old place in the queue."""
    with database.write() as session:
        job = show_job(session, control.request_resume(session, job_id, project=project), settings)
    _ring_for(job.status, doorbell, background)
    return job


@router.post("/{job_id}/retry", status_code=201, responses=problems(404, 409, 422, 429))
def retry_job(
    *,
    database: DatabaseDep,
    settings: SettingsDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    response: Response,
    project: ProjectDep,
    key: IdempotencyKey,
    job_id: ReferencePath,
) -> Job:
    """Create a new job that asks for the same as one that has failed."""
    digest = digest_request(f"POST {router.prefix}/{job_id}/retry", {})

    def create(session: Session) -> tuple[str, JobRow]:
        row = control.retry_job(
            session, job_id, project=project, max_queued_jobs=settings.max_queued_jobs
        )
        return row.id, row

    row, is_new = create_once(database, key, digest, create=create, load=repository.get_job)
    if is_new:
        _ring_for(JobState(row.state), doorbell, background)
    else:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"{router.prefix}/{row.id}"
    with database.read() as session:
        return show_job(session, repository.get_job(session, row.id), settings)


def _ring_for(state: JobState, doorbell: DoorbellDep, background: BackgroundTasks) -> None:
    # After the commit and after the answer: a broker that hangs delays nobody.
    if state is JobState.QUEUED:
        background.add_task(doorbell.ring, TRAIN_TASK)
    elif state is JobState.CANCELLED:
        background.add_task(doorbell.ring, DELIVER_TASK)  # somebody may wait to be told
