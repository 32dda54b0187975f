"""Reading published models. They are written by `core.platform.jobs.repository.publish` only."""

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from core.errors import NotFoundError
from core.platform.db.tables import ModelRow


def get_model(session: Session, reference: str) -> ModelRow:
    """Return the model with this id, or the newest one with this name.

    Raises:
        NotFoundError: no such model.
    """
    model = session.get(ModelRow, reference)
    if model is None:
        named = select(ModelRow).where(ModelRow.name == reference)
        model = session.scalars(
            named.order_by(ModelRow.created_at.desc(), ModelRow.id.desc()).limit(1)
        ).first()
    if model is None:
        raise NotFoundError(
            f"there is no model {reference}; GET /v1/models lists them", code="model_not_found"
        )
    return model


def list_models(
    session: Session, *, after: str | None, limit: int, descending: bool = True
) -> list[ModelRow]:
    """Return up to `limit` models beyond the model `after`, newest first by default."""
    query = select(ModelRow)
    if after is not None:
        query = query.where(_beyond(get_model(session, after), descending=descending))
    keys = (ModelRow.created_at, ModelRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: ModelRow, *, descending: bool) -> ColumnElement[bool]:
    same = ModelRow.created_at == anchor.created_at
    if descending:
        return or_(ModelRow.created_at < anchor.created_at, and_(same, ModelRow.id < anchor.id))
    return or_(ModelRow.created_at > anchor.created_at, and_(same, ModelRow.id > anchor.id))
