"""Features of images, of a model or of a bare backbone. Served with the `inference` role only."""

import base64
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from api.base64_images import json_limit_bytes
from api.deps import ModelPath, ProjectDep, Services, ServicesDep
from api.image_bodies import decode_inputs, is_json, media_type_of, read_images
from api.inference import InferenceEngine, ServedModel
from api.json_body import parse_json_aside, read_body, validate_body
from api.resolution import build_bare
from api.routes.classify import IMAGE_CONTENT
from api.schemas.fields import SLUG_PATTERN
from api.schemas.inference import Embedding, EmbeddingList, EmbeddingsBody, EncodingFormat
from api.schemas.inline import inline_schema
from api.schemas.problems import problems
from api.serving import EngineDep, answer_headers, predict_named
from core.errors import NotFoundError
from core.platform.models.named import has_model_on

router = APIRouter(prefix="/v1", tags=["inference"])

_JSON = {"schema": inline_schema(EmbeddingsBody)}


_ROUTE: dict[str, Any] = {
    "responses": problems(400, 404, 409, 413, 415, 422, 429, 504),
    "openapi_extra": {
        "requestBody": {"required": True, "content": {**IMAGE_CONTENT, "application/json": _JSON}}
    },
}
FormatQuery = Annotated[
    EncodingFormat, Query(description="Numbers, or base64 of little-endian float32.")
]


@router.post("/models/{model}/embeddings", **_ROUTE)
async def embed(
    *,
    request: Request,
    response: Response,
    services: ServicesDep,
    engine: EngineDep,
    project: ProjectDep,
    model: ModelPath,
    encoding_format: FormatQuery = "float",
) -> EmbeddingList:
    """Return the pooled features of each image, in the form of OpenAI's embeddings.

    They are what the model's head reads: of the backbone with the model's adapters, not scaled to
    length 1.
    """
    served = await engine.resolve(project, model)
    return await _answer(
        request,
        response,
        services=services,
        engine=engine,
        served=served,
        encoding_format=encoding_format,
    )


@router.post("/backbones/{backbone}/embeddings", **_ROUTE)
async def embed_with_backbone(
    *,
    request: Request,
    response: Response,
    services: ServicesDep,
    engine: EngineDep,
    project: ProjectDep,
    backbone: Annotated[str, Path(pattern=SLUG_PATTERN, description="Exact timm name.")],
    encoding_format: FormatQuery = "float",
) -> EmbeddingList:
    """Return the pooled features of each image from a backbone without any adapter.

    For the backbones of the project's models: others are not loaded for this.
    """

    def is_served() -> bool:
        with services.database.read() as session:
            return has_model_on(session, backbone, project=project)

    if not await run_in_threadpool(is_served):
        raise NotFoundError(
            f"no model here is on the backbone {backbone}; GET /v1/models tells which are used",
            code="backbone_not_served",
        )
    served = build_bare(backbone, project)
    return await _answer(
        request,
        response,
        services=services,
        engine=engine,
        served=served,
        encoding_format=encoding_format,
    )


async def _answer(
    request: Request,
    response: Response,
    *,
    services: Services,
    engine: InferenceEngine,
    served: ServedModel,
    encoding_format: EncodingFormat,
) -> EmbeddingList:
    max_image_bytes = services.settings.max_image_bytes
    project = served.project_id
    if is_json(media_type_of(request)):
        raw = await read_body(request, json_limit_bytes(max_image_bytes))
        body = validate_body(EmbeddingsBody, await parse_json_aside(raw))
        encoding_format = body.encoding_format or encoding_format
        field = "input" if body.inputs is None else "inputs"
        images = await decode_inputs(body.images, field, max_image_bytes)
        answer = await predict_named(engine, served, images, project=project, request=request)
    else:
        images, _ = await read_images(request, max_image_bytes)
        answer = await engine.predict(served, images, project=project, request=request)
    response.headers.update(answer_headers(answer))
    data = [
        Embedding(index=index, embedding=_encode(features, encoding_format))
        for index, features in enumerate(answer.features)
    ]
    return EmbeddingList(data=data, model=answer.model_id)


def _encode(features: NDArray[np.float32], encoding_format: EncodingFormat) -> list[float] | str:
    if encoding_format == "base64":
        return base64.b64encode(features.astype("<f4").tobytes()).decode()
    numbers: list[float] = features.tolist()
    return numbers
