"""What users do with batch predictions. Callers bring the transaction; nothing here commits."""

from dataclasses import dataclass, field
from typing import TypeGuard

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from core.errors import ConflictError, NotFoundError, RateLimitedError
from core.platform.datasets.repository import get_dataset
from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, ModelRow
from core.platform.predictions.parameters import ALL_SPLITS, Parameters
from core.platform.predictions.states import HELD, TERMINAL
from core.platform.predictions.transitions import enter
from core.platform.projects.repository import ensure_project, lock_project
from core.types import (
    DEFAULT_PROJECT,
    BatchPredictionState,
    DatasetState,
    new_batch_prediction_id,
)

_PATH = "/v1/batch_predictions"


class DatasetNotReadyError(ConflictError):
    """The dataset has not been validated, not yet or without success."""

    code = "dataset_not_ready"


class EmptySplitError(ConflictError):
    """The dataset has no images in the split that was asked for."""

    code = "split_empty"


class TooManyPredictionsError(RateLimitedError):
    """The project has as many batch predictions waiting as it may."""

    code = "too_many_batch_predictions"


class PredictionEndedError(ConflictError):
    """The batch prediction has already ended."""

    code = "batch_prediction_terminal"


class PredictionNotEndedError(ConflictError):
    """The batch prediction is still to be worked on."""

    code = "batch_prediction_not_ended"


class ResultsMissingError(ConflictError):
    """There are no results, not yet or not at all."""

    code = "results_missing"


@dataclass(frozen=True)
class Images:
    """What is to be answered for.

    Attributes:
        archive_sha256: blob of the archive: the one that was sent, or the dataset's.
        archive_bytes: its size.
        archive_name: what its sender called it.
        count: images in it, or in the split.
        dataset_id: None where an archive was sent, and the next three are empty too.
        split: `train`, `val`, `test` or `all`.
        manifest_sha256: blob of the dataset's manifest.
        caches: side in pixels, as text, → blob of that image cache.
    """

    archive_sha256: str
    archive_bytes: int
    archive_name: str
    count: int
    dataset_id: str | None = None
    split: str | None = None
    manifest_sha256: str | None = None
    caches: dict[str, object] = field(default_factory=dict)

    @property
    def digests(self) -> tuple[str, ...]:
        """Names of all blobs."""
        manifest = () if self.manifest_sha256 is None else (self.manifest_sha256,)
        return (self.archive_sha256, *manifest, *(str(sha) for sha in self.caches.values()))


def get_images(session: Session, dataset_id: str, split: str, *, project: str) -> Images:
    """Return a dataset's images as something to answer for.

    Raises:
        NotFoundError: the project has no such dataset.
        DatasetNotReadyError: it is not validated.
        EmptySplitError: it has no image in the split.
    """
    dataset = get_dataset(session, dataset_id, project=project)
    if dataset.state != DatasetState.READY:
        raise _not_ready(dataset)
    counts = {name: int(str(count)) for name, count in dataset.splits.items()}
    count = sum(counts.values()) if split == ALL_SPLITS else counts.get(split, 0)
    if not count:
        raise EmptySplitError(
            f"dataset {dataset_id} has no images in {split}; it has {counts}, and split=all takes "
            "all of them"
        )
    return Images(
        archive_sha256=dataset.archive_sha256,
        archive_bytes=dataset.archive_bytes,
        archive_name=dataset.archive_name,
        count=count,
        dataset_id=dataset.id,
        split=split,
        manifest_sha256=dataset.manifest_sha256,
        caches=dict(dataset.caches),
    )


def _not_ready(dataset: DatasetRow) -> DatasetNotReadyError:
    path = f"/v1/datasets/{dataset.id}"
    if dataset.state in (DatasetState.INVALID, DatasetState.FAILED):
        way_out = f"GET {path} says why; repair the archive and upload it again"
    else:
        way_out = f"wait until GET {path} shows the status ready"
    return DatasetNotReadyError(f"dataset {dataset.id} is {dataset.state}; {way_out}")


def create_prediction(
    session: Session,
    *,
    model: ModelRow,
    reference: str,
    images: Images,
    parameters: Parameters,
    project: str = DEFAULT_PROJECT,
    max_waiting: int = 0,
) -> BatchPredictionRow:
    """Accept a batch prediction whose blobs are held by `ensure_stored` in this transaction.

    Args:
        session: a write transaction.
        model: what answers.
        reference: what the request called it.
        images: what for.
        parameters: how.
        project: whose it is.
        max_waiting: how many of the project's may wait, this one included; 0 for any.

    Raises:
        TooManyPredictionsError: as many wait as may.
    """
    ensure_project(session, project)
    if max_waiting:
        _check_queue(session, project, max_waiting)
    row = BatchPredictionRow(
        id=new_batch_prediction_id(),
        project_id=project,
        model_reference=reference,
        model_id=model.id,
        adapter_sha256=model.adapter_sha256,
        config_sha256=model.config_sha256,
        dataset_id=images.dataset_id,
        split=images.split,
        archive_sha256=images.archive_sha256,
        archive_bytes=images.archive_bytes,
        archive_name=images.archive_name,
        manifest_sha256=images.manifest_sha256,
        caches=images.caches,
        parameters=parameters.to_json(),
        images=images.count,
    )
    session.add(row)
    session.flush()
    return row


def _check_queue(session: Session, project: str, max_waiting: int) -> None:
    lock_project(session, project)  # of two that come at once, the second counts the first
    waiting = select(func.count()).where(
        BatchPredictionRow.project_id == project,
        BatchPredictionRow.state == BatchPredictionState.PENDING.value,
    )
    count = session.scalars(waiting).one()
    if count >= max_waiting:
        raise TooManyPredictionsError(
            f"{count} batch predictions of project {project} wait already, and it may have "
            f"{max_waiting} (IDAT_MAX_QUEUED_JOBS); try again when one has started, or cancel one"
        )


def get_prediction(
    session: Session, prediction_id: str, *, project: str | None = None
) -> BatchPredictionRow:
    """Return the batch prediction.

    Args:
        session: any transaction.
        prediction_id: which.
        project: whose it must be; None for a worker, which works for all of them.

    Raises:
        NotFoundError: no such one in the project, or it has been deleted.
    """
    row = session.get(BatchPredictionRow, prediction_id)
    if not _is_there(row, project):
        raise _unknown(prediction_id)
    return row


def _lock(session: Session, prediction_id: str, project: str) -> BatchPredictionRow:
    row = session.get(
        BatchPredictionRow, prediction_id, with_for_update=True, populate_existing=True
    )
    if not _is_there(row, project):
        raise _unknown(prediction_id)
    return row


def _is_there(row: BatchPredictionRow | None, project: str | None) -> TypeGuard[BatchPredictionRow]:
    if row is None or row.deleted_at is not None:
        return False
    return project is None or row.project_id == project


def _unknown(prediction_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no batch prediction {prediction_id}; GET {_PATH} lists them",
        code="batch_prediction_not_found",
    )


def list_predictions(
    session: Session,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    project: str = DEFAULT_PROJECT,
    state: BatchPredictionState | None = None,
) -> list[BatchPredictionRow]:
    """Return up to `limit` of a project's predictions beyond `after`, newest first by default."""
    row = BatchPredictionRow
    query = select(row).where(row.project_id == project, row.deleted_at.is_(None))
    if state is not None:
        query = query.where(row.state == state.value)
    if after is not None:
        anchor = session.get(row, after)  # a deleted one still has its place
        if anchor is None or anchor.project_id != project:
            raise _unknown(after)
        query = query.where(_beyond(anchor, descending=descending))
    keys = (row.created_at, row.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: BatchPredictionRow, *, descending: bool) -> ColumnElement[bool]:
    row = BatchPredictionRow
    same = row.created_at == anchor.created_at
    if descending:
        return or_(row.created_at < anchor.created_at, and_(same, row.id < anchor.id))
    return or_(row.created_at > anchor.created_at, and_(same, row.id > anchor.id))


def request_cancel(
    session: Session, prediction_id: str, *, project: str = DEFAULT_PROJECT
) -> BatchPredictionRow:
    """Cancel at once a prediction that waits; ask the supervisor of one that runs.

    Asking again changes nothing.

    Raises:
        NotFoundError: no such one in the project.
        PredictionEndedError: it has succeeded or failed.
    """
    row = _lock(session, prediction_id, project)
    state = BatchPredictionState(row.state)
    if state in (BatchPredictionState.CANCELLING, BatchPredictionState.CANCELLED):
        return row
    if state in TERMINAL:
        raise PredictionEndedError(
            f"batch prediction {prediction_id} has already {state}; nothing is left to cancel"
        )
    is_held = state in HELD
    enter(
        session,
        row,
        BatchPredictionState.CANCELLING if is_held else BatchPredictionState.CANCELLED,
    )
    return row


def delete_prediction(
    session: Session, prediction_id: str, *, project: str = DEFAULT_PROJECT
) -> None:
    """Delete a prediction that has ended; its results are collected later.

    Raises:
        NotFoundError: no such one in the project, or it has been deleted already.
        PredictionNotEndedError: it has not ended.
    """
    row = _lock(session, prediction_id, project)
    if BatchPredictionState(row.state) not in TERMINAL:
        raise PredictionNotEndedError(
            f"batch prediction {prediction_id} is {row.state}; POST {_PATH}/{prediction_id}/cancel "
            "and delete it then"
        )
    row.deleted_at = session.scalar(select(db_now()))
    session.flush()


def get_results(row: BatchPredictionRow) -> str:
    """Return the digest of a prediction's results.

    Raises:
        ResultsMissingError: it has not succeeded.
    """
    if row.results_sha256 is not None:
        return row.results_sha256
    state = BatchPredictionState(row.state)
    if state is BatchPredictionState.FAILED:
        reason = "it failed, and its error says why"
    elif state in TERMINAL:
        reason = "it was cancelled"
    else:
        reason = f"it is {state}; wait until GET {_PATH}/{row.id} shows the status succeeded"
    raise ResultsMissingError(f"batch prediction {row.id} has no results: {reason}")
