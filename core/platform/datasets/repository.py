"""Every change to a dataset's row. Callers bring the transaction; nothing here commits."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import ConflictError, NotFoundError
from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.jobs.promotion import promote_waiting
from core.platform.jobs.states import TERMINAL
from core.platform.leases import Claim
from core.platform.webhooks.outbox import tell_dataset_end
from core.types import DEFAULT_PROJECT, DatasetState, new_dataset_id

_HELD = (DatasetState.VALIDATING.value,)
_UNFINISHED = (DatasetState.PENDING, DatasetState.VALIDATING)
#: Jobs that a refusal names.
_NAMED_JOBS = 5


class ReportMissingError(ConflictError):
    """Validation has not written a report, not yet or not at all."""

    code = "report_missing"


class DatasetInUseError(ConflictError):
    """Jobs that have not ended need the dataset."""

    code = "dataset_in_use"

    def __init__(self, dataset_id: str, job_ids: Sequence[str]) -> None:
        named = ", ".join(job_ids[:_NAMED_JOBS])
        more = len(job_ids) - _NAMED_JOBS
        super().__init__(
            f"dataset {dataset_id} is used by {named}{f' and {more} more' if more > 0 else ''}; "
            "wait for their end or cancel them, then delete it"
        )


def create_dataset(
    session: Session,
    *,
    name: str,
    seed: int,
    archive_sha256: str,
    archive_bytes: int,
    archive_name: str,
    tolerance: float = 0.0,
    project: str = DEFAULT_PROJECT,
) -> DatasetRow:
    """Accept an archive whose bytes are already in the store."""
    dataset = DatasetRow(
        id=new_dataset_id(),
        project_id=project,
        name=name,
        seed=seed,
        archive_sha256=archive_sha256,
        archive_bytes=archive_bytes,
        archive_name=archive_name,
        tolerance=tolerance,
    )
    session.add(dataset)
    session.flush()
    return dataset


def get_dataset(session: Session, dataset_id: str, *, project: str | None = None) -> DatasetRow:
    """Return the dataset.

    Args:
        session: any transaction.
        dataset_id: which.
        project: whose it must be; None for a worker, which works for all of them.

    Raises:
        NotFoundError: no such dataset in the project, or it has been deleted.
    """
    dataset = session.get(DatasetRow, dataset_id)
    if not _is_there(dataset, project):
        raise _unknown(dataset_id)
    return dataset


def lock_dataset(session: Session, dataset_id: str, *, project: str) -> DatasetRow:
    """Return the project's dataset as it is now; it stays so until this transaction ends.

    Raises:
        NotFoundError: no such dataset in the project, or it has been deleted.
    """
    dataset = session.get(DatasetRow, dataset_id, with_for_update=True, populate_existing=True)
    if not _is_there(dataset, project):
        raise _unknown(dataset_id)
    return dataset


def _is_there(dataset: DatasetRow | None, project: str | None) -> TypeGuard[DatasetRow]:
    if dataset is None or dataset.deleted_at is not None:
        return False
    return project is None or dataset.project_id == project


def _unknown(dataset_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no dataset {dataset_id}; GET /v1/datasets lists them", code="dataset_not_found"
    )


def delete_dataset(session: Session, dataset_id: str, *, project: str = DEFAULT_PROJECT) -> None:
    """Delete a dataset that no job still needs; its files are collected later.

    Jobs that have ended and models keep what they know of it. Creating a job locks the row, too: of
    the two, one comes first and the other one finds out.

    Raises:
        NotFoundError: no such dataset in the project, or it has been deleted already.
        DatasetInUseError: jobs on it have not ended.
    """
    dataset = lock_dataset(session, dataset_id, project=project)
    in_use = select(JobRow.id).where(JobRow.dataset_id == dataset_id, JobRow.state.not_in(TERMINAL))
    users = session.scalars(in_use.order_by(JobRow.created_at, JobRow.id)).all()
    if users:
        raise DatasetInUseError(dataset_id, users)
    dataset.deleted_at = session.scalar(select(db_now()))
    if dataset.state in _UNFINISHED:
        # Takes it out of the queue, and away from the attempt that is at work on it.
        dataset.state = DatasetState.FAILED.value
        dataset.lease_owner = dataset.lease_expires_at = None
        dataset.error = {"code": "dataset_deleted", "message": "deleted", "class": "user"}
        dataset.finished_at = dataset.deleted_at
    session.flush()


def list_datasets(
    session: Session,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    project: str = DEFAULT_PROJECT,
) -> list[DatasetRow]:
    """Return up to `limit` of a project's datasets beyond `after`, newest first by default."""
    query = select(DatasetRow).where(
        DatasetRow.project_id == project, DatasetRow.deleted_at.is_(None)
    )
    if after is not None:
        anchor = session.get(DatasetRow, after)  # a deleted one still has its place
        if anchor is None or anchor.project_id != project:
            raise _unknown(after)
        query = query.where(_beyond(anchor, descending=descending))
    keys = (DatasetRow.created_at, DatasetRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: DatasetRow, *, descending: bool) -> ColumnElement[bool]:
    same = DatasetRow.created_at == anchor.created_at
    if descending:
        return or_(DatasetRow.created_at < anchor.created_at, and_(same, DatasetRow.id < anchor.id))
    return or_(DatasetRow.created_at > anchor.created_at, and_(same, DatasetRow.id > anchor.id))


def claim_dataset(session: Session, *, owner: str, ttl_s: float) -> Claim | None:
    """Claim the oldest pending dataset for validation, or return None."""
    return leases.claim_next(
        session,
        DatasetRow,
        eligible=DatasetState.PENDING,
        active=DatasetState.VALIDATING,
        owner=owner,
        ttl_s=ttl_s,
    )


def report_progress(
    session: Session, claim: Claim, *, ttl_s: float, progress: dict[str, Any] | None = None
) -> str:
    """Renew the lease and store progress; return the state.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    values = leases.renewal(DatasetRow, ttl_s)
    if progress is not None:
        values[DatasetRow.progress] = progress
    return leases.fenced_update(session, DatasetRow, claim, states=_HELD, values=values)


def mark_ready(
    session: Session,
    claim: Claim,
    *,
    manifest_sha256: str,
    caches: dict[str, str],
    classes: list[str],
    splits: dict[str, int],
    report: dict[str, Any],
) -> None:
    """End validation with a usable dataset and queue the jobs that waited for it.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        DatasetRow.state: DatasetState.READY.value,
        DatasetRow.manifest_sha256: manifest_sha256,
        DatasetRow.caches: caches,
        DatasetRow.classes: classes,
        DatasetRow.splits: splits,
        DatasetRow.report: report,
        DatasetRow.finished_at: db_now(),
        **leases.surrender(DatasetRow),
    }
    leases.fenced_update(session, DatasetRow, claim, states=_HELD, values=values)
    tell_dataset_end(session, claim.row_id)
    promote_waiting(session, claim.row_id, DatasetState.READY)


def add_cache(session: Session, *, job_id: str, image_px: int, sha256: str) -> None:
    """Let later jobs on the dataset of `job_id` use an image cache of another size."""
    query = select(DatasetRow).join(JobRow, JobRow.dataset_id == DatasetRow.id)
    dataset = session.scalars(query.where(JobRow.id == job_id).with_for_update()).one()
    dataset.caches = {**dataset.caches, str(image_px): sha256}
    session.flush()


def mark_unusable(
    session: Session,
    claim: Claim,
    *,
    state: DatasetState,
    error: dict[str, Any],
    report: dict[str, Any] | None = None,
) -> None:
    """End validation as `invalid` (the archive's fault) or `failed` (ours).

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        DatasetRow.state: state.value,
        DatasetRow.error: error,
        DatasetRow.report: report,
        DatasetRow.finished_at: db_now(),
        **leases.surrender(DatasetRow),
    }
    leases.fenced_update(session, DatasetRow, claim, states=_HELD, values=values)
    tell_dataset_end(session, claim.row_id)
    promote_waiting(session, claim.row_id, state)


def release(session: Session, claim: Claim) -> None:
    """Give a dataset back without charging the attempt (the worker is shutting down).

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    values: dict[InstrumentedAttribute[Any], Any] = {
        DatasetRow.state: DatasetState.PENDING.value,
        **leases.surrender(DatasetRow),
    }
    leases.fenced_update(session, DatasetRow, claim, states=_HELD, values=values)


def give_up_attempt(
    session: Session, claim: Claim, error: dict[str, Any], *, max_attempts: int
) -> str:
    """End a validation that crashed: tried again, or failed when it was the last attempt.

    Returns:
        The dataset's new state.

    Raises:
        LeaseLostError: another attempt has overtaken this one.
    """
    leases.fenced_update(session, DatasetRow, claim, states=_HELD, values={})
    dataset = session.get_one(DatasetRow, claim.row_id, populate_existing=True)
    _charge_attempt(session, dataset, error, max_attempts=max_attempts)
    return dataset.state


def expire_attempts(session: Session, *, max_attempts: int) -> list[str]:
    """End the validations whose lease has run out; return the ids of the datasets touched."""
    datasets = leases.lock_expired(session, DatasetRow, _HELD)
    for dataset in datasets:
        loss = leases.describe_loss(dataset)
        _charge_attempt(session, dataset, loss, max_attempts=max_attempts)
    return [dataset.id for dataset in datasets]


def _charge_attempt(
    session: Session, dataset: DatasetRow, error: dict[str, Any], *, max_attempts: int
) -> None:
    dataset.failures += 1
    dataset.lease_owner = dataset.lease_expires_at = None
    if dataset.failures >= max_attempts:
        dataset.state = DatasetState.FAILED.value
        dataset.error = {**error, "attempts": dataset.failures}
        dataset.finished_at = session.scalar(select(db_now()))
        tell_dataset_end(session, dataset.id)
        promote_waiting(session, dataset.id, DatasetState.FAILED)
    else:
        dataset.state = DatasetState.PENDING.value
    session.flush()
