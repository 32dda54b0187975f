"""A model as one plain timm checkpoint. Served with the `inference` role only, which has torch."""

from fastapi import APIRouter, Request, Response

from api.deps import ModelPath, ProjectDep
from api.schemas.problems import problems
from api.serving import EngineDep

router = APIRouter(prefix="/v1/models", tags=["inference"])

_TYPE = "application/vnd.safetensors"


@router.get(
    "/{model}/merged",
    response_class=Response,
    responses={
        **problems(404, 409, 422, 503),
        200: {"content": {_TYPE: {}}, "description": "The file."},
        304: {"description": "`If-None-Match` names this very file."},
    },
)
async def download_merged(
    request: Request, engine: EngineDep, project: ProjectDep, model: ModelPath
) -> Response:
    """Download backbone, adapters and head as one plain timm checkpoint (safetensors, fp32).

    For the adapter kinds that are `mergeable`; 422 for the others. The file is as large as the
    network and made anew for every request.
    """
    served = await engine.resolve(project, model)
    etag = f'"{served.adapter_sha256}-merged"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(
        await engine.merge(served),
        media_type=_TYPE,
        headers={
            "ETag": etag,
            "Content-Disposition": f'attachment; filename="{served.name}.safetensors"',
        },
    )
