"""Input tensors to images and pixels, whether they came as JSON or as bytes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.base64_images import decode_images
from api.image_bodies import check_count
from api.oip.framing import split_elements
from api.schemas.oip import InferInput
from core.errors import FieldError, InvalidError

IMAGE = "image"
PIXEL_VALUES = "pixel_values"

_CHANNELS = 3
#: Bytes of an element; BF16 is read as the upper half of an FP32.
_ITEM_BYTES = {"FP32": 4, "FP16": 2, "BF16": 2}


def read_image_tensor(
    tensor: InferInput, raw: memoryview | None, pointer: str, *, max_image_bytes: int
) -> list[bytes]:
    """Return the encoded images of an `image` tensor.

    Args:
        tensor: BYTES of shape [n] or [n, 1].
        raw: its binary data, None where `data` holds base64.
        pointer: of the tensor in the request, for error messages.
        max_image_bytes: limit on each image.

    Raises:
        InvalidError: type, shape and data do not fit together, or a text is not base64.
        TooLargeError: too many images, or one over the limit.
    """
    if tensor.datatype != "BYTES":
        raise wrong_tensor(pointer, "datatype", f"of {IMAGE} must be BYTES, not {tensor.datatype}")
    shape = tensor.shape
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise wrong_tensor(pointer, "shape", f"of {IMAGE} must be [n] or [n, 1], not {shape}")
    check_count(shape[0], f"{pointer}/shape")
    if raw is not None:
        return split_elements(raw, shape[0], max_image_bytes)
    texts = _flatten(tensor.data)
    if len(texts) != shape[0]:
        raise wrong_tensor(pointer, "data", f"has {len(texts)} elements, the shape {shape[0]}")
    pointers = [f"{pointer}/data/{index}" for index in range(len(texts))]
    for text, place in zip(texts, pointers, strict=True):
        if not isinstance(text, str):
            message = "must be a string: an image in base64"
            raise InvalidError(f"{place} {message}", fields=(FieldError(place, message),))
    return decode_images(texts, pointers, max_image_bytes=max_image_bytes)


def read_pixel_tensor(
    tensor: InferInput, raw: memoryview | None, pointer: str, *, image_px: int | None
) -> NDArray[np.float32]:
    """Return the normalised pixels of a `pixel_values` tensor, float32 (n, 3, px, px).

    Args:
        tensor: FP32 of shape [n, 3, px, px]; in binary FP16 or BF16 too.
        raw: its binary data, None where `data` holds numbers, flat or nested.
        pointer: of the tensor in the request, for error messages.
        image_px: side that the model reads; None where it is not known beforehand.

    Raises:
        InvalidError: type, shape and data do not fit together, or a number is not finite.
        TooLargeError: too many images.
    """
    if tensor.datatype not in _ITEM_BYTES:
        allowed = ", ".join(_ITEM_BYTES)
        message = f"of {PIXEL_VALUES} must be one of {allowed}, not {tensor.datatype}"
        raise wrong_tensor(pointer, "datatype", message)
    shape = tensor.shape
    wanted = "px" if image_px is None else image_px
    fits = len(shape) == 4 and shape[1] == _CHANNELS and shape[2] == shape[3]  # noqa: PLR2004 - n, channels, rows, columns
    if not fits or image_px not in (None, shape[2]):
        message = f"of {PIXEL_VALUES} must be [n, 3, {wanted}, {wanted}], not {shape}"
        raise wrong_tensor(pointer, "shape", message)
    check_count(shape[0], f"{pointer}/shape")
    count = int(np.prod(shape, dtype=object))
    values = (
        _read_numbers(tensor, pointer) if raw is None else _read_raw(tensor, raw, count, pointer)
    )
    if values.size != count:
        message = f"has {values.size} numbers, the shape {count}"
        raise wrong_tensor(pointer, "data", message)
    if not np.isfinite(values).all():
        raise wrong_tensor(pointer, "data", "holds numbers that are not finite in FP32")
    return values.reshape(shape)


def wrong_tensor(pointer: str, member: str, message: str) -> InvalidError:
    """Return the error for a member of a tensor."""
    place = f"{pointer}/{member}"
    return InvalidError(f"{place} {message}", fields=(FieldError(place, message),))


def _read_raw(tensor: InferInput, raw: memoryview, count: int, pointer: str) -> NDArray[np.float32]:
    item_bytes = _ITEM_BYTES[tensor.datatype]
    if len(raw) != count * item_bytes:
        message = f"is {len(raw)}, and the shape needs {count * item_bytes} bytes"
        raise wrong_tensor(pointer, "parameters/binary_data_size", message)
    if tensor.datatype == "BF16":
        wide = np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    # A copy: the body is read-only, and its tensors begin anywhere.
    source = np.frombuffer(raw, dtype=f"<f{item_bytes}")
    return np.array(source, dtype=np.float32)


def _read_numbers(tensor: InferInput, pointer: str) -> NDArray[np.float32]:
    if tensor.datatype != "FP32":
        message = f"must be FP32 in JSON; send {tensor.datatype} as binary data"
        raise wrong_tensor(pointer, "datatype", message)
    try:
        values = np.asarray(tensor.data)
    except ValueError as error:
        raise wrong_tensor(pointer, "data", "is nested unevenly") from error
    if values.dtype.kind not in "fiu":
        raise wrong_tensor(pointer, "data", "must hold numbers and nothing else")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return values.astype(np.float32).ravel()


def _flatten(data: Any) -> list[Any]:  # noqa: ANN401 - whatever JSON has there
    flat: list[Any] = []
    for item in data:
        if isinstance(item, list):
            flat.extend(item)
        else:
            flat.append(item)
    return flat
