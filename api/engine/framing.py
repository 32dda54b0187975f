"""Frames on the socket between fronts and engine: a fixed head, a little JSON, raw bytes.

    magic u16 | kind u8 | - | call u32 | meta bytes u32 | data bytes u32 | meta | data

All numbers are in network byte order; `meta` is a JSON object, `data` pixels, numbers or text.
Nothing is ever unpickled, and no length is believed before it was compared with its limit. Knows no
sockets, so that it can be tested byte by byte.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

#: Of the protocol; both sides must have the same.
VERSION = 1
MAX_META_BYTES = 1 << 20
#: An image of 2048 x 2048 as float32 fits, and the metrics of thousands of models.
MAX_DATA_BYTES = 64 << 20

_MAGIC = 0x1DA7
_HEAD = struct.Struct("!HBxIII")


class Kind(IntEnum):
    """What a frame is; `>` is sent by fronts, `<` by the engine."""

    HELLO = 1  #: <> first of each side, with its version
    BOOK = 2  #: > may so many images of a project come for a model?
    BOOKED = 3  #: < they may, and look like this
    IMAGE = 4  #: > the pixels of one
    OUTPUT = 5  #: < its logits and features
    FAILED = 6  #: < the call, or one image of it, has come to an error
    CANCEL = 7  #: > nobody waits for this call any more
    ASK = 8  #: > anything that is not about images
    ANSWER = 9  #: < the answer to it
    LEAVING = 10  #: < the engine finishes what it has, and takes nothing new


class ProtocolError(Exception):
    """The other side does not speak this protocol; the connection has to end."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One message.

    Attributes:
        kind: what it is.
        call: the request that it belongs to, numbered by the front; 0 for none.
        meta: JSON object.
        data: bytes behind it; writable, so that an array can be made of them without a copy.
    """

    kind: Kind
    call: int
    meta: Mapping[str, Any]
    data: bytearray


def encode(
    kind: Kind, call: int = 0, meta: Mapping[str, Any] | None = None, data_bytes: int = 0
) -> bytes:
    """Return the head and the meta of a frame; `data_bytes` bytes have to follow.

    Raises:
        ProtocolError: it is larger than the other side would take.
    """
    text = json.dumps(meta, separators=(",", ":")).encode() if meta else b""
    if len(text) > MAX_META_BYTES or data_bytes > MAX_DATA_BYTES:
        raise ProtocolError(f"a frame of {len(text)} + {data_bytes} bytes is too large")
    return _HEAD.pack(_MAGIC, kind, call, len(text), data_bytes) + text


class FrameReader:
    """Cuts a stream of bytes into frames; keeps at most one that is not complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def is_empty(self) -> bool:
        """Whether the stream may end here."""
        return not self._buffer

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Return the frames that are complete with these bytes.

        Raises:
            ProtocolError: what comes is no frame, or one over the limits. The stream is lost then.
        """
        buffer = self._buffer
        buffer += received
        start = 0
        try:
            while len(buffer) - start >= _HEAD.size:
                magic, kind, call, meta_bytes, data_bytes = _HEAD.unpack_from(buffer, start)
                _check_head(magic, kind, meta_bytes, data_bytes)
                meta_at = start + _HEAD.size
                data_at = meta_at + meta_bytes
                if len(buffer) < data_at + data_bytes:
                    break
                start = data_at + data_bytes
                yield Frame(
                    Kind(kind), call, _parse(buffer[meta_at:data_at]), buffer[data_at:start]
                )
        finally:
            del buffer[:start]


def check_hello(frame: Frame) -> None:
    """Refuse a first frame that is not a greeting in this version.

    Raises:
        ProtocolError: it is not.
    """
    if frame.kind is not Kind.HELLO:
        raise ProtocolError(f"the first frame is {frame.kind.name}, not HELLO")
    version = frame.meta.get("version")
    if version != VERSION:
        raise ProtocolError(
            f"the other side speaks version {version!r} of the protocol, this one {VERSION}; run "
            "the same release of the service on both"
        )


def _check_head(magic: int, kind: int, meta_bytes: int, data_bytes: int) -> None:
    if magic != _MAGIC:
        raise ProtocolError(f"{magic:#06x} does not begin a frame")
    if kind not in Kind.__members__.values():
        raise ProtocolError(f"there is no frame of kind {kind}")
    if meta_bytes > MAX_META_BYTES or data_bytes > MAX_DATA_BYTES:
        raise ProtocolError(f"a frame of {meta_bytes} + {data_bytes} bytes is over the limits")


def _parse(text: bytearray) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the meta of a frame is not JSON") from error
    if not isinstance(meta, dict):
        raise ProtocolError("the meta of a frame is not a JSON object")
    return meta
