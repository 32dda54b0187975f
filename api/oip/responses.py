"""What a model said, as the protocol's answer: JSON, with binary tensors behind it on request."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.inference import Predictions
from api.oip.framing import join_elements
from api.oip.requests import FEATURES, LOGITS, InferRequest, RequestedOutput
from api.scores import OutputFunction, apply_function, rank_classes


def build_answer(
    request: InferRequest, predictions: Predictions, model_name: str
) -> tuple[bytes, int | None]:
    """Return the body of an answer.

    Args:
        request: what was asked for.
        predictions: of its images.
        model_name: as the caller wrote it.

    Returns:
        The body, and the length of its JSON where binary tensors follow it, else None.
    """
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for requested in request.outputs:
        output, data = _build_output(requested, predictions)
        outputs.append(output)
        if data is not None:
            tensors.append(data)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": predictions.model_id}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = outputs
    header = json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()
    if not any(requested.is_binary for requested in request.outputs):
        return header, None
    return b"".join([header, *tensors]), len(header)


def _build_output(
    requested: RequestedOutput, predictions: Predictions
) -> tuple[dict[str, Any], bytes | None]:
    if requested.classes:
        elements = _name_classes(requested, predictions)
        shape = [len(elements), len(elements[0])]
        flat = [element for row in elements for element in row]
        return _place(requested, shape, "BYTES", flat, join_elements(flat))
    values = _select(requested.name, predictions)
    # Contiguous and little-endian, whatever the machine.
    data = np.ascontiguousarray(values, dtype="<f4").tobytes()
    numbers = [] if requested.is_binary else values.ravel().tolist()
    return _place(requested, list(values.shape), "FP32", numbers, data)


def _place(
    requested: RequestedOutput, shape: list[int], datatype: str, items: list[Any], data: bytes
) -> tuple[dict[str, Any], bytes | None]:
    output: dict[str, Any] = {"name": requested.name, "datatype": datatype, "shape": shape}
    if requested.is_binary:
        output["parameters"] = {"binary_data_size": len(data)}
        return output, data
    output["data"] = items
    return output, None


def _select(name: str, predictions: Predictions) -> NDArray[np.float32]:
    if name == FEATURES:
        return predictions.features
    if name == LOGITS:
        return predictions.logits
    return apply_function(predictions.logits, OutputFunction.SOFTMAX)


def _name_classes(requested: RequestedOutput, predictions: Predictions) -> Sequence[Sequence[str]]:
    """Return `value:index:label` of each image's best classes.

    Nine digits tell any two float32 apart; Triton's own six would round small values to 0.
    """
    function = OutputFunction.NONE if requested.name == LOGITS else OutputFunction.SOFTMAX
    ranked = rank_classes(
        predictions.logits, predictions.classes, top_k=requested.classes, function=function
    )
    return [[f"{one.score:.9g}:{one.index}:{one.label}" for one in row] for row in ranked]
