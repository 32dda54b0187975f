"""What the routes of inference share: the engine, the model of the path, the answer's headers."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import Depends, Request

from api.inference import EncodedImage, InferenceEngine, Predictions, ServedModel
from core.errors import FieldError, InvalidError


async def get_engine(request: Request) -> InferenceEngine:
    """Return this process's engine."""
    return engine_of(request)


def engine_of(request: Request) -> InferenceEngine:
    """Return what `EngineDep` gives, to a route that cannot afford a dependency."""
    engine = request.app.state.services.inference
    assert isinstance(engine, InferenceEngine), "the route exists with the inference role only"
    return engine


EngineDep = Annotated[InferenceEngine, Depends(get_engine)]


def answer_headers(predictions: Predictions) -> Mapping[str, str]:
    """Return the headers that say which model answered and where the time went."""
    return {
        "X-Model-Id": predictions.model_id,
        "X-Model-Precision": predictions.precision,
        "Server-Timing": (
            f"decode;dur={predictions.decode_ms:.1f}, queue;dur={predictions.queue_ms:.1f}, "
            f"forward;dur={predictions.forward_ms:.1f}"
        ),
    }


async def predict_named(
    engine: InferenceEngine,
    model: ServedModel,
    images: Sequence[EncodedImage],
    *,
    project: str,
    request: Request,
) -> Predictions:
    """Return what `InferenceEngine.predict` does, for images that are named by their pointers.

    Raises:
        InvalidError: an image cannot be decoded; its pointer is that of the image in the body.
    """
    try:
        return await engine.predict(model, images, project=project, request=request)
    except InvalidError as error:
        error.fields = tuple(
            FieldError(_find_name(field.pointer, images), field.message, field.code)
            for field in error.fields
        )
        raise


def _find_name(pointer: str, images: Sequence[EncodedImage]) -> str:
    """Return the name of the image that the engine points at as `/<index>`."""
    index = pointer.removeprefix("/")
    return images[int(index)].name if index.isdigit() and int(index) < len(images) else pointer
