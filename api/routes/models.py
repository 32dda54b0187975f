"""Published models: list, show, download."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from api.deps import DatabaseDep, ReferencePath, StoreDep
from api.downloads import send_blob
from api.pagination import Page, PageDep
from api.schemas.models import Model
from api.schemas.problems import problems
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models import repository

router = APIRouter(prefix="/v1/models", tags=["models"])

_ADAPTER_TYPE = "application/vnd.safetensors"


@router.get("", responses=problems(422))
def list_models(database: DatabaseDep, page: PageDep) -> Page[Model]:
    """List models, newest first."""
    with database.read() as session:
        rows = repository.list_models(
            session, after=page.after, limit=page.limit + 1, descending=page.descending
        )
    return page.build_page(rows, Model.from_row)


@router.get("/{model}", responses=problems(404))
def get_model(database: DatabaseDep, model: ReferencePath) -> Model:
    """Show a model, by its id or by its name (the newest of that name)."""
    return Model.from_row(_load(database, model))


@router.get(
    "/{model}/adapter",
    response_class=FileResponse,
    responses={
        **problems(404),
        200: {"content": {_ADAPTER_TYPE: {}}, "description": "The file."},
        206: {"description": "The part that `Range` asked for."},
        304: {"description": "`If-None-Match` names this very file."},
        **{status: problems(status)[status] for status in (400, 416)},
    },
)
def download_adapter(
    request: Request, database: DatabaseDep, store: StoreDep, model: ReferencePath
) -> Response:
    """Download `adapter.safetensors`: the adapters and the head, without the backbone."""
    row = _load(database, model)
    file_name = f"{row.name}.adapter.safetensors"
    return send_blob(
        request, store, row.adapter_sha256, media_type=_ADAPTER_TYPE, file_name=file_name
    )


@router.get("/{model}/config", response_class=FileResponse, responses=problems(404))
def download_config(
    request: Request, database: DatabaseDep, store: StoreDep, model: ReferencePath
) -> Response:
    """Download `config.json`: what the adapter belongs to and how it was made."""
    row = _load(database, model)
    file_name = f"{row.name}.config.json"
    return send_blob(
        request, store, row.config_sha256, media_type="application/json", file_name=file_name
    )


@router.get("/{model}/card", response_class=FileResponse, responses=problems(404))
def download_card(
    request: Request, database: DatabaseDep, store: StoreDep, model: ReferencePath
) -> Response:
    """Download the model card, in Markdown."""
    row = _load(database, model)
    return send_blob(
        request, store, row.card_sha256, media_type="text/markdown", file_name=f"{row.name}.md"
    )


def _load(database: Database, reference: str) -> ModelRow:
    with database.read() as session:
        return repository.get_model(session, reference)
