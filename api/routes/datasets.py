"""Upload an archive; watch it become a dataset; delete it."""

import re
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import (
    DatabaseDep,
    DoorbellDep,
    ProjectDep,
    ReferencePath,
    Services,
    ServicesDep,
)
from api.idempotency import (
    REPLAYED_HEADER,
    IdempotencyKey,
    ProjectKey,
    create_once,
    digest_request,
    find_created,
)
from api.pagination import Page, PageDep
from api.schemas.datasets import Dataset, DatasetFields, DatasetReport
from api.schemas.problems import problems
from api.uploads import ReceivedArchive, clean_file_name, receive_archive
from core.errors import UnavailableError
from core.platform.collection.naming import BlobCollectedError, ensure_stored
from core.platform.datasets import MAX_TOLERANCE, repository
from core.platform.datasets.archive import ArchiveLimits, check_archive
from core.platform.db.tables import DatasetRow
from core.platform.doorbell import VALIDATE_TASK
from core.types import DatasetState

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "zip or tar of class/*.jpg, or of "
                            "{train,val,test}/class/*.jpg.",
                        },
                        "name": {"type": "string", "maxLength": 200},
                        "seed": {"type": "integer", "minimum": 0, "default": 0},
                        "tolerance": {
                            "type": "number",
                            "minimum": 0,
                            "maximum": MAX_TOLERANCE,
                            "default": 0,
                            "description": "Share of images that may be undecodable; they are "
                            "reported and left out.",
                        },
                    },
                }
            }
        },
    }
}
_ARCHIVE_SUFFIX = re.compile(r"\.(zip|tar|tgz|tar\.\w+)$", re.IGNORECASE)


@router.post(
    "",
    status_code=202,
    responses=problems(400, 409, 413, 415, 422, 507),
    openapi_extra=_FORM,
)
async def create_dataset(
    *,
    request: Request,
    response: Response,
    services: ServicesDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    project: ProjectDep,
    key: IdempotencyKey,
) -> Dataset:
    """Upload an archive as the form field `file`.

    Its structure is checked before the answer; its images are decoded by a worker. Poll the dataset
    until its status is `ready` or `invalid`.
    """
    settings = services.settings
    async with receive_archive(
        request, settings.scratch_dir, max_bytes=settings.max_archive_bytes
    ) as received:
        row, is_new = await run_in_threadpool(_accept, services, project, received, key)
    if is_new:
        # After the commit and after the answer: a broker that hangs delays nobody.
        background.add_task(doorbell.ring, VALIDATE_TASK)
    else:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"{router.prefix}/{row.id}"
    return Dataset.from_row(row)


@router.get("", responses=problems(422))
def list_datasets(database: DatabaseDep, project: ProjectDep, page: PageDep) -> Page[Dataset]:
    """List datasets, newest first."""
    with database.read() as session:
        rows = repository.list_datasets(
            session,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
            project=project,
        )
    return page.build_page(rows, Dataset.from_row)


@router.get("/{dataset_id}", responses=problems(404))
def get_dataset(database: DatabaseDep, project: ProjectDep, dataset_id: ReferencePath) -> Dataset:
    """Show one dataset."""
    with database.read() as session:
        return Dataset.from_row(repository.get_dataset(session, dataset_id, project=project))


@router.get("/{dataset_id}/report", responses=problems(404, 409))
def get_report(
    database: DatabaseDep, project: ProjectDep, dataset_id: ReferencePath
) -> DatasetReport:
    """Show everything that validation found: counts, warnings, each bad file and why."""
    with database.read() as session:
        row = repository.get_dataset(session, dataset_id, project=project)
    if row.report is None:
        raise repository.ReportMissingError(
            f"dataset {dataset_id} is {row.state} and has no report"
            + (" yet" if row.finished_at is None else "; its error says why")
        )
    return DatasetReport(dataset_id=row.id, status=DatasetState(row.state), report=row.report)


@router.delete("/{dataset_id}", status_code=204, responses=problems(404, 409))
def delete_dataset(database: DatabaseDep, project: ProjectDep, dataset_id: ReferencePath) -> None:
    """Delete a dataset that no unfinished job uses; its files are freed within some hours.

    Jobs that have ended, and their models, stay as they are.
    """
    with database.write() as session:
        repository.delete_dataset(session, dataset_id, project=project)


def _accept(
    services: Services, project: str, received: ReceivedArchive, key: ProjectKey | None
) -> tuple[DatasetRow, bool]:
    """Turn a received archive into a dataset's row; return it and whether it is new.

    Raises:
        ArchiveError: the archive's structure is at fault.
        RequestValidationError: a form field is wrong.
        IdempotencyKeyReusedError: the key belongs to another request.
        UnavailableError: the bytes were collected between being stored and being named.
    """
    fields = _parse_fields(received.fields)
    content = {"sha256": received.sha256, **fields.model_dump(), "file_name": received.file_name}
    digest = digest_request("POST /v1/datasets", content)
    earlier = find_created(services.database, key, digest, repository.get_dataset)
    if earlier is not None:
        return earlier, False
    limits = ArchiveLimits(
        max_files=services.settings.max_archive_files,
        max_image_bytes=services.settings.max_image_bytes,
    )
    check_archive(received.path, limits)

    archive_name = clean_file_name(received.file_name)
    blob = services.store.take_file(received.path, received.sha256)

    def create(session: Session) -> tuple[str, DatasetRow]:
        ensure_stored(session, services.store, blob.sha256)
        row = repository.create_dataset(
            session,
            name=fields.name or _ARCHIVE_SUFFIX.sub("", archive_name)[:200] or "dataset",
            seed=fields.seed,
            tolerance=fields.tolerance,
            archive_sha256=blob.sha256,
            archive_bytes=received.size_bytes,
            archive_name=archive_name,
            project=project,
        )
        session.refresh(row)
        return row.id, row

    try:
        return create_once(
            services.database, key, digest, create=create, load=repository.get_dataset
        )
    except BlobCollectedError as error:
        raise UnavailableError(
            "the same archive, of a dataset that is gone, was being removed just now; send the "
            "request again",
            code="archive_collected",
        ) from error


def _parse_fields(fields: dict[str, str]) -> DatasetFields:
    try:
        return DatasetFields.model_validate(fields)
    except ValidationError as error:
        details = [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors()]
        raise RequestValidationError(details) from error
