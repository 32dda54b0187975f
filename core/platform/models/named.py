"""Models that share a name, which another protocol calls versions, or that share a backbone."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.platform.db.tables import ModelRow
from core.platform.models.liveness import is_alive


def list_ids_of_name(session: Session, name: str, *, project: str, limit: int) -> list[str]:
    """Return the ids of the newest `limit` models with a name, oldest of them first."""
    wanted = select(ModelRow.id).where(
        ModelRow.name == name, ModelRow.project_id == project, is_alive()
    )
    newest_first = wanted.order_by(ModelRow.created_at.desc(), ModelRow.id.desc())
    return list(session.scalars(newest_first.limit(limit)))[::-1]


def has_model_on(session: Session, backbone: str, *, project: str) -> bool:
    """Tell whether a project has a model on this backbone."""
    wanted = select(ModelRow.id).where(
        ModelRow.backbone == backbone, ModelRow.project_id == project, is_alive()
    )
    return session.scalars(wanted.limit(1)).first() is not None
