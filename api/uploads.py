"""An uploaded archive on its way to disk: hashed while it arrives, removed unless it is kept."""

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path, PurePosixPath

from starlette.requests import Request

from api.multipart import FieldSink, PartHeader, PartSink, read_multipart
from api.schemas.datasets import DatasetFields
from core.errors import FieldError, InvalidError, StorageFullError
from core.platform.collection.scratch import UPLOAD_PREFIX, mark_live

_FIELDS = tuple(DatasetFields.model_fields)
_MAX_PARTS = 10


@dataclass
class ReceivedArchive:
    """An archive in the scratch folder, and what came with it.

    Attributes:
        path: where its bytes are, for as long as the block that received it lasts.
        sha256: their digest.
        size_bytes: their number.
        file_name: the client's name of the file.
        fields: the plain form fields.
    """

    path: Path
    sha256: str = ""
    size_bytes: int = 0
    file_name: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def receive_archive(
    request: Request, scratch_dir: Path, *, max_bytes: int, fields: Sequence[str] = _FIELDS
) -> AsyncIterator[ReceivedArchive]:
    """Stream the form field `file` into the scratch folder; remove it at the end of the block.

    Whoever wants to keep the file moves it away inside the block. Besides it the form may have the
    plain `fields`; by default those of a dataset.

    Raises:
        InvalidError: the form has no file, two of them, or an unknown field.
        StorageFullError: the disk is full.
        TooLargeError, MalformedError, UnsupportedTypeError, ClientDisconnect: as in
            `read_multipart`.
    """
    received = ReceivedArchive(scratch_dir / f"{UPLOAD_PREFIX}{secrets.token_hex(8)}")
    try:
        # Unbuffered: nothing is left to be written, and to fail again, when the file is closed.
        with received.path.open("xb", buffering=0) as target:
            mark_live(target)
            form = _ArchiveForm(target, fields)
            await read_multipart(request, form.open_part, max_bytes=max_bytes, max_parts=_MAX_PARTS)
            form.complete(received)
            yield received
    finally:
        received.path.unlink(missing_ok=True)


def clean_file_name(given: str) -> str:
    """Return the last part of a client's path, printable and not too long."""
    name = PurePosixPath(given.replace("\\", "/")).name
    return "".join(char for char in name if char.isprintable())[:300]


class _ArchiveForm:
    """Sends the file to disk and keeps the fields."""

    def __init__(self, target: FileIO, fields: Sequence[str]) -> None:
        self._target = target
        self._allowed = fields
        self._file: _FileSink | None = None
        self._fields: dict[str, FieldSink] = {}

    def open_part(self, header: PartHeader) -> PartSink:
        """Return where a part goes."""
        if header.name == "file":
            if self._file is not None:
                raise _field_error("file", "send one archive", "too_many")
            if header.file_name is None:
                raise _field_error("file", "send it as a file, with a file name", "required")
            self._file = _FileSink(self._target, header.file_name)
            return self._file
        if header.name not in self._allowed:
            allowed = ", ".join(("file", *self._allowed))
            raise _field_error(header.name, f"unknown field; allowed: {allowed}", "unknown_field")
        if header.name in self._fields:
            raise _field_error(header.name, "given twice", "too_many")
        sink = self._fields[header.name] = FieldSink(header.name)
        return sink

    def complete(self, received: ReceivedArchive) -> None:
        """Report what has arrived."""
        if self._file is None:
            raise _field_error("file", "send the archive as the form field 'file'", "required")
        received.sha256 = self._file.digest.hexdigest()
        received.size_bytes = self._file.size_bytes
        received.file_name = self._file.file_name
        received.fields = {name: sink.text for name, sink in self._fields.items()}


class _FileSink:
    """Hashes and writes."""

    def __init__(self, target: FileIO, file_name: str) -> None:
        self._target = target
        self.file_name = file_name
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        self.digest.update(data)
        self.size_bytes += len(data)
        rest = memoryview(data)
        with disk_errors():
            while rest:
                rest = rest[self._target.write(rest) :]

    def close(self) -> None:
        """Nothing: the file is closed by whoever opened it."""


@contextmanager
def disk_errors() -> Iterator[None]:
    """Name a full disk as what it is.

    Raises:
        StorageFullError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                "the disk of the server is full; free space and send the request again"
            ) from error
        raise


def _field_error(name: str, message: str, code: str) -> InvalidError:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    return InvalidError(
        f"form field {name!r}: {message}", fields=(FieldError(pointer, message, code),)
    )
