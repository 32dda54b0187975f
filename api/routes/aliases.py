"""Aliases of models: point them, look at them, go back, compare with a shadow."""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.deps import AliasPath, DatabaseDep, ProjectDep, ReferencePath, require_json
from api.pagination import MAX_LIMIT, Page
from api.schemas.aliases import Alias, AliasChange, AliasList, AliasTarget, ShadowReport
from api.schemas.problems import problems
from core.platform.db.engine import Database
from core.platform.db.model_tables import ModelAliasRow
from core.platform.models import aliases, shadow
from core.platform.models.aliases import Expected

router = APIRouter(prefix="/v1/models/{name}/aliases", tags=["models"])

Result = TypeVar("Result")

_ETAG = re.compile(r'(?:W/)?"([0-9]{1,18})"')
_ETAG_HEADER: dict[str, Any] = {
    "headers": {"ETag": {"description": "For `If-Match`.", "schema": {"type": "string"}}}
}


def _read_expected(
    if_match: Annotated[
        str | None, Header(description="`ETag` of the alias as the caller knows it, else 412.")
    ] = None,
    if_none_match: Annotated[
        str | None, Header(description="`*`: only if there is no such alias yet, else 412.")
    ] = None,
) -> Expected | None:
    if if_none_match is not None and if_none_match.strip() == "*":
        return Expected(is_absent=True)
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return Expected()
    return Expected(frozenset(int(number) for number in _ETAG.findall(if_match)))


def _read_actor(request: Request) -> str | None:
    """Return a name for the key of a request that does not give the key away."""
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    if not token:
        return None
    return "key_" + hashlib.sha256(f"actor {token}".encode()).hexdigest()[:12]


ExpectedDep = Annotated[Expected | None, Depends(_read_expected)]
ActorDep = Annotated[str | None, Depends(_read_actor)]


@router.get("", responses=problems(422))
def list_aliases(database: DatabaseDep, project: ProjectDep, name: ReferencePath) -> AliasList:
    """List the aliases of a name; none, where there is no model of that name."""
    with database.read() as session:
        rows = aliases.list_aliases(session, name, project=project)
    return AliasList(data=[Alias.from_row(row) for row in rows])


@router.get("/{alias}", responses={**problems(404), 200: _ETAG_HEADER})
def get_alias(
    *,
    response: Response,
    database: DatabaseDep,
    project: ProjectDep,
    name: ReferencePath,
    alias: AliasPath,
) -> Alias:
    """Show what `name@alias` means."""
    with database.read() as session:
        row = aliases.get_alias(session, name, alias, project=project)
    return _show(response, row)


@router.put(
    "/{alias}",
    responses={
        **problems(400, 412, 415),
        200: _ETAG_HEADER,
        201: {"model": Alias, "description": "It is new.", **_ETAG_HEADER},
    },
    dependencies=[Depends(require_json)],
)
def set_alias(
    *,
    wanted: AliasTarget,
    response: Response,
    database: DatabaseDep,
    project: ProjectDep,
    name: ReferencePath,
    alias: AliasPath,
    expected: ExpectedDep,
    actor: ActorDep,
) -> Alias:
    """Point an alias at a model, at once for all requests that have not been resolved yet.

    The body is all of it: without a shadow there is none any more. The same body again changes
    nothing.
    """
    row, is_new = _write(
        database,
        lambda session: aliases.set_alias(
            session,
            name,
            alias,
            wanted.to_target(),
            actor=actor,
            expected=expected,
            project=project,
        ),
    )
    if is_new:
        response.status_code = 201
        response.headers["Location"] = f"/v1/models/{name}/aliases/{alias}"
    return _show(response, row)


@router.post("/{alias}/rollback", responses={**problems(404, 409, 412), 200: _ETAG_HEADER})
def roll_back_alias(
    *,
    response: Response,
    database: DatabaseDep,
    project: ProjectDep,
    name: ReferencePath,
    alias: AliasPath,
    expected: ExpectedDep,
    actor: ActorDep,
) -> Alias:
    """Point an alias at the model before its present one; again, at the one before that.

    Shadow evaluation ends with it.
    """
    with database.write() as session:
        row = aliases.roll_back(
            session, name, alias, actor=actor, expected=expected, project=project
        )
    return _show(response, row)


@router.delete("/{alias}", status_code=204, responses=problems(404, 412))
def delete_alias(
    *,
    database: DatabaseDep,
    project: ProjectDep,
    name: ReferencePath,
    alias: AliasPath,
    expected: ExpectedDep,
    actor: ActorDep,
) -> None:
    """Delete an alias; its changes are kept."""
    with database.write() as session:
        aliases.delete_alias(session, name, alias, actor=actor, expected=expected, project=project)


@router.get("/{alias}/history", responses=problems(404))
def list_changes(
    *,
    database: DatabaseDep,
    project: ProjectDep,
    name: ReferencePath,
    alias: AliasPath,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
) -> Page[AliasChange]:
    """List the last changes of an alias, newest first: which model, when, and by whose key."""
    with database.read() as session:
        rows = aliases.list_changes(session, name, alias, limit=limit + 1, project=project)
    return Page(
        data=[AliasChange.from_row(row) for row in rows[:limit]], has_more=len(rows) > limit
    )


@router.get("/{alias}/shadow", responses=problems(404))
def get_shadow(
    database: DatabaseDep, project: ProjectDep, name: ReferencePath, alias: AliasPath
) -> ShadowReport:
    """Show how the shadow model compares with the alias's model on the same images.

    Counted since the two were set side by side; a few seconds behind.
    """
    with database.read() as session:
        row = aliases.get_alias(session, name, alias, project=project)
        agreement = shadow.read_agreement(session, row)
        assert row.shadow_model_id is not None, "or there would be no agreement"
        return ShadowReport.from_agreement(row, row.shadow_model_id, agreement)


def _write(database: Database, write: Callable[[Session], Result]) -> Result:
    """Write in a transaction; once more if another one has just created the same alias."""
    try:
        with database.write() as session:
            return write(session)
    except IntegrityError:
        with database.write() as session:
            return write(session)


def _show(response: Response, row: ModelAliasRow) -> Alias:
    response.headers["ETag"] = f'"{row.change_id}"'
    return Alias.from_row(row)
