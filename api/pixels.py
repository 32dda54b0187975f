"""Images as a request brings them, and as a network reads them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FieldError, InvalidError
from core.ml.data.preprocess import ImageError, preprocess
from core.ml.inference.engine import Resident

#: uint8 (px, px, 3), or float32 (3, px, px) that is normalised already.
Pixels = NDArray[Any]

_COLOURS = 3


@dataclass(frozen=True)
class EncodedImage:
    """One image of a request.

    Attributes:
        name: what the caller calls it, for error messages.
        data: JPEG, PNG, WebP or BMP.
    """

    name: str
    data: bytes


def decode_image(image: EncodedImage, index: int, resident: Resident, *, max_pixels: int) -> Pixels:
    """Return an image as a model was trained on.

    Args:
        image: the request's.
        index: its place there, for the error.
        resident: the model.
        max_pixels: largest width x height.

    Raises:
        InvalidError: it is no image that is read here.
    """
    try:
        return preprocess(
            image.data,
            resident.image_px,
            max_pixels=max_pixels,
            version=resident.preprocess_version,
        )
    except ImageError as error:
        message = f"{image.name}: {error.message}"
        field = FieldError(f"/{index}", message, error.code)
        raise InvalidError(message, code=error.code, fields=(field,)) from error


def check_pixels(pixels: Pixels, index: int, px: int) -> None:
    """Refuse an array that is not an image of `px` pixels a side.

    Raises:
        InvalidError: `shape_mismatch`, naming the image by its index.
    """
    shape = (px, px, _COLOURS) if pixels.dtype == np.uint8 else (_COLOURS, px, px)
    if pixels.dtype in (np.uint8, np.float32) and pixels.shape == shape:
        return
    message = (
        f"image {index} is {pixels.dtype} {pixels.shape}, not uint8 ({px}, {px}, 3) or normalised "
        f"float32 (3, {px}, {px})"
    )
    field = FieldError(f"/{index}", message, "shape_mismatch")
    raise InvalidError(message, code="shape_mismatch", fields=(field,))
