"""Which blobs rows name. A new column that names blobs must be added here, or its blobs go."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, String, cast, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs.states import TERMINAL
from core.platform.predictions.states import TERMINAL as ENDED_PREDICTIONS
from core.types import DatasetState

#: How long the files of a deleted model are still there for requests that have read its row.
READ_GRACE_S = 300.0

_ROWS_AT_ONCE = 500

_ALIVE_DATASET = DatasetRow.deleted_at.is_(None)
#: An invalid archive serves nobody: its report is in its row.
_HAS_ARCHIVE = _ALIVE_DATASET & (DatasetRow.state != DatasetState.INVALID)
#: A job that has ended is never resumed.
_HAS_CHECKPOINT = JobRow.state.not_in(TERMINAL)
#: A prediction holds what it reads until it has ended, whatever becomes of model and dataset.
_HAS_INPUTS = BatchPredictionRow.state.not_in(ENDED_PREDICTIONS)
_PREDICTION_INPUTS = (
    BatchPredictionRow.archive_sha256,
    BatchPredictionRow.manifest_sha256,
    BatchPredictionRow.adapter_sha256,
    BatchPredictionRow.config_sha256,
)
_MODEL_BLOBS = (
    ModelRow.adapter_sha256,
    ModelRow.config_sha256,
    ModelRow.card_sha256,
    ModelRow.evaluation_sha256,
)


def read_references(session: Session) -> set[bytes]:
    """Return the digests of all blobs that rows name, as bytes, which take half the memory."""
    return {bytes.fromhex(sha256) for sha256 in _list_digests(session)}


def is_referenced(session: Session, sha256: str) -> bool:
    """Return whether a row names this blob, as committed at this moment."""
    return any(
        session.execute(select(1).where(condition).limit(1)).first() is not None
        for condition in (
            _HAS_ARCHIVE & (DatasetRow.archive_sha256 == sha256),
            _ALIVE_DATASET & (DatasetRow.manifest_sha256 == sha256),
            _ALIVE_DATASET & _text_holds(DatasetRow.caches, sha256),
            _HAS_CHECKPOINT & (JobRow.checkpoint_sha256 == sha256),
            _is_readable() & or_(*(column == sha256 for column in _MODEL_BLOBS)),
            _is_readable() & _text_holds(ModelRow.figures, sha256),
            _HAS_INPUTS & or_(*(column == sha256 for column in _PREDICTION_INPUTS)),
            _HAS_INPUTS & _text_holds(BatchPredictionRow.caches, sha256),
            _has_results() & (BatchPredictionRow.results_sha256 == sha256),
        )
    )


def list_model_digests(model: ModelRow) -> list[str]:
    """Return the digests of all blobs that a model's row names."""
    values = [getattr(model, column.key) for column in (*_MODEL_BLOBS, ModelRow.figures)]
    return list(_find_digests(values))


def _is_readable() -> ColumnElement[bool]:
    return ModelRow.deleted_at.is_(None) | (ModelRow.deleted_at > db_now() - READ_GRACE_S)


def _has_results() -> ColumnElement[bool]:
    deleted_at = BatchPredictionRow.deleted_at
    return deleted_at.is_(None) | (deleted_at > db_now() - READ_GRACE_S)


def _text_holds(column: InstrumentedAttribute[Any], sha256: str) -> ColumnElement[bool]:
    """Return the condition that a JSON column holds a digest anywhere: rather once too often."""
    return cast(column, String).contains(sha256)


def _list_digests(session: Session) -> Iterator[str]:
    yield from _flatten(session, select(DatasetRow.archive_sha256).where(_HAS_ARCHIVE))
    datasets = select(DatasetRow.manifest_sha256, DatasetRow.caches).where(_ALIVE_DATASET)
    yield from _flatten(session, datasets)
    yield from _flatten(session, select(JobRow.checkpoint_sha256).where(_HAS_CHECKPOINT))
    yield from _flatten(session, select(*_MODEL_BLOBS, ModelRow.figures).where(_is_readable()))
    inputs = select(*_PREDICTION_INPUTS, BatchPredictionRow.caches).where(_HAS_INPUTS)
    yield from _flatten(session, inputs)
    results = select(BatchPredictionRow.results_sha256).where(_has_results())
    yield from _flatten(session, results)


def _flatten(session: Session, query: "Select[*tuple[object, ...]]") -> Iterator[str]:
    """Return the digests in all columns of a query, those inside of JSON too."""
    for row in session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)):
        yield from _find_digests(row)


def _find_digests(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Mapping):
            yield from _find_digests(value.values())
        elif isinstance(value, str) and _is_digest(value):
            yield value


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")  # noqa: PLR2004
