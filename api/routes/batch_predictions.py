"""Let a model answer for all images of an archive or a dataset; watch it, fetch the answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.deps import (
    DatabaseDep,
    DoorbellDep,
    ProjectDep,
    ReferencePath,
    Services,
    ServicesDep,
    StoreDep,
)
from api.downloads import send_blob
from api.errors import wrong_type
from api.idempotency import (
    REPLAYED_HEADER,
    IdempotencyKey,
    ProjectKey,
    create_once,
    digest_request,
    find_created,
)
from api.json_body import parse_json, read_body, validate_body
from api.pagination import Page, PageDep
from api.schemas.batch_predictions import (
    BatchPrediction,
    BatchPredictionForm,
    BatchPredictionRequest,
)
from api.schemas.problems import problems
from api.uploads import ReceivedArchive, clean_file_name, receive_archive
from core.errors import FieldError, InvalidError, NotFoundError, UnavailableError
from core.platform.collection.naming import BlobCollectedError, ensure_stored
from core.platform.datasets.archive import ArchiveLimits, check_archive, read_pictures
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import ModelRow
from core.platform.doorbell import DELIVER_TASK, PREDICT_TASK
from core.platform.models.repository import get_model
from core.platform.predictions import repository
from core.platform.predictions.repository import Images
from core.types import BatchPredictionState

router = APIRouter(prefix="/v1/batch_predictions", tags=["inference"])

RESULTS_TYPE = "application/jsonl"

_MAX_JSON_BYTES = 1 << 20
_ROUTE = f"POST {router.prefix}"
_FORM_SCHEMA = BatchPredictionForm.model_json_schema()
_FORM_SCHEMA["properties"] = {
    "file": {
        "type": "string",
        "format": "binary",
        "description": "zip or tar of images, in any folders.",
    },
    **_FORM_SCHEMA["properties"],
}
_FORM_SCHEMA["required"] = ["file", "model"]
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": BatchPredictionRequest.model_json_schema()},
            "multipart/form-data": {"schema": _FORM_SCHEMA},
        },
    }
}


@router.post(
    "",
    status_code=202,
    responses=problems(400, 409, 413, 415, 422, 429, 507),
    openapi_extra=_BODY,
)
async def create_batch_prediction(
    *,
    request: Request,
    response: Response,
    services: ServicesDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    project: ProjectDep,
    key: IdempotencyKey,
) -> BatchPrediction:
    """Answer for a dataset, named in JSON, or for an archive, sent as the form field `file`.

    A worker does it; poll until the status is `succeeded`, and fetch `results`: a line of JSON for
    each image, in the order of the archive.
    """
    settings = services.settings
    submission = _Submission(services, project, key)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        async with receive_archive(
            request,
            settings.scratch_dir,
            max_bytes=settings.max_archive_bytes,
            fields=tuple(BatchPredictionForm.model_fields),
        ) as received:
            row, is_new = await run_in_threadpool(submission.accept_archive, received)
    elif media_type == "application/json":
        body = parse_json(await read_body(request, _MAX_JSON_BYTES))
        wanted = validate_body(BatchPredictionRequest, body)
        row, is_new = await run_in_threadpool(submission.accept_dataset, wanted)
    else:
        raise wrong_type("application/json or multipart/form-data", media_type)
    if is_new:
        # After the commit and after the answer: a broker that hangs delays nobody.
        background.add_task(doorbell.ring, PREDICT_TASK)
    else:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"{router.prefix}/{row.id}"
    return BatchPrediction.from_row(row)


@router.get("", responses=problems(422))
def list_batch_predictions(
    database: DatabaseDep,
    project: ProjectDep,
    page: PageDep,
    status: Annotated[BatchPredictionState | None, Query(description="Only those.")] = None,
) -> Page[BatchPrediction]:
    """List batch predictions, newest first."""
    with database.read() as session:
        rows = repository.list_predictions(
            session,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
            project=project,
            state=status,
        )
    return page.build_page(rows, BatchPrediction.from_row)


@router.get("/{batch_prediction_id}", responses=problems(404))
def get_batch_prediction(
    database: DatabaseDep, project: ProjectDep, batch_prediction_id: ReferencePath
) -> BatchPrediction:
    """Show one batch prediction."""
    return BatchPrediction.from_row(_load(database, batch_prediction_id, project))


@router.post("/{batch_prediction_id}/cancel", responses=problems(404, 409))
def cancel_batch_prediction(
    *,
    database: DatabaseDep,
    doorbell: DoorbellDep,
    background: BackgroundTasks,
    project: ProjectDep,
    batch_prediction_id: ReferencePath,
) -> BatchPrediction:
    """Cancel a batch prediction; one that runs is `cancelling` until its process has ended."""
    with database.write() as session:
        row = repository.request_cancel(session, batch_prediction_id, project=project)
        shown = BatchPrediction.from_row(row)
    if shown.status is BatchPredictionState.CANCELLED:
        background.add_task(doorbell.ring, DELIVER_TASK)  # somebody may wait to be told
    return shown


@router.delete("/{batch_prediction_id}", status_code=204, responses=problems(404, 409))
def delete_batch_prediction(
    database: DatabaseDep, project: ProjectDep, batch_prediction_id: ReferencePath
) -> None:
    """Delete a batch prediction that has ended; its results are freed within some hours."""
    with database.write() as session:
        repository.delete_prediction(session, batch_prediction_id, project=project)


@router.get(
    "/{batch_prediction_id}/results",
    response_class=FileResponse,
    responses={
        **problems(404, 409),
        200: {"content": {RESULTS_TYPE: {}}, "description": "A line of JSON for each image."},
        206: {"description": "The part that `Range` asked for."},
        304: {"description": "`If-None-Match` names this very file."},
        **{status: problems(status)[status] for status in (400, 416)},
    },
)
def download_results(
    request: Request,
    database: DatabaseDep,
    project: ProjectDep,
    store: StoreDep,
    batch_prediction_id: ReferencePath,
) -> Response:
    """Download the answers, once the status is `succeeded`."""
    row = _load(database, batch_prediction_id, project)
    digest = repository.get_results(row)
    return send_blob(
        request, store, digest, media_type=RESULTS_TYPE, file_name=f"{row.id}.results.jsonl"
    )


def _load(database: DatabaseDep, prediction_id: str, project: str) -> BatchPredictionRow:
    with database.read() as session:
        return repository.get_prediction(session, prediction_id, project=project)


@dataclass(frozen=True)
class _Submission:
    """A request on its way to a row."""

    services: Services
    project: str
    key: ProjectKey | None

    def accept_dataset(self, wanted: BatchPredictionRequest) -> tuple[BatchPredictionRow, bool]:
        """Return the row of a request that names a dataset, and whether it is new."""
        digest = digest_request(_ROUTE, wanted.model_dump(mode="json"))

        def find(session: Session) -> Images:
            try:
                return repository.get_images(
                    session, wanted.dataset_id, wanted.split, project=self.project
                )
            except NotFoundError as error:
                raise _wrong_field("dataset_id", error) from error

        return self._create(wanted, digest, find)

    def accept_archive(self, received: ReceivedArchive) -> tuple[BatchPredictionRow, bool]:
        """Return the row of a request that brings an archive, and whether it is new.

        Raises:
            ArchiveError: the archive's structure is at fault.
        """
        wanted = validate_body(BatchPredictionForm, received.fields)
        content = {"sha256": received.sha256, **wanted.model_dump(), "file": received.file_name}
        digest = digest_request(_ROUTE, content)
        database, settings = self.services.database, self.services.settings
        earlier = find_created(database, self.key, digest, repository.get_prediction)
        if earlier is not None:
            return earlier, False
        with database.read() as session:
            self._get_model(session, wanted.model)  # before anything is kept for it
        limits = ArchiveLimits(
            max_files=settings.max_archive_files, max_image_bytes=settings.max_image_bytes
        )
        summary = check_archive(received.path, limits, read=read_pictures)
        blob = self.services.store.take_file(received.path, received.sha256)
        images = Images(
            archive_sha256=blob.sha256,
            archive_bytes=received.size_bytes,
            archive_name=clean_file_name(received.file_name),
            count=summary.images,
        )
        return self._create(wanted, digest, lambda _session: images)

    def _create(
        self,
        wanted: BatchPredictionRequest | BatchPredictionForm,
        digest: str,
        find: Callable[[Session], Images],
    ) -> tuple[BatchPredictionRow, bool]:
        database, store = self.services.database, self.services.store

        def create(session: Session) -> tuple[str, BatchPredictionRow]:
            model = self._get_model(session, wanted.model)
            images = find(session)
            ensure_stored(
                session, store, model.adapter_sha256, model.config_sha256, *images.digests
            )
            row = repository.create_prediction(
                session,
                model=model,
                reference=wanted.model,
                images=images,
                parameters=wanted.to_parameters(),
                project=self.project,
                max_waiting=self.services.settings.max_queued_jobs,
            )
            session.refresh(row)
            return row.id, row

        try:
            return create_once(
                database, self.key, digest, create=create, load=repository.get_prediction
            )
        except BlobCollectedError as error:
            raise UnavailableError(
                "files of the model, the dataset or the archive were being removed just now; send "
                "the request again",
                code="files_collected",
            ) from error

    def _get_model(self, session: Session, reference: str) -> ModelRow:
        try:
            return get_model(session, reference, project=self.project)
        except NotFoundError as error:
            raise _wrong_field("model", error) from error


def _wrong_field(name: str, error: NotFoundError) -> InvalidError:
    return InvalidError(
        error.message, code=error.code, fields=(FieldError(f"/{name}", error.message, error.code),)
    )
