"""The one way from encoded bytes to pixels, shared by training and serving.

What happens to an image, always and in this order:

1. The format is told by content: JPEG, PNG, WebP or BMP, whatever the file's name says. Pillow
   decides what is read, and decodes all but sound JPEG files in grey or colour: those are decoded
   by libjpeg-turbo straight into an array, to the same pixels in half the time.
2. The size is checked before any pixel is decoded; then everything is decoded, so that a cut file
   shows. Of an animation the first frame counts.
3. The EXIF orientation is applied; an unreadable EXIF block means upright. Colour profiles are
   ignored.
4. Pixels become 8-bit RGB: grey is repeated, palettes looked up, CMYK converted without a profile,
   16-bit grey divided by 257, transparency laid over white.
5. The image is resized to a square by bicubic interpolation, without keeping its proportions and
   without a crop (`core.ml.data.resize`).
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import (
    BmpImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from core.errors import InvalidError
from core.ml.data.resize import VERSIONS, resize_by_pillow, resize_by_torch

#: Of what is made now. It enters the identity of every dataset, and a model is served with the one
#: that its dataset was made with; a new one is due when any pixel of any image may change.
PREPROCESS_VERSION = VERSIONS[-1]

#: Pillow's names of the formats that are opened. The list is passed on every call: Pillow would
#: otherwise try decoders as old as EPS, which runs a program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
#: Registered here once: looking for a decoder at the first call would import all of Pillow's.
_PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin, BmpImagePlugin)

MAX_PIXELS = 50_000_000
MIN_SIDE_PX = 2

_ORIENTATION_TAG = 0x0112
#: EXIF's orientations but the upright one, as changes of (height, width, 3).
_TRANSPOSES: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}
_DEEP_GREY_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa"})
_WHITE = (255, 255, 255)
_UINT16_MAX = 65_535
_UINT16_TO_UINT8 = 257

#: What Pillow's decoders raise for damaged bytes, besides OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


class ImageError(InvalidError):
    """The bytes are no image that is read here.

    Codes: `unsupported_format` · `image_truncated` · `image_undecodable` · `pixel_bomb` ·
    `image_too_small`.

    Attributes:
        cause: what is wrong, without a full stop.
        hint: what to do about it, likewise.
    """

    code = "image_undecodable"

    def __init__(self, cause: str, hint: str, *, code: str) -> None:
        super().__init__(f"{cause}: {hint}.", code=code)
        self.cause = cause
        self.hint = hint


class Conversion(StrEnum):
    """What had to be done to an image's pixels, for the dataset's report."""

    ROTATED = "exif_rotation"  #: the EXIF orientation was not upright
    ALPHA = "alpha_on_white"  #: transparency was laid over white
    CMYK = "cmyk_to_rgb"  #: printing colours were converted without a profile
    DEEP = "16_bit_to_8_bit"  #: 16-bit grey was reduced
    FIRST_FRAME = "first_frame"  #: an animation was reduced to its first frame


@dataclass(frozen=True)
class DecodedImage:
    """An upright RGB image and what its file was.

    Attributes:
        pixels: uint8 (height, width, 3), red first, orientation applied.
        format: Pillow's name of the format.
        width: pixels, after the orientation.
        height: pixels, after the orientation.
        conversions: what was done to the pixels.
    """

    pixels: npt.NDArray[np.uint8]
    format: str
    width: int
    height: int
    conversions: frozenset[Conversion]


def preprocess(
    data: bytes,
    image_px: int,
    *,
    max_pixels: int = MAX_PIXELS,
    version: int = PREPROCESS_VERSION,
) -> npt.NDArray[np.uint8]:
    """Return an encoded image as uint8 of shape (image_px, image_px, 3), red first.

    Args:
        data: the file's bytes.
        image_px: side of the square.
        max_pixels: as in `decode_image`.
        version: of the preprocessing, as in `resize_image`.

    Raises:
        ImageError: see `decode_image`.
    """
    return resize_image(decode_image(data, max_pixels=max_pixels), image_px, version=version)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Return an encoded image, decoded in full and upright: uint8 (height, width, 3), red first.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height; Pillow's own guard stops at 179 million regardless.

    Raises:
        ImageError: with the code of what is wrong.
    """
    return read_image(data, max_pixels=max_pixels).pixels


def resize_image(
    pixels: npt.NDArray[np.uint8], image_px: int, *, version: int = PREPROCESS_VERSION
) -> npt.NDArray[np.uint8]:
    """Return RGB pixels as uint8 of shape (image_px, image_px, 3), proportions not kept.

    Args:
        pixels: uint8 (height, width, 3); returned as they are if they have the size.
        image_px: side of the square.
        version: of the preprocessing; one of `core.ml.data.resize.VERSIONS`.
    """
    if version not in VERSIONS:
        raise ValueError(f"there is no preprocessing {version}")
    if pixels.shape[:2] == (image_px, image_px):
        return pixels
    resize = resize_by_pillow if version == 1 else resize_by_torch
    return resize(pixels, image_px)


def read_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode like `decode_image` and tell what was found on the way.

    Raises:
        ImageError: see `decode_image`.
    """
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise _bomb(f"{image.width} x {image.height} pixels, at most {max_pixels} in all are read")
    if min(image.size) < MIN_SIDE_PX:
        raise ImageError(
            f"The image has {image.width} x {image.height} pixels",
            f"each side needs at least {MIN_SIDE_PX}",
            code="image_too_small",
        )
    conversions: set[Conversion] = set()
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a thumbnail follows
        conversions.add(Conversion.FIRST_FRAME)
    pixels = _decode_jpeg(data) if _is_plain_jpeg(image) else None
    if pixels is None:
        pixels = _decode_by_pillow(image, conversions)
    # Not before: Pillow may look for it behind the pixels, and swallow what is wrong with them.
    transpose = _TRANSPOSES.get(_read_orientation(image))
    if transpose is not None:
        conversions.add(Conversion.ROTATED)
        pixels = np.ascontiguousarray(transpose(pixels))
    height, width, _ = pixels.shape
    return DecodedImage(
        pixels=pixels,
        format="JPEG" if image.format == "MPO" else str(image.format),
        width=width,
        height=height,
        conversions=frozenset(conversions),
    )


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _decode_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of a JPEG file without any fault; None leaves the verdict to Pillow."""
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None
    return pixels


def _decode_by_pillow(image: Image.Image, conversions: set[Conversion]) -> npt.NDArray[np.uint8]:
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise _bomb(str(error)) from error
    except _DECODE_ERRORS as error:
        raise _damaged(error) from error
    # A copy, as what Pillow lends cannot be written to, which torch asks for.
    return np.array(_to_rgb(image, conversions), dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(str(error)) from error
    except UnidentifiedImageError as error:
        if _claims_known_format(data):
            raise _damaged(error) from error
        raise ImageError(
            "The content is not JPEG, PNG, WebP or BMP, whatever the name says",
            "convert the file",
            code="unsupported_format",
        ) from error
    except _DECODE_ERRORS as error:
        raise _damaged(error) from error


def _bomb(what: str) -> ImageError:
    return ImageError(f"The image is too large ({what})", "save it smaller", code="pixel_bomb")


def _claims_known_format(data: bytes) -> bool:
    is_webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    return is_webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def _damaged(error: Exception) -> ImageError:
    reason = str(error)
    if "truncated" in reason.lower():
        return ImageError(
            f"The image is cut ({reason})", "send the whole file", code="image_truncated"
        )
    if isinstance(error, UnidentifiedImageError):
        reason = "its header cannot be read"
    return ImageError(f"The image is damaged ({reason})", "save it again", code="image_undecodable")


def _read_orientation(image: Image.Image) -> int:
    # A broken EXIF block says nothing about the pixels, and its parser can raise nearly anything.
    with contextlib.suppress(Exception):
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    return 1


def _to_rgb(image: Image.Image, conversions: set[Conversion]) -> Image.Image:
    if image.mode in _DEEP_GREY_MODES:
        conversions.add(Conversion.DEEP)
        grey = (np.asarray(image).clip(0, _UINT16_MAX) // _UINT16_TO_UINT8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        conversions.add(Conversion.ALPHA)
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", rgba.size, _WHITE)
        canvas.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
        return canvas
    if image.mode == "CMYK":
        conversions.add(Conversion.CMYK)
    # A copy of a large photograph takes 200 MB: none is made that is not needed.
    return image if image.mode == "RGB" else image.convert("RGB")
