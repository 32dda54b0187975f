"""Classify images with a published model. Served with the `inference` role only."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from api.deps import ReferencePath, SettingsDep
from api.errors import wrong_type
from api.inference import EncodedImage, InferenceEngine, Predictions
from api.multipart import PartHeader, check_declared_length, read_multipart
from api.schemas.models import ClassScore
from api.schemas.problems import problems
from core.errors import FieldError, InvalidError, TooLargeError

router = APIRouter(prefix="/v1/models", tags=["inference"])

#: Most images of one multipart request, and most of their bytes in units of the largest image.
MAX_IMAGES = 64
_MAX_TOTAL_IMAGES = 4

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
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
        },
    }
}


def get_engine(request: Request) -> InferenceEngine:
    """Return this process's engine."""
    engine = request.app.state.services.inference
    assert isinstance(engine, InferenceEngine), "the route exists with the inference role only"
    return engine


@router.post(
    "/{model}/classify",
    response_model=list[ClassScore] | list[list[ClassScore]],
    responses=problems(400, 404, 409, 413, 415, 422),
    openapi_extra=_BODY,
)
async def classify(
    *,
    request: Request,
    response: Response,
    settings: SettingsDep,
    engine: Annotated[InferenceEngine, Depends(get_engine)],
    model: ReferencePath,
    top_k: Annotated[int, Query(ge=1, le=1000, description="Classes per image.")] = 5,
) -> list[ClassScore] | list[list[ClassScore]]:
    """Return the likeliest classes of an image, best first.

    A raw image body gets one list; a multipart body gets a list for each of its files, in order.
    """
    served = await engine.resolve("default", model)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_multipart = media_type == "multipart/form-data"
    if is_multipart:
        images = await _read_files(request, settings.max_image_bytes)
    elif media_type.startswith("image/") or media_type == "application/octet-stream":
        images = [EncodedImage("body", await _read_raw(request, settings.max_image_bytes))]
    else:
        raise wrong_type("image/*, application/octet-stream and multipart/form-data", media_type)
    answer = await engine.predict(served, images, project="default", request=request)
    response.headers["X-Model-Id"] = answer.model_id
    response.headers["Server-Timing"] = (
        f"decode;dur={answer.decode_ms:.1f}, forward;dur={answer.forward_ms:.1f}"
    )
    scores = _rank(answer, top_k)
    return scores if is_multipart else scores[0]


def _rank(answer: Predictions, top_k: int) -> list[list[ClassScore]]:
    shifted = np.exp(answer.logits - answer.logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [ClassScore(label=answer.classes[c], score=float(scores[c])) for c in order]
        for scores, order in zip(probabilities, best, strict=True)
    ]


async def _read_raw(request: Request, max_bytes: int) -> bytes:
    check_declared_length(request, max_bytes, max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLargeError(f"the image is over {max_bytes} bytes")
    if not body:
        raise InvalidError("the body is empty; send the image's bytes", code="image_missing")
    return bytes(body)


async def _read_files(request: Request, max_image_bytes: int) -> list[EncodedImage]:
    sinks: list[_ImageSink] = []

    def open_part(header: PartHeader) -> _ImageSink:
        if len(sinks) == MAX_IMAGES:
            raise TooLargeError(f"a request takes at most {MAX_IMAGES} images")
        if header.file_name is None:
            message = (
                f"{header.name!r} has no file name; send images as files, and top_k in the query"
            )
            raise InvalidError(message, fields=(FieldError(f"/{len(sinks)}", message),))
        sinks.append(_ImageSink(header.file_name, max_image_bytes))
        return sinks[-1]

    # One part more than there may be images, so that it is `open_part` that counts them.
    await read_multipart(
        request,
        open_part,
        max_bytes=_MAX_TOTAL_IMAGES * max_image_bytes,
        max_parts=MAX_IMAGES + 1,
    )
    if not sinks:
        raise InvalidError("the form holds no file; send at least one image", code="image_missing")
    return [EncodedImage(sink.file_name, bytes(sink.data)) for sink in sinks]


class _ImageSink:
    """Keeps one file of the form in memory, up to the limit of an image."""

    def __init__(self, file_name: str, max_bytes: int) -> None:
        self.file_name = file_name
        self.data = bytearray()
        self._max_bytes = max_bytes

    def write(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > self._max_bytes:
            raise TooLargeError(f"{self.file_name}: the image is over {self._max_bytes} bytes")

    def close(self) -> None:
        """Nothing is left to do."""
