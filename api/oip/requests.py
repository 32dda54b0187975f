"""A request of the protocol, read whole: what to run, and what to answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api.json_body import parse_json, validate_body
from api.oip.framing import Frame, split_tensors
from api.oip.tensors import (
    IMAGE,
    PIXEL_VALUES,
    read_image_tensor,
    read_pixel_tensor,
    wrong_tensor,
)
from api.schemas.oip import InferBody, InferInput, InferRequestedOutput
from core.errors import FieldError, InvalidError, TooLargeError

PROBABILITIES = "probabilities"
LOGITS = "logits"
FEATURES = "features"
OUTPUTS = (PROBABILITIES, LOGITS, FEATURES)

_US_PER_S = 1_000_000


@dataclass(frozen=True)
class RequestedOutput:
    """An output to answer.

    Attributes:
        name: one of `OUTPUTS`.
        is_binary: whether its data follow the JSON.
        classes: how many of the best classes to name instead of the numbers; 0 for the numbers.
    """

    name: str
    is_binary: bool
    classes: int = 0


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request in this service's words.

    Attributes:
        id: to be given back, None without one.
        images: encoded images, or one float32 (3, px, px) array each.
        outputs: in the order of the answer.
        timeout_s: how long the answer is worth waiting for.
    """

    id: str | None
    images: Sequence[bytes | NDArray[np.float32]]
    outputs: tuple[RequestedOutput, ...]
    timeout_s: float | None


def read_request(frame: Frame, *, image_px: int | None, max_image_bytes: int) -> InferRequest:
    """Return what a body asks for.

    Args:
        frame: the body in its parts.
        image_px: side that the model reads; None where it is not known beforehand.
        max_image_bytes: limit on each encoded image.

    Raises:
        MalformedError: the JSON cannot be read.
        RequestValidationError: the JSON is no inference request.
        InvalidError: inputs or outputs are not those of the model, or data do not fit.
        TooLargeError: too many images, or one over the limit.
    """
    if frame.header is None:
        return _read_raw_request(frame.binary, max_image_bytes)
    body = validate_body(InferBody, parse_json(frame.header))
    raws = _cut_binary(body.inputs, frame.binary)
    if len(body.inputs) != 1:
        names = [tensor.name for tensor in body.inputs]
        message = f"must be one tensor, {IMAGE} or {PIXEL_VALUES}, not {names}"
        raise InvalidError(f"/inputs {message}", fields=(FieldError("/inputs", message),))
    tensor, raw = body.inputs[0], raws[0]
    pointer = "/inputs/0"
    images: Sequence[bytes | NDArray[np.float32]]
    if tensor.name == IMAGE:
        images = read_image_tensor(tensor, raw, pointer, max_image_bytes=max_image_bytes)
    elif tensor.name == PIXEL_VALUES:
        images = list(read_pixel_tensor(tensor, raw, pointer, image_px=image_px))
    else:
        message = f"must be {IMAGE} or {PIXEL_VALUES}, not {tensor.name!r}"
        raise wrong_tensor(pointer, "name", message)
    timeout_us = body.parameters.timeout
    return InferRequest(
        id=body.id,
        images=images,
        outputs=_read_outputs(body.outputs or [], binary=body.parameters.binary_data_output),
        timeout_s=timeout_us / _US_PER_S if timeout_us else None,
    )


def _read_raw_request(binary: memoryview, max_image_bytes: int) -> InferRequest:
    if not binary:
        raise InvalidError("the body is empty; send the image's bytes", code="image_missing")
    if len(binary) > max_image_bytes:
        raise TooLargeError(f"the image is over {max_image_bytes} bytes")
    outputs = tuple(RequestedOutput(name, is_binary=True) for name in OUTPUTS)
    return InferRequest(id=None, images=[bytes(binary)], outputs=outputs, timeout_s=None)


def _cut_binary(inputs: Sequence[InferInput], binary: memoryview) -> list[memoryview | None]:
    """Return each input's binary data, None where its data are in the JSON."""
    for index, tensor in enumerate(inputs):
        pointer = f"/inputs/{index}"
        if tensor.parameters.shared_memory_region is not None:
            raise wrong_tensor(pointer, "parameters", "name shared memory, and there is none here")
        if (tensor.data is None) == (tensor.parameters.binary_data_size is None):
            raise wrong_tensor(
                pointer, "data", "is needed, or binary_data_size with binary data, and not both"
            )
    sizes = [tensor.parameters.binary_data_size for tensor in inputs]
    cut = iter(split_tensors(binary, [size for size in sizes if size is not None]))
    return [None if size is None else next(cut) for size in sizes]


def _read_outputs(
    requested: Sequence[InferRequestedOutput], *, binary: bool
) -> tuple[RequestedOutput, ...]:
    if not requested:
        return tuple(RequestedOutput(name, is_binary=binary) for name in OUTPUTS)
    seen: dict[str, RequestedOutput] = {}
    for index, output in enumerate(requested):
        pointer = f"/outputs/{index}"
        if output.name not in OUTPUTS or output.name in seen:
            message = f"must be one of {', '.join(OUTPUTS)}, each once, not {output.name!r}"
            raise wrong_tensor(pointer, "name", message)
        parameters = output.parameters
        if parameters.shared_memory_region is not None:
            raise wrong_tensor(pointer, "parameters", "name shared memory, and there is none here")
        classes = parameters.classification or 0
        if classes and output.name == FEATURES:
            raise wrong_tensor(pointer, "parameters/classification", "features are of no class")
        is_binary = binary if parameters.binary_data is None else parameters.binary_data
        seen[output.name] = RequestedOutput(output.name, is_binary, classes)
    return tuple(seen.values())
