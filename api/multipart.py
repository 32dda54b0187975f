"""`multipart/form-data` as a stream: each part goes to a sink as it arrives, none is kept here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.errors import MalformedError, wrong_type
from api.headers import find_header
from core.errors import InvalidError, TooLargeError

#: Bytes gathered before a thread parses, hashes and writes them; the most of a body in memory.
_BATCH_BYTES = 1 << 20
#: Room for boundaries and headers of parts, on top of a limit on the parts' content.
_OVERHEAD_BYTES = 64 << 10
_MAX_FIELD_BYTES = 4 << 10


@dataclass(frozen=True)
class PartHeader:
    """What precedes a part.

    Attributes:
        name: the form field.
        file_name: the client's name of the file, None for a plain field.
        content_type: the part's own, empty if it has none.
    """

    name: str
    file_name: str | None
    content_type: str


class PartSink(Protocol):
    """Takes the content of one part."""

    def write(self, data: bytes) -> None:
        """Take the next bytes."""

    def close(self) -> None:
        """Learn that the part is complete."""


class FieldSink:
    """Keeps the text of a plain form field."""

    def __init__(self, name: str) -> None:
        """Begin an empty field."""
        self._name = name
        self._data = bytearray()
        self.text = ""

    def write(self, data: bytes) -> None:
        """Append, up to the limit of a field."""
        self._data += data
        if len(self._data) > _MAX_FIELD_BYTES:
            raise InvalidError(f"the form field {self._name!r} is over {_MAX_FIELD_BYTES} bytes")

    def close(self) -> None:
        """Decode."""
        try:
            self.text = self._data.decode()
        except UnicodeDecodeError as error:
            raise MalformedError(f"the form field {self._name!r} is not UTF-8") from error


def find_boundary(content_type: str) -> bytes:
    """Return the boundary that a `Content-Type` names.

    Raises:
        UnsupportedTypeError: the type is not multipart/form-data.
        MalformedError: it names no boundary.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data":
        raise wrong_type("multipart/form-data", content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedError("the Content-Type multipart/form-data names no boundary")
    return boundary


async def read_multipart(
    request: Request,
    open_part: Callable[[PartHeader], PartSink],
    *,
    max_bytes: int,
    max_parts: int,
) -> None:
    """Stream a request's parts into the sinks that `open_part` returns; both run in a thread.

    Args:
        request: a request whose body nobody has read.
        open_part: called with each part's header; it may raise to refuse the part.
        max_bytes: limit on the parts' content together.
        max_parts: limit on their number.

    Raises:
        UnsupportedTypeError: the body is not multipart/form-data.
        MalformedError: the body cannot be parsed, has too many parts or ends too early.
        TooLargeError: the body is over `max_bytes`, by its declaration or by its bytes.
        ClientDisconnect: the connection ended.
    """
    reader = _Reader(find_boundary(request.headers.get("content-type", "")), open_part, max_parts)
    limit_bytes = max_bytes + _OVERHEAD_BYTES
    check_declared_length(request, limit_bytes, max_bytes)
    received_bytes = 0
    batch = bytearray()
    async for chunk in request.stream():
        received_bytes += len(chunk)
        if received_bytes > limit_bytes:
            raise _too_large(max_bytes)
        batch += chunk
        if len(batch) >= _BATCH_BYTES:
            await run_in_threadpool(reader.feed, bytes(batch))
            batch.clear()
    await run_in_threadpool(reader.feed, bytes(batch))
    reader.finish()


def check_declared_length(request: Request, limit_bytes: int, told_bytes: int) -> None:
    """Refuse a body by its `Content-Length`, before a byte of it is read.

    Raises:
        TooLargeError: it declares more than `limit_bytes`; the message tells `told_bytes`.
    """
    declared = find_header(request.scope, b"content-length") or ""
    if declared.isascii() and declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(told_bytes)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the body is over {max_bytes} bytes, the limit of this route")


class _Reader:
    """Turns the parser's callbacks into calls of sinks."""

    def __init__(
        self, boundary: bytes, open_part: Callable[[PartHeader], PartSink], max_parts: int
    ) -> None:
        self._open_part = open_part
        self._max_parts = max_parts
        self._parts = 0
        self._is_complete = False
        self._sink: PartSink | None = None
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedError(f"the boundary cannot be used: {error}") from error

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedError(f"the multipart body cannot be parsed: {error}") from error

    def finish(self) -> None:
        if not self._is_complete:
            raise MalformedError(
                "the multipart body ends before its closing boundary", code="incomplete_body"
            )

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise MalformedError(f"the body has more than {self._max_parts} parts")
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise MalformedError("a part's Content-Disposition has no name")
        file_name = options.get(b"filename")
        header = PartHeader(
            name=_decode(options[b"name"]),
            file_name=None if file_name is None else _decode(file_name),
            content_type=_decode(self._headers.get(b"content-type", b"")),
        )
        self._sink = self._open_part(header)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._sink is not None, "the parser ends a part's headers before its data"
        self._sink.write(data[start:end])

    def _on_part_end(self) -> None:
        assert self._sink is not None
        self._sink.close()
        self._sink = None

    def _on_end(self) -> None:
        self._is_complete = True


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
