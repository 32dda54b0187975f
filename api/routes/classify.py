"""Classify images with a published model. Served with the `inference` role only."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.base64_images import json_limit_bytes
from api.deps import ModelPath, project_of, services_of
from api.errors import answer_error
from api.image_bodies import decode_inputs, is_json, media_type_of, read_images
from api.inference import Predictions
from api.json_body import parse_json_aside, read_body, validate_body
from api.schemas.fields import MODEL_REFERENCE_PATTERN
from api.schemas.inference import (
    MAX_IMAGES,
    ClassifyBody,
    ClassifyParameters,
    ClassScore,
    Function,
    Threshold,
    TopK,
)
from api.schemas.inline import inline_schema
from api.schemas.problems import problems
from api.scores import OutputFunction, Ranked, is_rejected, rank_classes
from api.serving import answer_headers, engine_of, predict_named

_TOP_K = 5
#: The query of a request that needs no look at its parameters.
_PLAIN_QUERY = re.compile(rb"(?:top_k=([1-9][0-9]{0,2}))?")
_PLAIN_PATH = re.compile(rf"/v1/models/({MODEL_REFERENCE_PATTERN[1:-1]})/classify")
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class DirectClassifyMiddleware:
    """Answers plain requests for images without the framework's routing and its handling of them.

    Those cost more than everything else that is done for an image beside the network. JSON, odd
    parameters and whatever else is passed on to the route, which says what is wrong with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application, inside of all that decides who may send what."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a plain request, or pass on."""
        path = query = None
        if scope["type"] == "http" and scope["method"] == "POST":
            path = _PLAIN_PATH.fullmatch(scope["path"])
            query = _PLAIN_QUERY.fullmatch(scope["query_string"])
        if path is None or query is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        if is_json(media_type_of(request)):
            await self._app(scope, receive, send)
            return
        try:
            response = await _answer_images(request, path[1], top_k=int(query[1] or _TOP_K))
        except Exception as error:  # noqa: BLE001 - a bug is raised again there
            response = await answer_error(request, error)
        await response(scope, receive, send)


router = APIRouter(prefix="/v1/models", tags=["inference"])

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
#: The bodies that hold images and no JSON.
IMAGE_CONTENT: dict[str, Any] = {
    "image/*": _IMAGE,
    "application/octet-stream": _IMAGE,
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                "file": {
                    "type": "array",
                    "maxItems": MAX_IMAGES,
                    "items": {"type": "string", "format": "binary"},
                }
            },
        }
    },
}
_JSON = {"schema": inline_schema(ClassifyBody)}


@router.post(
    "/{model}/classify",
    response_model=list[ClassScore] | list[list[ClassScore]],
    response_model_exclude_unset=True,
    responses=problems(400, 404, 409, 413, 415, 422, 429, 504),
    openapi_extra={
        "requestBody": {"required": True, "content": {**IMAGE_CONTENT, "application/json": _JSON}}
    },
)
async def classify(
    *,
    request: Request,
    response: Response,
    model: ModelPath,
    top_k: Annotated[TopK, Query()] = _TOP_K,
    function_to_apply: Annotated[Function, Query()] = "softmax",
    threshold: Annotated[Threshold, Query()] = None,
) -> list[ClassScore] | list[list[ClassScore]]:
    """Return the likeliest classes of an image, best first.

    A raw image, or one image in JSON, gets one list; a form or a list in JSON gets a list for each
    of its images, in order. `parameters` in JSON stand above those of the query.
    """
    # As dependencies these three would cost each request more than the queue does.
    settings, engine, project = (
        services_of(request).settings,
        engine_of(request),
        project_of(request),
    )
    served = await engine.resolve(project, model)
    parameters = ClassifyParameters(
        top_k=top_k, function_to_apply=function_to_apply, threshold=threshold
    )
    if is_json(media_type_of(request)):
        raw = await read_body(request, json_limit_bytes(settings.max_image_bytes))
        body = validate_body(ClassifyBody, await parse_json_aside(raw))
        given = body.parameters.model_dump(exclude_unset=True)
        parameters = parameters.model_copy(update=given)
        images = await decode_inputs(body.inputs, "inputs", settings.max_image_bytes)
        has_many = not isinstance(body.inputs, str)
        answer = await predict_named(engine, served, images, project=project, request=request)
    else:
        images, has_many = await read_images(request, settings.max_image_bytes)
        answer = await engine.predict(served, images, project=project, request=request)
    response.headers.update(answer_headers(answer))
    scores = build_scores(answer, parameters)
    return scores if has_many else scores[0]


async def _answer_images(request: Request, model: str, *, top_k: int) -> Response:
    """Do what `classify` does, for a body that holds images and nothing else."""
    services, engine, project = services_of(request), engine_of(request), project_of(request)
    served = await engine.resolve(project, model)
    images, has_many = await read_images(request, services.settings.max_image_bytes)
    answer = await engine.predict(served, images, project=project, request=request)
    lists = [
        [{"label": one.label, "score": one.score} for one in ranked]
        for ranked in rank_classes(answer.logits, answer.classes, top_k=top_k)
    ]
    content = _to_json(lists if has_many else lists[0])
    return Response(content, headers=answer_headers(answer), media_type="application/json")


def build_scores(
    predictions: Predictions, parameters: ClassifyParameters
) -> list[list[ClassScore]]:
    """Return the scores of each image as the parameters want them."""
    ranked = rank_classes(
        predictions.logits,
        predictions.classes,
        top_k=parameters.top_k,
        function=OutputFunction(parameters.function_to_apply),
    )
    return [_build_list(classes, parameters.threshold) for classes in ranked]


def _build_list(classes: Sequence[Ranked], threshold: float | None) -> list[ClassScore]:
    if is_rejected(classes, threshold):
        # A label that no class can have: who does not know `rejected` must not take it for one.
        return [ClassScore(label="", score=classes[0].score, rejected=True)]
    return [ClassScore(label=one.label, score=one.score) for one in classes]
