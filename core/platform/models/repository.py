"""Published models: read and deleted here, written by `core.platform.jobs.attempts.publish`.

A model is named by its id, by its name (the newest of that name), by `name@alias`, or by
`name@v3`, its third version. Whatever belongs to another project is not there.
"""

import re

from sqlalchemy import ColumnElement, Select, and_, or_, select, update
from sqlalchemy.orm import Session

from core.errors import ConflictError, InvalidError, NotFoundError
from core.platform.db.clock import db_now
from core.platform.db.model_tables import ModelAliasRow
from core.platform.db.tables import ModelRow
from core.platform.jobs.events import add_event
from core.platform.models.liveness import is_alive
from core.types import DEFAULT_PROJECT

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


class ModelInUseError(ConflictError):
    """An alias points at the model."""

    code = "model_in_use"


def get_model(session: Session, reference: str, *, project: str = DEFAULT_PROJECT) -> ModelRow:
    """Return the model that a reference means to a project.

    Args:
        session: any transaction.
        reference: an id, a name, `name@alias` or `name@v<version>`.
        project: whose models are meant.

    Raises:
        NotFoundError: no such model, or no such alias.
    """
    name, separator, suffix = reference.partition("@")
    if separator:
        return _get_by_suffix(session, name, suffix, project)
    model = find_by_id(session, reference, project=project)
    if model is None:
        model = _find_newest(session, reference, project)
    if model is None:
        raise _unknown(reference)
    return model


def find_by_id(
    session: Session, model_id: str, *, project: str, is_held: bool = False
) -> ModelRow | None:
    """Return the model with this id, or None.

    Args:
        session: any transaction.
        model_id: its id, and no other kind of reference.
        project: whose it must be.
        is_held: whether it must not be deleted before this transaction ends.
    """
    wanted = select(ModelRow).where(ModelRow.id == model_id, ModelRow.project_id == project)
    if is_held:
        wanted = wanted.with_for_update(read=True)
    return session.scalars(wanted.where(is_alive())).one_or_none()


def find_version(suffix: str) -> int | None:
    """Return the number that `v3` in `name@v3` means; None if it is an alias."""
    match = _VERSION.fullmatch(suffix)
    return int(match[1]) if match else None


def _get_by_suffix(session: Session, name: str, suffix: str, project: str) -> ModelRow:
    version = find_version(suffix)
    if version is not None:
        wanted = _named(name, project).where(ModelRow.version == version)
        model = session.scalars(wanted).one_or_none()
        if model is None:
            raise _unknown(f"{name}@{suffix}")
        return model
    alias = session.get(ModelAliasRow, (project, name, suffix))
    if alias is None:
        raise unknown_alias(name, suffix)
    model = find_by_id(session, alias.model_id, project=project)
    if model is None:  # by a process of the release before, which knows no aliases
        raise NotFoundError(
            f"the alias {suffix} of {name} points at {alias.model_id}, which has been deleted; "
            "point it at another model",
            code="model_not_found",
        )
    return model


def find_alias(session: Session, reference: str, *, project: str) -> ModelAliasRow | None:
    """Return the alias that a reference goes through, or None."""
    name, separator, suffix = reference.partition("@")
    return session.get(ModelAliasRow, (project, name, suffix)) if separator else None


def unknown_alias(name: str, alias: str) -> NotFoundError:
    """Return the error for an alias that there is not."""
    return NotFoundError(
        f"{name} has no alias {alias}; GET /v1/models/{name}/aliases lists them",
        code="alias_not_found",
    )


def _named(name: str, project: str) -> Select[ModelRow]:
    named = select(ModelRow).where(ModelRow.name == name, ModelRow.project_id == project)
    return named.where(is_alive())


def _find_newest(session: Session, name: str, project: str) -> ModelRow | None:
    newest_first = _named(name, project).order_by(ModelRow.created_at.desc(), ModelRow.id.desc())
    return session.scalars(newest_first.limit(1)).first()


def _unknown(reference: str) -> NotFoundError:
    return NotFoundError(
        f"there is no model {reference}; GET /v1/models lists them", code="model_not_found"
    )


def delete_model(session: Session, model_id: str, *, project: str = DEFAULT_PROJECT) -> None:
    """Delete a model: nobody finds it any more, and its files are collected later.

    Raises:
        NotFoundError: no such model, or it has been deleted already.
        InvalidError: it is the name of models, which would mean another one after each deletion.
        ModelInUseError: an alias points at it; nothing is deleted if this transaction rolls back.
    """
    statement = update(ModelRow).where(
        ModelRow.id == model_id, ModelRow.project_id == project, is_alive()
    )
    statement = statement.values(deleted_at=db_now()).returning(ModelRow.id, ModelRow.job_id)
    deleted = session.execute(statement).one_or_none()
    if deleted is None:
        newest = get_model(session, model_id, project=project)
        raise InvalidError(
            f"{model_id} is a name, and models are deleted by their id; it means {newest.id} now",
            code="model_id_required",
        )
    # After the row's lock has been taken: whoever points an alias at it holds that, too.
    _refuse_if_aliased(session, model_id)
    if deleted.job_id is not None:
        message = f"model {model_id} deleted"
        data = {"model_id": model_id}
        add_event(session, deleted.job_id, message, event_type="model.deleted", data=data)


def _refuse_if_aliased(session: Session, model_id: str) -> None:
    points = or_(ModelAliasRow.model_id == model_id, ModelAliasRow.shadow_model_id == model_id)
    keys = (ModelAliasRow.name, ModelAliasRow.alias)
    aliases = session.execute(select(*keys).where(points).order_by(*keys)).all()
    if aliases:
        names = ", ".join(f"{row.name}@{row.alias}" for row in aliases)
        raise ModelInUseError(
            f"{model_id} is what {names} uses; point the alias at another model, or delete it, "
            "and delete the model then"
        )


def list_models(
    session: Session,
    *,
    after: str | None,
    limit: int,
    descending: bool = True,
    project: str = DEFAULT_PROJECT,
) -> list[ModelRow]:
    """Return up to `limit` models beyond the model `after`, newest first by default."""
    query = select(ModelRow).where(is_alive(), ModelRow.project_id == project)
    if after is not None:
        # A deleted one still has its place in the list.
        anchor = session.get(ModelRow, after)
        if anchor is None or anchor.project_id != project:
            anchor = get_model(session, after, project=project)
        query = query.where(_beyond(anchor, descending=descending))
    keys = (ModelRow.created_at, ModelRow.id)
    query = query.order_by(*(key.desc() if descending else key for key in keys))
    return list(session.scalars(query.limit(limit)))


def _beyond(anchor: ModelRow, *, descending: bool) -> ColumnElement[bool]:
    same = ModelRow.created_at == anchor.created_at
    if descending:
        return or_(ModelRow.created_at < anchor.created_at, and_(same, ModelRow.id < anchor.id))
    return or_(ModelRow.created_at > anchor.created_at, and_(same, ModelRow.id > anchor.id))
