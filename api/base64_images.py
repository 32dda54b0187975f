"""Images in base64 inside a JSON body."""

import base64
import binascii
import re
from collections.abc import Sequence

from core.errors import FieldError, InvalidError, TooLargeError

_LEAST_JSON_BYTES = 16 << 20
_WHITESPACE = str.maketrans("", "", " \t\r\n")
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class BadBase64Error(InvalidError):
    """A text that should be an image in base64 is not."""

    code = "bad_base64"


def json_limit_bytes(max_image_bytes: int) -> int:
    """Return how large a JSON body may be: room for one image of the largest size in base64.

    Many smaller images fit in as well, or some images as numbers; what does not fit can be sent in
    binary. Reading JSON holds Python's one lock, and with it every other request, so that it must
    not be as large as forms may be.
    """
    return max(_LEAST_JSON_BYTES, max_image_bytes // 3 * 4 + (64 << 10))


def decode_images(
    texts: Sequence[str], pointers: Sequence[str], *, max_image_bytes: int
) -> list[bytes]:
    """Return the bytes of images in base64; line breaks inside are passed over.

    Args:
        texts: standard base64 with padding.
        pointers: of each text in the request's body, for error messages.
        max_image_bytes: limit on each image.

    Raises:
        BadBase64Error: a text is no base64, is empty, or is a URL, which nobody fetches here.
        TooLargeError: an image is over the limit.
    """
    return [
        _decode(text, pointer, max_image_bytes)
        for text, pointer in zip(texts, pointers, strict=True)
    ]


def _decode(text: str, pointer: str, max_image_bytes: int) -> bytes:
    if _URL.match(text):
        raise _bad(
            pointer,
            "is a URL; nothing is fetched here, and of a data URL only the part behind the comma "
            "is wanted: send the image's bytes in base64",
        )
    try:
        data = base64.b64decode(text.translate(_WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(pointer, "is not base64 (RFC 4648, section 4, with padding)") from error
    if not data:
        raise _bad(pointer, "is empty; send the image's bytes in base64")
    if len(data) > max_image_bytes:
        raise TooLargeError(f"{pointer}: the image is over {max_image_bytes} bytes")
    return data


def _bad(pointer: str, message: str) -> BadBase64Error:
    field = FieldError(pointer, message, BadBase64Error.code)
    return BadBase64Error(f"{pointer} {message}", fields=(field,))
