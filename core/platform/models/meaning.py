"""Whether a reference still means what it meant: one narrow query, where a model is a wide row.

Nearly every inference request asks this where hundreds of models are in use. So the statements are
built once, and run without a session: that takes a sixth of the time of reading the model.
"""

from dataclasses import dataclass

from sqlalchemy import BindParameter, Connection, and_, bindparam, null, select

from core.platform.db.model_tables import ModelAliasRow
from core.platform.db.tables import ModelRow, ProjectRow
from core.platform.models.liveness import is_alive
from core.platform.models.repository import find_version

_PROJECT: BindParameter[str] = bindparam("project")
_NAME: BindParameter[str] = bindparam("name")
_WEIGHT = select(ProjectRow.weight).where(ProjectRow.id == _PROJECT).scalar_subquery()
_IS_THERE = and_(ModelRow.project_id == _PROJECT, is_alive())

_BY_ID = select(ModelRow.id, null(), _WEIGHT).where(ModelRow.id == bindparam("model"), _IS_THERE)
_BY_VERSION = select(ModelRow.id, null(), _WEIGHT).where(
    ModelRow.name == _NAME, ModelRow.version == bindparam("version"), _IS_THERE
)
_BY_ALIAS = (
    select(ModelRow.id, ModelAliasRow.change_id, _WEIGHT)
    .join(ModelAliasRow, ModelAliasRow.model_id == ModelRow.id)
    .where(
        ModelAliasRow.project_id == _PROJECT,
        ModelAliasRow.name == _NAME,
        ModelAliasRow.alias == bindparam("alias"),
        _IS_THERE,
    )
)


@dataclass(frozen=True)
class Meaning:
    """What a reference means now.

    Attributes:
        model_id: the model.
        change_id: the alias's change that made it so; None if the reference goes through no alias.
        weight: the project's share relative to others'.
    """

    model_id: str
    change_id: int | None
    weight: float


def find_meaning(connection: Connection, reference: str, *, project: str) -> Meaning | None:
    """Return what an id, `name@alias` or `name@v<version>` means to a project; None if nothing.

    A bare name means nothing here: which model of it is the newest is asked of `get_model`.
    """
    name, separator, suffix = reference.partition("@")
    version = find_version(suffix)
    own: dict[str, object] = {"project": project}
    if not separator:
        found = connection.execute(_BY_ID, {**own, "model": reference})
    elif version is not None:
        found = connection.execute(_BY_VERSION, {**own, "name": name, "version": version})
    else:
        found = connection.execute(_BY_ALIAS, {**own, "name": name, "alias": suffix})
    row = found.one_or_none()
    if row is None:
        return None
    model_id, change_id, weight = row
    return Meaning(model_id, change_id, 1.0 if weight is None else weight)
