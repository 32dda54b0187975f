"""Fine-tuning jobs: create and watch. What else can be done to one: `api.routes.job_control`."""

import re
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
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
from api.job_requests.counts import count_frozen, count_steps, count_trainable
from api.job_requests.estimate import estimate, estimate_job_memory
from api.job_requests.resolve import build_slug, resolve
from api.job_views import build_view, show_job
from api.pagination import LogPageDep, Page, PageDep
from api.schemas.jobs import (
    EpochMetrics,
    Job,
    JobEstimate,
    JobEvent,
    JobRequest,
)
from api.schemas.problems import problems
from core.catalog.backbones import get_backbone
from core.errors import FieldError, InvalidError, NotFoundError
from core.platform.datasets.repository import get_dataset
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.doorbell import TRAIN_TASK
from core.platform.jobs import events, repository
from core.platform.jobs.specs import JobSpec
from core.types import DatasetId, DatasetState, JobState, Split

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_EVENT_ID = re.compile(r"evt_([0-9]{1,18})")


@router.post(
    "",
    status_code=201,
    response_model=Job | JobEstimate,
    responses={
        **problems(400, 409, 413, 415, 422, 429),
        200: {"model": JobEstimate, "description": "With `dry_run`: nothing was created."},
    },
    dependencies=[Depends(require_json)],
)
def create_job(
    *,
    wanted: JobRequest,
    database: DatabaseDep,
    settings: SettingsDep,
    project: ProjectDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    response: Response,
    key: IdempotencyKey,
    dry_run: Annotated[bool, Query(description="Only say what the job would be.")] = False,
) -> Job | JSONResponse:
    """Create a job; it waits for its dataset if that is not validated yet."""
    spec = resolve(wanted)
    if dry_run:
        return JSONResponse(_estimate(database, project, wanted, spec).model_dump(mode="json"))
    digest = digest_request("POST /v1/fine_tuning/jobs", wanted.model_dump(mode="json"))

    def create(session: Session) -> tuple[str, JobRow]:
        dataset = _find_dataset(session, wanted.dataset_id, project)
        _check_size(dataset, spec)
        row = repository.create_job(
            session,
            dataset_id=DatasetId(dataset.id),
            name=wanted.name or build_slug(dataset.name),
            spec=spec,
            metadata=dict(wanted.metadata),
            priority=wanted.priority,
            project=project,
            memory_bytes=estimate_job_memory(spec, dataset).total,
            max_seconds=wanted.limits.max_seconds,
            max_queued_jobs=settings.max_queued_jobs,
        )
        session.refresh(row)
        return row.id, row

    row, is_new = create_once(database, key, digest, create=create, load=repository.get_job)
    if is_new and row.state == JobState.QUEUED:
        # After the commit and after the answer: a broker that hangs delays nobody.
        background.add_task(doorbell.ring, TRAIN_TASK)
    if not is_new:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"{router.prefix}/{row.id}"
    with database.read() as session:
        return show_job(session, repository.get_job(session, row.id), settings)


@router.get("", responses=problems(422))
def list_jobs(
    *,
    database: DatabaseDep,
    settings: SettingsDep,
    project: ProjectDep,
    page: PageDep,
    status: Annotated[JobState | None, Query(description="Only jobs that stand there.")] = None,
) -> Page[Job]:
    """List jobs, newest first."""
    with database.read() as session:
        rows = repository.list_jobs(
            session,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
            state=None if status is None else status.value,
            project=project,
        )
        return page.build_page(rows, build_view(session, rows[: page.limit], settings))


@router.get("/{job_id}", responses=problems(404))
def get_job(
    database: DatabaseDep, settings: SettingsDep, project: ProjectDep, job_id: ReferencePath
) -> Job:
    """Show one job."""
    with database.read() as session:
        return show_job(session, repository.get_job(session, job_id, project=project), settings)


@router.get("/{job_id}/events", responses=problems(404, 422))
def list_events(
    database: DatabaseDep, project: ProjectDep, job_id: ReferencePath, page: LogPageDep
) -> Page[JobEvent]:
    """Read a job's log, oldest first; `after` takes the id of the last event seen."""
    after = _parse_event_id(page.after)
    with database.read() as session:
        repository.get_job(session, job_id, project=project)
        rows = events.list_events(
            session, job_id, after=after, limit=page.limit + 1, descending=page.descending
        )
    return page.build_page(rows, JobEvent.from_row)


@router.get("/{job_id}/metrics", responses=problems(404))
def list_metrics(
    database: DatabaseDep, project: ProjectDep, job_id: ReferencePath
) -> Page[EpochMetrics]:
    """Read the metrics of every epoch so far."""
    with database.read() as session:
        repository.get_job(session, job_id, project=project)
        rows = events.list_epochs(session, job_id)
    return Page[EpochMetrics](data=[EpochMetrics.from_row(row) for row in rows], has_more=False)


def _estimate(
    database: DatabaseDep, project: str, wanted: JobRequest, spec: JobSpec
) -> JobEstimate:
    with database.read() as session:
        dataset = _find_dataset(session, wanted.dataset_id, project)
        repository.check_usable(dataset)
        needs = estimate(session, spec, dataset, project)
    is_ready = dataset.state == DatasetState.READY
    facts = [get_backbone(name) for name in (spec.student, spec.teacher) if name is not None]
    return JobEstimate(
        name=wanted.name or build_slug(dataset.name),
        dataset_id=dataset.id,
        dataset_status=dataset.state,
        spec=spec.to_json(),
        trainable_parameters=count_trainable(spec, len(dataset.classes)) if is_ready else None,
        frozen_parameters=count_frozen(spec),
        steps=count_steps(spec, _count_train_images(dataset)) if is_ready else None,
        estimate=needs,
        licenses={network.name: network.license for network in facts},
        license_notes=[
            f"{network.name}: {network.license_note}" for network in facts if network.license_note
        ],
    )


def _find_dataset(session: Session, dataset_id: str, project: str) -> DatasetRow:
    try:
        return get_dataset(session, dataset_id, project=project)
    except NotFoundError as error:
        # The route exists; it is the body that names something unknown.
        field = FieldError("/dataset_id", error.message, error.code)
        raise InvalidError(error.message, code=error.code, fields=(field,)) from error


def _check_size(dataset: DatasetRow, spec: JobSpec) -> None:
    if dataset.state == DatasetState.READY:
        count_steps(spec, _count_train_images(dataset))


def _count_train_images(dataset: DatasetRow) -> int:
    count = dataset.splits.get(Split.TRAIN.value, 0)
    assert isinstance(count, int)
    return count


def _parse_event_id(after: str | None) -> int:
    if after is None:
        return 0
    match = _EVENT_ID.fullmatch(after)
    if match is None:
        detail = {"type": "event_id", "loc": ("query", "after"), "msg": "must be an id like evt_42"}
        raise RequestValidationError([detail])
    return int(match[1])
