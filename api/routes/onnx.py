"""A model as one ONNX file. Served with the `inference` role only, which has torch."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from api.deps import ModelPath, ProjectDep
from api.downloads import find_unchanged, send_file
from api.schemas.problems import problems
from api.serving import EngineDep

router = APIRouter(prefix="/v1/models", tags=["inference"])

_TYPE = "application/octet-stream"
_DELTA_HEADER = "X-Max-Abs-Delta"


@router.get(
    "/{model}/onnx",
    response_class=FileResponse,
    responses={
        **problems(404, 409, 413, 422, 503, 507),
        200: {
            "content": {_TYPE: {}},
            "description": "The file.",
            "headers": {
                _DELTA_HEADER: {
                    "description": "Largest difference of a logit between torch and ONNX Runtime "
                    "on the images that the file was checked with.",
                    "schema": {"type": "number"},
                }
            },
        },
        206: {"description": "The part that `Range` asked for."},
        304: {"description": "`If-None-Match` names this very file."},
        **{status: problems(status)[status] for status in (400, 416)},
    },
)
async def download_onnx(
    *,
    request: Request,
    engine: EngineDep,
    project: ProjectDep,
    model: ModelPath,
) -> Response:
    """Download backbone, adapters and head as one ONNX file, fp32, for any batch.

    Input `pixel_values` (batch, 3, px, px), normalised; output `logits`. Its metadata say how
    images are prepared and what the classes are. It is as large as the network, takes seconds to be
    made, and is checked with ONNX Runtime first.
    """
    served = await engine.resolve(project, model)
    made = await engine.onnx_files.open(served)
    etag = f'"{made.sha256}"'
    unchanged = find_unchanged(request, etag)
    if unchanged is not None:
        made.file.close()
        return unchanged
    return send_file(
        made.file,
        etag=etag,
        media_type=_TYPE,
        file_name=f"{served.name}.onnx",
        headers={_DELTA_HEADER: f"{made.max_delta:.3e}"},
    )
