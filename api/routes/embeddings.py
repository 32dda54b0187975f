"""Features of images, as a published model's head reads them. With the `inference` role only."""

import base64
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from api.base64_images import json_limit_bytes
from api.deps import ModelPath, ProjectDep, SettingsDep
from api.image_bodies import decode_inputs, is_json, media_type_of, read_images
from api.json_body import parse_json_aside, read_body, validate_body
from api.routes.classify import IMAGE_CONTENT
from api.schemas.inference import Embedding, EmbeddingList, EmbeddingsBody, EncodingFormat
from api.schemas.inline import inline_schema
from api.schemas.problems import problems
from api.serving import EngineDep, answer_headers, predict_named

router = APIRouter(prefix="/v1/models", tags=["inference"])

_JSON = {"schema": inline_schema(EmbeddingsBody)}


@router.post(
    "/{model}/embeddings",
    responses=problems(400, 404, 409, 413, 415, 422, 429, 504),
    openapi_extra={
        "requestBody": {"required": True, "content": {**IMAGE_CONTENT, "application/json": _JSON}}
    },
)
async def embed(
    *,
    request: Request,
    response: Response,
    settings: SettingsDep,
    engine: EngineDep,
    project: ProjectDep,
    model: ModelPath,
    encoding_format: Annotated[
        EncodingFormat, Query(description="Numbers, or base64 of little-endian float32.")
    ] = "float",
) -> EmbeddingList:
    """Return the pooled features of each image, in the form of OpenAI's embeddings.

    They are what the model's head reads: of the backbone with the model's adapters, not scaled to
    length 1.
    """
    served = await engine.resolve(project, model)
    if is_json(media_type_of(request)):
        raw = await read_body(request, json_limit_bytes(settings.max_image_bytes))
        body = validate_body(EmbeddingsBody, await parse_json_aside(raw))
        encoding_format = body.encoding_format or encoding_format
        field = "input" if body.inputs is None else "inputs"
        images = await decode_inputs(body.images, field, settings.max_image_bytes)
        answer = await predict_named(engine, served, images, project=project, request=request)
    else:
        images, _ = await read_images(request, settings.max_image_bytes)
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
