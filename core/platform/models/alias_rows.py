"""The rows of an alias: what it means now, and the changes that made it so."""

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from core.platform.db.model_tables import AliasChangeRow, ModelAliasRow

Action = Literal["set", "rollback", "delete"]
#: project, name, alias
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Target:
    """What an alias shall mean.

    Attributes:
        model_id: the model that answers.
        shadow_model_id: a second model to compare with it; None for none.
        shadow_fraction: share of the requests that the second one is given, 0 to 1.
    """

    model_id: str
    shadow_model_id: str | None = None
    shadow_fraction: float = 0.0


def lock_alias(session: Session, key: Key) -> ModelAliasRow | None:
    """Return an alias, which nobody else changes before this transaction ends, or None."""
    return session.scalars(
        select(ModelAliasRow).where(*is_alias(key)).with_for_update()
    ).one_or_none()


def is_alias(key: Key) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that a row is this alias's."""
    project, name, alias = key
    return (
        ModelAliasRow.project_id == project,
        ModelAliasRow.name == name,
        ModelAliasRow.alias == alias,
    )


def get_change(session: Session, change_id: int) -> AliasChangeRow:
    """Return a change that a row names."""
    return session.get_one(AliasChangeRow, change_id)


def record_change(
    session: Session,
    key: Key,
    action: Action,
    target: Target | None,
    *,
    previous_id: int | None,
    actor: str | None,
) -> AliasChangeRow:
    """Append a change; `target` is None for a deletion."""
    project, name, alias = key
    change = AliasChangeRow(
        project_id=project,
        name=name,
        alias=alias,
        action=action,
        model_id=target.model_id if target else None,
        shadow_model_id=target.shadow_model_id if target else None,
        shadow_fraction=target.shadow_fraction if target else 0.0,
        previous_id=previous_id,
        actor=actor,
    )
    session.add(change)
    session.flush()
    return change


def apply_change(
    session: Session, change: AliasChangeRow, target: Target, *, exists: bool
) -> ModelAliasRow:
    """Make an alias what a change says: one UPDATE, or the INSERT of a new one."""
    values = {
        "model_id": target.model_id,
        "shadow_model_id": target.shadow_model_id,
        "shadow_fraction": target.shadow_fraction,
        "change_id": change.id,
    }
    key = (change.project_id, change.name, change.alias)
    if exists:
        session.execute(update(ModelAliasRow).where(*is_alias(key)).values(values))
    else:
        project, name, alias = key
        session.add(ModelAliasRow(project_id=project, name=name, alias=alias, **values))
        session.flush()
    row = session.get_one(ModelAliasRow, key)
    session.refresh(row)
    return row
