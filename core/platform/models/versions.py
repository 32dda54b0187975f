"""Versions: the models of a name, counted from 1. A number is never given twice."""

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.platform.db.model_tables import ModelNameRow
from core.platform.db.tables import ModelRow


def assign_version(session: Session, model: ModelRow) -> None:
    """Number a model that has just been added, after those of its name that have no number yet.

    Those were published by a process of the release before. Call it in the transaction that adds
    the model.
    """
    session.flush()
    unnumbered = select(ModelRow.id).where(
        ModelRow.project_id == model.project_id,
        ModelRow.name == model.name,
        ModelRow.version.is_(None),
        ModelRow.id != model.id,
    )
    earlier = session.scalars(unnumbered.order_by(ModelRow.created_at, ModelRow.id)).all()
    last = _count_up(session, model.project_id, model.name, by=len(earlier) + 1)
    for version, model_id in enumerate(earlier, start=last - len(earlier)):
        statement = update(ModelRow).where(ModelRow.id == model_id, ModelRow.version.is_(None))
        session.execute(statement.values(version=version))
    model.version = last
    session.flush()


def _count_up(session: Session, project: str, name: str, *, by: int) -> int:
    """Take the next `by` versions of a name and return the last of them; holds the row's lock."""
    on_postgresql = session.connection().dialect.name == "postgresql"
    insert = postgresql.insert if on_postgresql else sqlite.insert
    statement = insert(ModelNameRow).values(project_id=project, name=name, last_version=by)
    statement = statement.on_conflict_do_update(
        index_elements=[ModelNameRow.project_id, ModelNameRow.name],
        set_={"last_version": ModelNameRow.last_version + by},
    )
    return session.execute(statement.returning(ModelNameRow.last_version)).scalar_one()
