"""Jobs that wait for their dataset, when it is ready or never will be."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.tables import JobRow
from core.platform.jobs.events import add_event
from core.platform.jobs.transitions import enter
from core.types import DatasetState, JobState


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
