"""Aliases: what `name@alias` means, switched by one UPDATE, with every change kept.

A rollback goes back along the changes as undoing does in an editor: after A, B, C it leads to B,
and a second one to A; what is set after that continues from there.
"""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidError, PreconditionFailedError
from core.platform.db.model_tables import AliasChangeRow, ModelAliasRow
from core.platform.db.tables import ModelRow
from core.platform.models import repository
from core.platform.models.alias_rows import (
    Target,
    apply_change,
    get_change,
    is_alias,
    lock_alias,
    record_change,
)
from core.types import DEFAULT_PROJECT


class AliasTargetError(InvalidError):
    """The model is not one that this alias can point at."""

    code = "alias_target_unusable"


class NoPreviousTargetError(ConflictError):
    """There is nothing to roll back to."""

    code = "alias_has_no_previous_target"


class AliasChangedError(PreconditionFailedError):
    """The alias is not as the caller last saw it."""

    code = "alias_changed"


@dataclass(frozen=True)
class Expected:
    """What the caller thinks is there, from `If-Match` or `If-None-Match: *`.

    Attributes:
        change_ids: its last change is one of these; None for any.
        is_absent: there is no such alias; `change_ids` says nothing then.
    """

    change_ids: frozenset[int] | None = None
    is_absent: bool = False

    def is_met_by(self, row: ModelAliasRow | None) -> bool:
        """Return whether an alias, or its absence, is what was expected."""
        if row is None or self.is_absent:
            return row is None and self.is_absent
        return self.change_ids is None or row.change_id in self.change_ids


def get_alias(
    session: Session, name: str, alias: str, *, project: str = DEFAULT_PROJECT
) -> ModelAliasRow:
    """Return an alias.

    Raises:
        NotFoundError: there is none.
    """
    row = session.get(ModelAliasRow, (project, name, alias))
    if row is None:
        raise repository.unknown_alias(name, alias)
    return row


def list_aliases(
    session: Session, name: str, *, project: str = DEFAULT_PROJECT
) -> list[ModelAliasRow]:
    """Return the aliases of a name, in alphabetical order."""
    wanted = select(ModelAliasRow).where(
        ModelAliasRow.project_id == project, ModelAliasRow.name == name
    )
    return list(session.scalars(wanted.order_by(ModelAliasRow.alias)))


def list_changes(
    session: Session, name: str, alias: str, *, limit: int, project: str = DEFAULT_PROJECT
) -> list[AliasChangeRow]:
    """Return the last `limit` changes of an alias, newest first; also of one that was deleted.

    Raises:
        NotFoundError: there has never been such an alias.
    """
    wanted = select(AliasChangeRow).where(
        AliasChangeRow.project_id == project,
        AliasChangeRow.name == name,
        AliasChangeRow.alias == alias,
    )
    rows = list(session.scalars(wanted.order_by(AliasChangeRow.id.desc()).limit(limit)))
    if not rows:
        raise repository.unknown_alias(name, alias)
    return rows


def set_alias(
    session: Session,
    name: str,
    alias: str,
    target: Target,
    *,
    actor: str | None = None,
    expected: Expected | None = None,
    project: str = DEFAULT_PROJECT,
) -> tuple[ModelAliasRow, bool]:
    """Point an alias at a model; what it says already changes nothing.

    Args:
        session: a write transaction.
        name: the models' name.
        alias: created if it is not there.
        target: a model of that name, and what shadows it.
        actor: who asks for it, for the list of changes.
        expected: refuse if the alias is not in this state.
        project: whose.

    Returns:
        The alias, and whether it is new.

    Raises:
        AliasTargetError: a model is not there, has another name, or shadows itself.
        AliasChangedError: it is not as `expected`.
        sqlalchemy.exc.IntegrityError: another transaction has just created the alias; try again.
    """
    if repository.find_version(alias) is not None:
        raise InvalidError(
            f"{alias} means a version of {name}; choose an alias that is no 'v' with a number",
            code="alias_reserved",
        )
    key = (project, name, alias)
    row = lock_alias(session, key)
    _check_expected(row, expected)
    _check_target(session, name, target, project)
    if row is not None and _read_target(row) == target:
        return row, False
    if row is None:
        previous_id = None
    elif row.model_id == target.model_id:  # only what shadows it is another
        previous_id = get_change(session, row.change_id).previous_id
    else:
        previous_id = row.change_id
    change = record_change(session, key, "set", target, previous_id=previous_id, actor=actor)
    return apply_change(session, change, target, exists=row is not None), row is None


def roll_back(
    session: Session,
    name: str,
    alias: str,
    *,
    actor: str | None = None,
    expected: Expected | None = None,
    project: str = DEFAULT_PROJECT,
) -> ModelAliasRow:
    """Point an alias at the model before its present one; shadow evaluation ends.

    Raises:
        NotFoundError: no such alias.
        NoPreviousTargetError: it has had one model only, or the one before has been deleted.
        AliasChangedError: it is not as `expected`.
    """
    key = (project, name, alias)
    row = lock_alias(session, key)
    if row is None:
        raise repository.unknown_alias(name, alias)
    _check_expected(row, expected)
    previous_id = get_change(session, row.change_id).previous_id
    if previous_id is None:
        raise NoPreviousTargetError(
            f"{name}@{alias} has meant {row.model_id} from the beginning: there is nothing to go "
            "back to"
        )
    previous = get_change(session, previous_id)
    assert previous.model_id is not None, "a deletion is nobody's previous target"
    target = Target(previous.model_id)
    if repository.find_by_id(session, target.model_id, project=project, is_held=True) is None:
        raise NoPreviousTargetError(
            f"{name}@{alias} meant {target.model_id} before, which has been deleted; point the "
            "alias at a model that is there"
        )
    before = previous.previous_id
    change = record_change(session, key, "rollback", target, previous_id=before, actor=actor)
    return apply_change(session, change, target, exists=True)


def delete_alias(
    session: Session,
    name: str,
    alias: str,
    *,
    actor: str | None = None,
    expected: Expected | None = None,
    project: str = DEFAULT_PROJECT,
) -> None:
    """Delete an alias; its changes are kept.

    Raises:
        NotFoundError: no such alias.
        AliasChangedError: it is not as `expected`.
    """
    key = (project, name, alias)
    row = lock_alias(session, key)
    if row is None:
        raise repository.unknown_alias(name, alias)
    _check_expected(row, expected)
    record_change(session, key, "delete", None, previous_id=None, actor=actor)
    session.execute(delete(ModelAliasRow).where(*is_alias(key)))


def _check_target(session: Session, name: str, target: Target, project: str) -> None:
    """Look at the models, and keep them from being deleted until this transaction ends."""
    if target.shadow_model_id == target.model_id:
        raise AliasTargetError(f"{target.model_id} cannot shadow itself")
    for model_id in sorted(filter(None, (target.model_id, target.shadow_model_id))):
        model = repository.find_by_id(session, model_id, project=project, is_held=True)
        if model is None:
            raise AliasTargetError(
                f"there is no model with the id {model_id}; GET /v1/models lists them"
            )
        _check_name(model, name)


def _check_name(model: ModelRow, name: str) -> None:
    if model.name != name:
        raise AliasTargetError(
            f"{model.id} is called {model.name}; an alias of {name} points at models of that name"
        )


def _check_expected(row: ModelAliasRow | None, expected: Expected | None) -> None:
    if expected is not None and not expected.is_met_by(row):
        now = f"points at {row.model_id} since change {row.change_id}" if row else "is not there"
        raise AliasChangedError(f"the alias {now}; read it again, and then decide")


def _read_target(row: ModelAliasRow) -> Target:
    return Target(row.model_id, row.shadow_model_id, row.shadow_fraction)
