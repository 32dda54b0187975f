"""Published models: list, show, download, delete."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from api.deps import DatabaseDep, ModelPath, ProjectDep, StoreDep
from api.downloads import send_blob
from api.negotiation import choose_media_type
from api.pagination import Page, PageDep
from api.schemas.evaluation import Evaluation
from api.schemas.models import Figure, FigureList, Model
from api.schemas.problems import problems
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models import figures as model_figures
from core.platform.models import repository

router = APIRouter(prefix="/v1/models", tags=["models"])

_ADAPTER_TYPE = "application/vnd.safetensors"
_JSON, _PNG = "application/json", "image/png"
_FORMS = {"json": _JSON, "png": _PNG}

_NOT_MODIFIED = {"description": "`If-None-Match` names this very file."}
#: A figure's name, and after a dot the form that is wanted, if the caller likes to say it there.
FigurePath = Annotated[str, Path(pattern=r"^[a-z_]{1,40}(\.(json|png))?$")]
FormatQuery = Annotated[
    Literal["json", "png"] | None, Query(alias="format", description="Before all else.")
]


@router.get("", responses=problems(422))
def list_models(database: DatabaseDep, project: ProjectDep, page: PageDep) -> Page[Model]:
    """List models, newest first."""
    with database.read() as session:
        rows = repository.list_models(
            session,
            after=page.after,
            limit=page.limit + 1,
            descending=page.descending,
            project=project,
        )
    return page.build_page(rows, Model.from_row)


@router.get("/{model}", responses=problems(404))
def get_model(database: DatabaseDep, project: ProjectDep, model: ModelPath) -> Model:
    """Show a model: by its id, its name (the newest), `name@alias` or `name@v3`."""
    return Model.from_row(_load(database, model, project))


@router.delete("/{model}", status_code=204, responses=problems(404, 409))
def delete_model(database: DatabaseDep, project: ProjectDep, model: ModelPath) -> None:
    """Delete a model by its id (a name is refused); its files are freed within some hours.

    409 while an alias points at it.
    """
    with database.write() as session:
        repository.delete_model(session, model, project=project)


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
    request: Request, database: DatabaseDep, project: ProjectDep, store: StoreDep, model: ModelPath
) -> Response:
    """Download `adapter.safetensors`: the adapters and the head, without the backbone."""
    row = _load(database, model, project)
    file_name = f"{row.name}.adapter.safetensors"
    return send_blob(
        request, store, row.adapter_sha256, media_type=_ADAPTER_TYPE, file_name=file_name
    )


@router.get("/{model}/config", response_class=FileResponse, responses=problems(404))
def download_config(
    request: Request, database: DatabaseDep, project: ProjectDep, store: StoreDep, model: ModelPath
) -> Response:
    """Download `config.json`: what the adapter belongs to and how it was made."""
    row = _load(database, model, project)
    file_name = f"{row.name}.config.json"
    return send_blob(
        request, store, row.config_sha256, media_type="application/json", file_name=file_name
    )


@router.get("/{model}/card", response_class=FileResponse, responses=problems(404))
def download_card(
    request: Request, database: DatabaseDep, project: ProjectDep, store: StoreDep, model: ModelPath
) -> Response:
    """Download the model card, in Markdown."""
    row = _load(database, model, project)
    return send_blob(
        request, store, row.card_sha256, media_type="text/markdown", file_name=f"{row.name}.md"
    )


@router.get(
    "/{model}/evaluation",
    response_class=FileResponse,
    responses={**problems(404), 200: {"model": Evaluation}, 304: _NOT_MODIFIED},
)
def get_evaluation(
    request: Request, database: DatabaseDep, project: ProjectDep, store: StoreDep, model: ModelPath
) -> Response:
    """Show how the model does on the test split: accuracies, calibration, mistakes, doubts."""
    row = _load(database, model, project)
    return send_blob(
        request,
        store,
        model_figures.get_evaluation(row),
        media_type=_JSON,
        file_name=f"{row.name}.evaluation.json",
        inline=True,
    )


@router.get("/{model}/figures", responses=problems(404))
def list_figures(database: DatabaseDep, project: ProjectDep, model: ModelPath) -> FigureList:
    """List the figures that the model's job asked for."""
    row = _load(database, model, project)
    prefix = f"{router.prefix}/{row.id}/figures"
    return FigureList(
        data=[
            Figure.from_stored(figure, url=f"{prefix}/{figure.name.value}")
            for figure in model_figures.list_figures(row)
        ]
    )


@router.get(
    "/{model}/figures/{name}",
    response_class=FileResponse,
    responses={
        **problems(404),
        200: {"content": {_JSON: {}, _PNG: {}}, "description": "The data, or the picture."},
        304: _NOT_MODIFIED,
    },
)
def get_figure(
    *,
    request: Request,
    database: DatabaseDep,
    project: ProjectDep,
    store: StoreDep,
    model: ModelPath,
    name: FigurePath,
    wanted: FormatQuery = None,
) -> Response:
    """Show a figure, as data or as a picture.

    The form is what `format` says, else what the name ends with (`tsne.png`), else what `Accept`
    prefers, else JSON.
    """
    row = _load(database, model, project)
    stem, _, suffix = name.partition(".")
    figure = model_figures.get_figure(row, stem)
    explicit = wanted or suffix
    media_type = (
        _FORMS[explicit]
        if explicit
        else choose_media_type(request.headers.get("accept", ""), (_JSON, _PNG))
    )
    is_picture = media_type == _PNG
    return send_blob(
        request,
        store,
        model_figures.get_picture(row, figure) if is_picture else figure.json_sha256,
        media_type=media_type,
        file_name=f"{row.name}.{stem}.{'png' if is_picture else 'json'}",
        inline=True,
        vary="" if explicit else "Accept",
    )


def _load(database: Database, reference: str, project: str) -> ModelRow:
    with database.read() as session:
        return repository.get_model(session, reference, project=project)
