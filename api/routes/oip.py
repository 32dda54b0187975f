"""Open Inference Protocol v2 (KServe, Triton, MLServer). Served with the `inference` role only.

A model goes by its id, its name or `name@alias`. Its versions are the models with that name, by
their ids; a number n means the n-th of the name, as `name@vn` does.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from api.base64_images import json_limit_bytes
from api.deps import DatabaseDep, ModelPath, ProjectDep, ServicesDep, SettingsDep
from api.image_bodies import MAX_TOTAL_IMAGES
from api.inference import EncodedImage, InferenceEngine, Pixels, ServedModel
from api.json_body import read_body
from api.oip.framing import HEADER_LENGTH, MAX_HEADER_BYTES, split_body
from api.oip.metadata import describe_model, describe_server, find_image_px
from api.oip.requests import read_request
from api.oip.responses import build_answer
from api.routes.health import get_readiness
from api.routes.repository import UnloadedDep
from api.schemas.fields import SLUG_PATTERN
from api.schemas.inline import inline_schema
from api.schemas.oip import (
    InferAnswer,
    InferBody,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    oip_errors,
)
from api.serving import EngineDep, answer_headers
from core.errors import NotFoundError, UnavailableError, UnsupportedTypeError
from core.platform.models.named import list_ids_of_name

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

#: Most versions that metadata list: the newest.
_MOST_VERSIONS = 100

VersionPath = Annotated[
    str, Path(pattern=SLUG_PATTERN, description="Id of a model with that name, or its number.")
]

_INFER: dict[str, Any] = {
    "responses": {
        **oip_errors(404, 409, 413, 415, 429, 504),
        200: {"model": InferAnswer, "description": "JSON, with binary tensors behind it if asked."},
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "required": False,
                "schema": {"type": "integer", "minimum": 0},
                "description": "Bytes of JSON before binary tensors; 0: the body is one image.",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": inline_schema(InferBody)},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
}


@router.get("", responses=oip_errors())
async def get_server(request: Request) -> ServerMetadata:
    """Tell who answers, and the extensions."""
    return describe_server(request.app.version)


@router.get("/health/live", responses=oip_errors())
async def get_live() -> ServerLive:
    """Tell that this process runs and answers; nothing else is looked at."""
    return ServerLive()


@router.get("/health/ready", responses=oip_errors(), response_model=ServerReady)
def get_ready(request: Request, services: ServicesDep) -> Response:
    """Tell whether requests can be answered; the same as `/readyz`."""
    readiness = get_readiness(request, services)
    if readiness.status_code != 200:  # noqa: PLR2004
        return readiness
    return JSONResponse(ServerReady().model_dump())


@router.get("/models/{model}", responses=oip_errors(404))
@router.get("/models/{model}/versions/{version}", responses=oip_errors(404))
async def get_model_metadata(
    *,
    database: DatabaseDep,
    engine: EngineDep,
    project: ProjectDep,
    model: ModelPath,
    version: VersionPath | None = None,
) -> ModelMetadata:
    """Tell a model's versions, inputs and outputs."""
    served = await _resolve(engine, project, model, version)

    def list_versions() -> list[str]:
        with database.read() as session:
            return list_ids_of_name(session, served.name, project=project, limit=_MOST_VERSIONS)

    versions = await run_in_threadpool(list_versions) if model == served.name else [served.id]
    return describe_model(model, versions, served)


@router.get("/models/{model}/ready", responses=oip_errors(404, 409))
@router.get("/models/{model}/versions/{version}/ready", responses=oip_errors(404, 409))
async def get_model_ready(
    *,
    engine: EngineDep,
    project: ProjectDep,
    unloaded: UnloadedDep,
    model: ModelPath,
    version: VersionPath | None = None,
) -> ModelReady:
    """Tell whether a model can answer, and load it for that if need be.

    One that was unloaded by request is not ready, and is not loaded for this question.
    """
    served = await _resolve(engine, project, model, version)
    if not await engine.is_ready(served):
        if served.id in unloaded:
            raise UnavailableError(
                f"{model} has been unloaded here; POST /v2/repository/models/{model}/load, or an "
                "inference, loads it",
                code="model_unloaded",
            )
        await engine.load(served, is_kept=False)
    return ModelReady(name=model)


@router.post("/models/{model}/infer", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer(
    *,
    request: Request,
    settings: SettingsDep,
    engine: EngineDep,
    project: ProjectDep,
    unloaded: UnloadedDep,
    model: ModelPath,
    version: VersionPath | None = None,
) -> Response:
    """Answer for a batch of images: `image` (BYTES) or `pixel_values` (FP32), one of them.

    Outputs are `probabilities`, `logits` and `features`; `parameters.classification` of an output
    asks for the names of its best classes instead.
    """
    served = await _resolve(engine, project, model, version)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedTypeError(f"bodies are read uncompressed here, not as {encoding!r}")
    header_length = request.headers.get(HEADER_LENGTH)
    max_image_bytes = settings.max_image_bytes
    if header_length is None:
        max_bytes = json_limit_bytes(max_image_bytes)
    else:
        max_bytes = MAX_TOTAL_IMAGES * max_image_bytes + MAX_HEADER_BYTES
    body = await read_body(request, max_bytes)

    wanted = await run_in_threadpool(
        lambda: read_request(
            split_body(body, header_length),
            image_px=find_image_px(served),
            max_image_bytes=max_image_bytes,
        )
    )
    images: list[EncodedImage | Pixels] = [
        EncodedImage(f"image {index}", image) if isinstance(image, bytes) else image
        for index, image in enumerate(wanted.images)
    ]
    predictions = await engine.predict(
        served, images, project=project, deadline_s=wanted.timeout_s, request=request
    )
    unloaded.discard(served.id)
    answer, length = build_answer(wanted, predictions, model)
    headers = dict(answer_headers(predictions))
    if length is None:
        return Response(answer, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(length)
    return Response(answer, media_type="application/octet-stream", headers=headers)


async def _resolve(
    engine: InferenceEngine, project: str, reference: str, version: str | None
) -> ServedModel:
    """Return the model that a reference and a version mean together.

    Raises:
        NotFoundError: there is no such model, or the version is not one of it.
    """
    served = await engine.resolve(project, reference)
    if version is None or version == served.id:
        return served
    if reference == served.name:
        other = f"{served.name}@v{version}" if version.isdigit() else version
        found = await engine.resolve(project, other)
        if found.name == served.name and version in (found.id, other.rpartition("@v")[2]):
            return found
    raise NotFoundError(
        f"{reference} has no version {version}; GET /v2/models/{reference} lists them",
        code="version_not_found",
    )
