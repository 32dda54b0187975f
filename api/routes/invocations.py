"""MLflow's scoring protocol, for one model at a fixed place. With the `inference` role only."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from api.base64_images import json_limit_bytes
from api.deps import ProjectDep, ServicesDep, SettingsDep
from api.errors import wrong_type
from api.image_bodies import decode_texts, is_json, media_type_of
from api.json_body import parse_json_aside, read_body, validate_body
from api.mlflow_inputs import list_texts
from api.routes.classify import build_scores
from api.routes.health import get_readiness
from api.schemas.fields import MODEL_REFERENCE_PATTERN
from api.schemas.inline import inline_schema
from api.schemas.invocations import InvocationsAnswer, InvocationsBody
from api.schemas.problems import problems
from api.serving import EngineDep, answer_headers, predict_named
from core.errors import InvalidError

router = APIRouter(tags=["mlflow"])

_JSON = {"schema": inline_schema(InvocationsBody)}


@router.post(
    "/invocations",
    response_model_exclude_unset=True,
    responses=problems(400, 404, 409, 413, 415, 422, 429, 504),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": _JSON}}},
)
async def invoke(
    *,
    request: Request,
    response: Response,
    settings: SettingsDep,
    engine: EngineDep,
    project: ProjectDep,
    model: Annotated[
        str | None,
        Query(
            pattern=MODEL_REFERENCE_PATTERN,
            description="Id, name or name@alias; else `IDAT_INVOCATIONS_MODEL`.",
        ),
    ] = None,
) -> InvocationsAnswer:
    """Return the best classes of each image of an MLflow scoring request."""
    reference = model or settings.invocations_model
    if not reference:
        raise InvalidError(
            "no model is set for /invocations: add ?model=<id, name or name@alias>, or start the "
            "server with IDAT_INVOCATIONS_MODEL",
            code="model_required",
        )
    served = await engine.resolve(project, reference)
    if not is_json(media_type_of(request)):
        raise wrong_type("application/json", media_type_of(request))
    raw = await read_body(request, json_limit_bytes(settings.max_image_bytes))
    body = validate_body(InvocationsBody, await parse_json_aside(raw))
    texts, pointers = list_texts(body)
    images = await decode_texts(texts, pointers, settings.max_image_bytes)
    answer = await predict_named(engine, served, images, project=project, request=request)
    response.headers.update(answer_headers(answer))
    return InvocationsAnswer(predictions=build_scores(answer, body.params))


@router.get("/ping", responses=problems(), response_class=PlainTextResponse)
@router.get("/health", responses=problems(), response_class=PlainTextResponse)
def get_health(request: Request, services: ServicesDep) -> Response:
    """Tell whether requests can be answered; the same as `/readyz`, with an empty body."""
    readiness = get_readiness(request, services)
    if readiness.status_code != 200:  # noqa: PLR2004
        return readiness
    return PlainTextResponse("\n")


@router.get("/version", responses=problems(), response_class=PlainTextResponse)
async def get_version(request: Request) -> str:
    """Tell the version of this server."""
    return str(request.app.version)
