"""Jobs as answers show them: the row, its dataset's classes and its place in the queue."""

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from api.job_requests.counts import count_trainable
from api.schemas.jobs import Job, JobProgress, TrainableByRole
from core.clock import now_s
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.jobs.queue import Place, find_places
from core.platform.jobs.repository import get_datasets_of
from core.platform.jobs.specs import JobSpec
from core.platform.jobs.states import HELD
from core.settings import Settings
from core.types import JobState


def show_job(session: Session, row: JobRow, settings: Settings) -> Job:
    """Show one job."""
    return build_view(session, [row], settings)(row)


def build_view(
    session: Session, rows: Sequence[JobRow], settings: Settings
) -> Callable[[JobRow], Job]:
    """Read all that is shown of these jobs, in few statements; return what shows one of them."""
    datasets = get_datasets_of(session, rows)
    places = find_places(session, rows, max_running_jobs=settings.max_running_jobs)

    def show(row: JobRow) -> Job:
        return Job.from_row(
            row,
            progress=_build_progress(row, places.get(row.id)),
            trainable=_count_trainable(row, datasets[row.dataset_id]),
        )

    return show


def _count_trainable(row: JobRow, dataset: DatasetRow) -> TrainableByRole | None:
    if not dataset.classes:
        return None
    return count_trainable(JobSpec.from_json(row.spec), len(dataset.classes))


def _build_progress(row: JobRow, place: Place | None) -> JobProgress:
    """Put what the trainer last said and what the queue knows into one shape."""
    state = JobState(row.state)
    progress = JobProgress.from_report(row.progress or {})
    if state is JobState.SUCCEEDED:
        progress = progress.model_copy(update={"percent": 100.0, "eta_s": 0.0})
    elif state in HELD and progress.eta_s is not None:
        progress.estimated_finish = int(now_s() + progress.eta_s)
    else:
        progress.eta_s = None
    if place is not None:
        progress.queue_position = place.position
        progress.estimated_start = None if place.starts_at is None else int(place.starts_at)
    return progress
