"""A model on its way in: the files of a form on disk, hashed and limited, gone with the request."""

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Final

from starlette.requests import Request

from api.multipart import FieldSink, PartHeader, PartSink, read_multipart
from api.uploads import disk_errors
from core.errors import FieldError, InvalidError, TooLargeError, UnsupportedTypeError

FIELDS: Final = ("name", "adapter_sha256", "config_sha256")
FILES: Final = ("adapter", "config", "bundle")

_MAX_PARTS = 8
_CHUNK_BYTES = 1 << 20
#: Ends of names of files that run code when they are loaded, or hold weights in other formats.
_FOREIGN_SUFFIXES = frozenset(
    (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".npy", ".h5", ".gguf")
)


@dataclass
class ReceivedModel:
    """The form of an import.

    Attributes:
        files: name of a form field -> its bytes, at their beginning.
        fields: the plain form fields.
    """

    files: dict[str, IO[bytes]] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)

    def digest(self) -> dict[str, str]:
        """Return the SHA-256 of every file, by its form field."""
        digests = {}
        for name, file in self.files.items():
            digests[name] = _digest(file)
            file.seek(0)
        return digests


@asynccontextmanager
async def receive_model(
    request: Request, scratch_dir: Path, *, max_bytes: int
) -> AsyncIterator[ReceivedModel]:
    """Stream a form into files without names, which are gone at the end of the block.

    Raises:
        UnsupportedTypeError: (`unsupported_model_format`) a file's name is one of a pickle's.
        InvalidError: an unknown field, or one that is given twice.
        StorageFullError: the disk is full.
        TooLargeError, MalformedError, ClientDisconnect: as in `read_multipart`.
    """
    async with AsyncExitStack() as stack:
        received = ReceivedModel()
        sinks: dict[str, FieldSink] = {}

        def open_part(header: PartHeader) -> PartSink:
            if header.name in received.files or header.name in sinks:
                raise _field_error(header.name, "given twice", "too_many")
            if header.name in FIELDS:
                sink = sinks[header.name] = FieldSink(header.name)
                return sink
            if header.name not in FILES:
                allowed = ", ".join((*FILES, *FIELDS))
                raise _field_error(
                    header.name, f"unknown field; allowed: {allowed}", "unknown_field"
                )
            _check_name(header)
            with disk_errors():
                file = tempfile.TemporaryFile(dir=scratch_dir)  # noqa: SIM115 - the stack closes it
            received.files[header.name] = stack.enter_context(file)
            return _FileSink(file, header.name, max_bytes)

        await read_multipart(request, open_part, max_bytes=max_bytes, max_parts=_MAX_PARTS)
        received.fields = {name: sink.text for name, sink in sinks.items()}
        for file in received.files.values():
            with disk_errors():
                file.seek(0)
        yield received


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


class _FileSink:
    """Writes one file."""

    def __init__(self, file: IO[bytes], name: str, max_bytes: int) -> None:
        self._file = file
        self._name = name
        self._left_bytes = max_bytes

    def write(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise TooLargeError(f"the file {self._name!r} is over the limit of this route")
        with disk_errors():
            self._file.write(data)

    def close(self) -> None:
        with disk_errors():
            self._file.flush()


def _check_name(header: PartHeader) -> None:
    if header.file_name is None:
        raise _field_error(header.name, "send it as a file, with a file name", "required")
    suffix = PurePosixPath(header.file_name.replace("\\", "/")).suffix.lower()
    if suffix in _FOREIGN_SUFFIXES:
        raise UnsupportedTypeError(
            f"{suffix} files are not read here, as loading them can run code or lose what belongs "
            "to the weights; send adapter.safetensors and config.json",
            code="unsupported_model_format",
        )


def _field_error(name: str, message: str, code: str) -> InvalidError:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    return InvalidError(
        f"form field {name!r}: {message}", fields=(FieldError(pointer, message, code),)
    )
