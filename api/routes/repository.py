"""Triton's model repository extension: what there is, and what is loaded in this process.

Loading is a matter of speed only: whatever is published answers, and the first request loads it.
"""

from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.deps import DatabaseDep, ModelPath, ProjectDep
from api.json_body import parse_json, read_body, validate_body
from api.middleware import MAX_JSON_BYTES
from api.schemas.inline import inline_schema
from api.schemas.oip import IndexBody, IndexEntry, RepositoryBody, oip_errors
from api.serving import EngineDep
from core.errors import InvalidError
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models.repository import list_models

router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"

#: Most models that one index lists: the newest.
_MOST_MODELS = 10_000
_PAGE = 500
#: Triton's parameter that has a harmless meaning here: no model depends on another.
_IGNORED_PARAMETERS = frozenset({"unload_dependents"})

Body = TypeVar("Body", bound=BaseModel)


async def get_unloaded(request: Request) -> set[str]:
    """Return the ids of the models that were unloaded by request in this process."""
    state = request.app.state
    if not hasattr(state, "unloaded_models"):
        state.unloaded_models = set()
    unloaded: set[str] = state.unloaded_models
    return unloaded


UnloadedDep = Annotated[set[str], Depends(get_unloaded)]


def _document(model: type[BaseModel]) -> dict[str, object]:
    content = {"application/json": {"schema": inline_schema(model)}}
    return {"requestBody": {"required": False, "content": content}}


@router.post("/index", responses=oip_errors(413), openapi_extra=_document(IndexBody))
async def list_index(
    request: Request, database: DatabaseDep, engine: EngineDep, project: ProjectDep
) -> list[IndexEntry]:
    """List the models, newest first, and whether each is loaded in this process."""
    body = await _read(request, IndexBody)
    rows = await run_in_threadpool(_list_all, database, project)
    resident = set(await engine.list_resident())
    entries = [_build_entry(row, is_loaded=_key_of(row) in resident) for row in rows]
    return [entry for entry in entries if entry.state == READY or not body.ready]


@router.post(
    "/models/{model}/load",
    responses=oip_errors(404, 409, 413),
    openapi_extra=_document(RepositoryBody),
)
async def load_model(
    request: Request,
    engine: EngineDep,
    project: ProjectDep,
    unloaded: UnloadedDep,
    model: ModelPath,
) -> IndexEntry:
    """Load a model into this process before anybody asks for it."""
    _refuse_parameters(await _read(request, RepositoryBody))
    served = await engine.resolve(project, model)
    await engine.load(served)
    unloaded.discard(served.id)
    return IndexEntry(name=served.name, version=served.id, state=READY, reason="")


@router.post(
    "/models/{model}/unload",
    responses=oip_errors(404, 413),
    openapi_extra=_document(RepositoryBody),
)
async def unload_model(
    request: Request,
    engine: EngineDep,
    project: ProjectDep,
    unloaded: UnloadedDep,
    model: ModelPath,
) -> IndexEntry:
    """Free what a model takes in this process; it stays published."""
    _refuse_parameters(await _read(request, RepositoryBody))
    served = await engine.resolve(project, model)
    await engine.unload(served)
    unloaded.add(served.id)
    return IndexEntry(
        name=served.name, version=served.id, state=UNAVAILABLE, reason="unloaded by request"
    )


async def _read(request: Request, model: type[Body]) -> Body:
    body = await read_body(request, MAX_JSON_BYTES)
    return validate_body(model, parse_json(body) if body else {})


def _refuse_parameters(body: RepositoryBody) -> None:
    others = sorted(body.parameters.keys() - _IGNORED_PARAMETERS)
    if others:
        raise InvalidError(
            f"models are loaded as they were published; the parameters {others} cannot change them"
        )


def _list_all(database: Database, project: str) -> list[ModelRow]:
    found: list[ModelRow] = []
    after: str | None = None
    while len(found) < _MOST_MODELS:
        with database.read() as session:
            page = list_models(session, after=after, limit=_PAGE, project=project)
        found += page
        if len(page) < _PAGE:
            break
        after = page[-1].id
    return found


def _key_of(row: ModelRow) -> tuple[str, str]:
    return row.adapter_sha256, row.config_sha256


def _build_entry(row: ModelRow, *, is_loaded: bool) -> IndexEntry:
    if is_loaded:
        return IndexEntry(name=row.name, version=row.id, state=READY, reason="")
    reason = "not loaded; the first request loads it"
    return IndexEntry(name=row.name, version=row.id, state=UNAVAILABLE, reason=reason)
