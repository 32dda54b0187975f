"""A JSON header and raw tensors in one body: Triton's binary tensor data extension.

    <JSON, of Inference-Header-Content-Length bytes><data of the 1st binary tensor><of the 2nd>…

A length of 0 announces a raw binary request: the body is the data of the only input, and all
outputs are answered in binary.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from api.errors import MalformedError
from core.errors import InvalidError, TooLargeError

HEADER_LENGTH = "Inference-Header-Content-Length"
#: A header that announces tensors is small; it is parsed before anything else is looked at.
MAX_HEADER_BYTES = 1 << 20
_MOST_DIGITS = 12
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Frame:
    """A body in its two parts.

    Attributes:
        header: the JSON; None in a raw binary request.
        binary: what follows it.
    """

    header: bytes | None
    binary: memoryview


def split_body(body: bytes, header_length: str | None) -> Frame:
    """Return the parts of a body.

    Args:
        body: the whole of it.
        header_length: value of `Inference-Header-Content-Length`, None without that header.

    Raises:
        MalformedError: the length is no number, or more than the body has.
        TooLargeError: the JSON is over its limit.
    """
    if header_length is None:
        return Frame(body, memoryview(b""))
    if not _is_number(header_length):
        raise MalformedError(f"{HEADER_LENGTH} must be a number of bytes, not {header_length!r}")
    length = int(header_length)
    if length > len(body):
        raise MalformedError(
            f"{HEADER_LENGTH} is {length}, and the whole body has {len(body)} bytes"
        )
    if MAX_HEADER_BYTES < length < len(body):
        raise TooLargeError(f"the JSON before binary tensors is over {MAX_HEADER_BYTES} bytes")
    return Frame(body[:length] if length else None, memoryview(body)[length:])


def split_tensors(binary: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Cut the part behind the JSON into tensors of these sizes.

    Raises:
        InvalidError: the sizes are not what is there.
    """
    if sum(sizes) != len(binary):
        raise InvalidError(
            f"the inputs' binary_data_size add up to {sum(sizes)} bytes, and {len(binary)} bytes "
            "follow the JSON"
        )
    tensors = []
    start = 0
    for size in sizes:
        tensors.append(binary[start : start + size])
        start += size
    return tensors


def split_elements(tensor: memoryview, count: int, max_bytes: int) -> list[bytes]:
    """Return the elements of a BYTES tensor: four bytes of length before each, little-endian.

    Args:
        tensor: its data.
        count: elements that its shape promises.
        max_bytes: limit on each element.

    Raises:
        InvalidError: the lengths and the count do not add up to the data.
        TooLargeError: an element is over the limit.
    """
    elements: list[bytes] = []
    start = 0
    while start < len(tensor) and len(elements) < count:
        if start + _LENGTH.size > len(tensor):
            break
        (length,) = _LENGTH.unpack_from(tensor, start)
        start += _LENGTH.size
        if length > max_bytes:
            raise TooLargeError(f"element {len(elements)} is over {max_bytes} bytes")
        if start + length > len(tensor):
            start = -1
            break
        elements.append(bytes(tensor[start : start + length]))
        start += length
    if start != len(tensor) or len(elements) != count:
        raise InvalidError(
            f"the binary data is not {count} BYTES elements, each behind its length in four "
            "little-endian bytes"
        )
    return elements


def join_elements(elements: Sequence[str]) -> bytes:
    """Return the data of a BYTES tensor."""
    encoded = [element.encode() for element in elements]
    return b"".join(_LENGTH.pack(len(element)) + element for element in encoded)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
