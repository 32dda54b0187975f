"""Jobs that have succeeded, as what they took tells of what others will take."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.tables import DatasetRow, JobRow
from core.types import JobState

#: How many of the newest successes are looked at.
RECENT = 50


def list_finished(session: Session, project: str) -> list[tuple[JobRow, DatasetRow]]:
    """Return a project's newest successes that needed one attempt, each with its dataset.

    The others' times include what they spent in the queue or paused.
    """
    newest = (
        select(JobRow, DatasetRow)
        .join(DatasetRow, DatasetRow.id == JobRow.dataset_id)
        .where(JobRow.project_id == project, JobRow.state == JobState.SUCCEEDED)
        .order_by(JobRow.created_at.desc())
        .limit(RECENT)
    )
    found = session.execute(newest).all()
    return [(job, dataset) for job, dataset in found if job.attempt == 1]
