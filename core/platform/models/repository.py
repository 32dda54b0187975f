"""Published models: read and deleted here, written by `core.platform.jobs.repository.publish`."""

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from core.errors import InvalidError, NotFoundError
from core.platform.db.clock import db_now
from core.platform.db.tables import ModelRow
from core.platform.jobs.events import add_event


def get_model(session: Session, reference: str) -> ModelRow:
    """Return the model with this id, or the newest one with this name.

    Raises:
        NotFoundError: no such model.
    """
    model = session.get(ModelRow, reference)
    if model is None or model.deleted_at is not None:
        model = _find_newest(session, reference)
    if model is None:
        raise _unknown(reference)
    return model


def _find_newest(session: Session, name: str) -> ModelRow | None:
    named = select(ModelRow).where(ModelRow.name == name, ModelRow.deleted_at.is_(None))
    newest_first = named.order_by(ModelRow.created_at.desc(), ModelRow.id.desc())
    return session.scalars(newest_first.limit(1)).first()


def _unknown(reference: str) -> NotFoundError:
    return NotFoundError(
        f"there is no model {reference}; GET /v1/models lists them", code="model_not_found"
    )


def delete_model(session: Session, model_id: str) -> None:
    """Delete a model: nobody finds it any more, and its files are collected later.

    Raises:
        NotFoundError: no such model, or it has been deleted already.
        InvalidError: it is the name of models, which would mean another one after each deletion.
    """
    statement = update(ModelRow).where(ModelRow.id == model_id, ModelRow.deleted_at.is_(None))
    statement = statement.values(deleted_at=db_now())
    job_id = session.execute(statement.returning(ModelRow.job_id)).scalar_one_or_none()
    if job_id is not None:
        message = f"model {model_id} deleted"
        data = {"model_id": model_id}
        add_event(session, job_id, message, event_type="model.deleted", data=data)
        return
    newest = _find_newest(session, model_id)
    if newest is None:
        raise _unknown(model_id)
    raise InvalidError(
        f"{model_id} is a name, and models are deleted by their id; its newest one is {newest.id}",
        code="model_id_required",
    )


def list_models(
    session: Session, *, after: str | None, limit: int, descending: bool = True
) -> list[ModelRow]:
    """Return up to `limit` models beyond the model `after`, newest first by default."""
    query = select(ModelRow).where(ModelRow.deleted_at.is_(None))
    if after is not None:
        # A deleted one still has its place in the list.
        anchor = session.get(ModelRow, after) or get_model(session, after)
        query = query.where(_beyond(anchor, descending=descending))
    keys = (ModelRow.created_at, ModelRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: ModelRow, *, descending: bool) -> ColumnElement[bool]:
    same = ModelRow.created_at == anchor.created_at
    if descending:
        return or_(ModelRow.created_at < anchor.created_at, and_(same, ModelRow.id < anchor.id))
    return or_(ModelRow.created_at > anchor.created_at, and_(same, ModelRow.id > anchor.id))
