"""Images out of a request's body: raw, as files of a form, or in base64 inside JSON."""

from collections.abc import Sequence
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.base64_images import decode_images
from api.errors import wrong_type
from api.headers import find_header
from api.inference import EncodedImage
from api.json_body import read_body
from api.multipart import PartHeader, read_multipart
from api.schemas.inference import MAX_IMAGES
from core.errors import FieldError, InvalidError, TooLargeError

#: Most bytes of all images of a form, in units of the largest image.
MAX_TOTAL_IMAGES = 4


def media_type_of(request: Request) -> str:
    """Return the body's media type in lower case, without parameters; empty if none is given."""
    declared = find_header(request.scope, b"content-type") or ""
    return declared.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Tell whether a media type is JSON."""
    return media_type == "application/json" or media_type.endswith("+json")


async def read_images(request: Request, max_image_bytes: int) -> tuple[list[EncodedImage], bool]:
    """Read the images of a body that is not JSON.

    Returns:
        The images, and whether it was a form, which may hold several.

    Raises:
        UnsupportedTypeError: it is neither an image nor a form.
        InvalidError: there is no image in it, or a form's field is no file.
        MalformedError: a form cannot be parsed.
        TooLargeError: too many images, or an image or all together over their limit.
    """
    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        return await _read_files(request, max_image_bytes), True
    # No type means bytes (RFC 9110, section 8.3); Hugging Face's client sends none with an image.
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        body = await read_body(request, max_image_bytes, what="the image")
        if not body:
            raise InvalidError("the body is empty; send the image's bytes", code="image_missing")
        return [EncodedImage("body", body)], False
    raise wrong_type(
        "image/*, application/octet-stream, multipart/form-data and application/json", media_type
    )


async def decode_inputs(
    inputs: str | list[str], field: str, max_image_bytes: int
) -> list[EncodedImage]:
    """Return the images that a JSON body holds in base64, each named by its pointer.

    Args:
        inputs: one, or a list of them.
        field: name of the member of the body that holds them.
        max_image_bytes: limit on each image.

    Raises:
        InvalidError: the list is empty, or a text is not base64.
        TooLargeError: too many images, or one over the limit.
    """
    if isinstance(inputs, str):
        return await decode_texts([inputs], [f"/{field}"], max_image_bytes)
    check_count(len(inputs), f"/{field}")
    pointers = [f"/{field}/{index}" for index in range(len(inputs))]
    return await decode_texts(inputs, pointers, max_image_bytes)


async def decode_texts(
    texts: Sequence[str], pointers: Sequence[str], max_image_bytes: int
) -> list[EncodedImage]:
    """Return the images that texts hold in base64, each named by its pointer.

    Raises:
        InvalidError: there is none, or a text is not base64.
        TooLargeError: too many images, or one over the limit.
    """
    check_count(len(texts), "the body")
    decode = partial(decode_images, texts, pointers, max_image_bytes=max_image_bytes)
    images = await run_in_threadpool(decode)
    return [EncodedImage(pointer, data) for pointer, data in zip(pointers, images, strict=True)]


def check_count(count: int, place: str) -> None:
    """Refuse a request without images, or with too many.

    Args:
        count: how many there are.
        place: where they are, a pointer into the body or words.

    Raises:
        InvalidError: there is none.
        TooLargeError: there are more than `MAX_IMAGES`.
    """
    if count == 0:
        raise InvalidError(f"{place} holds no image; send at least one", code="image_missing")
    if count > MAX_IMAGES:
        raise TooLargeError(f"a request takes at most {MAX_IMAGES} images, not {count}")


async def _read_files(request: Request, max_image_bytes: int) -> list[EncodedImage]:
    sinks: list[_ImageSink] = []

    def open_part(header: PartHeader) -> _ImageSink:
        if len(sinks) == MAX_IMAGES:
            raise TooLargeError(f"a request takes at most {MAX_IMAGES} images")
        if header.file_name is None:
            message = (
                f"{header.name!r} has no file name; send images as files, and parameters in the "
                "query"
            )
            raise InvalidError(message, fields=(FieldError(f"/{len(sinks)}", message),))
        sinks.append(_ImageSink(header.file_name, max_image_bytes))
        return sinks[-1]

    # One part more than there may be images, so that it is `open_part` that counts them.
    await read_multipart(
        request,
        open_part,
        max_bytes=MAX_TOTAL_IMAGES * max_image_bytes,
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
