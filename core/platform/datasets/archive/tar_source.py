"""Tar archives, plain or compressed: one pass to list, one pass to read, both forwards only.

The library is kept from what it trips over: seeking back by a negative size, and patterns that take
quadratic time on long runs of digits (CVE-2025-8194, CVE-2024-6232).
"""

import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self, cast

from core.platform.datasets.archive.entries import ArchiveError, ArchiveLimits, Member, shown
from core.platform.datasets.archive.inflate import InflatingReader
from core.platform.datasets.archive.names import clean_name

_BLOCK_BYTES = tarfile.BLOCKSIZE
_SKIP_BYTES = 256 * 1024
#: Extended headers are long names and pax records; the library reads them whole.
_MAX_HEADER_BYTES = 8 * 1024
_PAX_TYPES = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE})
_EXTENDED_TYPES = _PAX_TYPES | {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_ABSURD_NUMBER = re.compile(rb"[0-9]{256}")


class _ForwardFile:
    """What the library sees of the archive: a file that can only go on."""

    def __init__(self, reader: InflatingReader) -> None:
        self._reader = reader
        self._position = 0
        self.pax_follows = False

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := self._reader.read(size - len(data))):
            data += chunk
        self._position += len(data)
        if self.pax_follows and _ABSURD_NUMBER.search(data):
            raise _corrupt("a pax record holds an absurd number")
        self.pax_follows = False
        return bytes(data)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise _corrupt("a member lies before its header")
        while self._position < position:
            if not self.read(min(_SKIP_BYTES, position - self._position)):
                break  # the library notices that the next byte is missing
        return self._position

    def drain(self) -> None:
        self._reader.drain()


def _build_header_class(file: _ForwardFile) -> type[tarfile.TarInfo]:
    """Return a header that is refused where the library would take it for the archive's end."""

    class StrictTarInfo(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            if len(buf) < _BLOCK_BYTES:
                raise ArchiveError(
                    "The tar ends without its end mark: the file was cut. Send it again.",
                    code="archive_truncated",
                )
            try:
                info = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if not any(buf):
                    raise  # the end mark
                raise _corrupt(f"a damaged header, {error}") from error
            if info.size < 0:
                raise _corrupt(f"{shown(info.name)} declares a negative size")
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise _special(info.name)
            if info.type in _EXTENDED_TYPES and info.size > _MAX_HEADER_BYTES:
                raise ArchiveError(
                    f"A tar header is {info.size} bytes long: pack the archive again without "
                    "extended attributes (tar --no-xattrs).",
                    code="archive_corrupt",
                )
            file.pax_follows = info.type in _PAX_TYPES
            return info

    return StrictTarInfo


def _corrupt(reason: str) -> ArchiveError:
    return ArchiveError(f"The tar is damaged ({reason}): pack it again.", code="archive_corrupt")


def _special(name: str) -> ArchiveError:
    return ArchiveError(
        f"{shown(name)} is a link, a device or a sparse file: only plain files and folders are "
        "read. Pack the files themselves (tar --dereference --hard-dereference).",
        code="special_file",
    )


class TarSource:
    """The members of a tar."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        """List the members; this inflates the whole file once.

        Raises:
            ArchiveError: for anything in it that is not a plain, complete tar of files and folders.
        """
        self._path = path
        self._limits = limits
        self._members = tuple(self._list())

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the tar's order."""
        return self._members

    def iterate(self, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (index, bytes) of the wanted members in one pass, in the tar's order."""
        last = max(wanted, default=-1)
        with self._open() as (tar, _):
            for index, info in enumerate(_walk(tar)):
                if index in wanted:
                    content = tar.extractfile(info)
                    data = content.read() if content else b""
                    if len(data) != info.size:
                        raise ArchiveError(
                            f"{shown(info.name)} is cut: send the archive again.",
                            code="archive_truncated",
                        )
                    yield index, data
                if index >= last:
                    return

    def close(self) -> None:
        """Do nothing: each pass closes its own file."""

    def _list(self) -> Iterator[Member]:
        with self._open() as (tar, file):
            for index, info in enumerate(_walk(tar)):
                if index >= self._limits.max_files:
                    raise too_many_files(self._limits.max_files)
                name = clean_name(info.name)
                sparse = info.issparse() or any(
                    k.startswith("GNU.sparse") for k in info.pax_headers
                )
                if sparse or not (info.isreg() or info.isdir()):
                    raise _special(info.name)
                if info.size < 0:  # a pax record may override the header's size
                    raise _corrupt(f"{shown(info.name)} declares a negative size")
                yield Member(index, name, info.size, is_folder=info.isdir())
            file.drain()

    @contextmanager
    def _open(self) -> Iterator[tuple[tarfile.TarFile, _ForwardFile]]:
        with self._path.open("rb") as raw:
            file = _ForwardFile(
                InflatingReader(
                    raw,
                    file_bytes=self._path.stat().st_size,
                    max_total_bytes=self._limits.max_total_bytes,
                )
            )
            try:
                with tarfile.open(
                    fileobj=cast(BinaryIO, file),  # read, tell and seek are all that is called
                    mode="r:",
                    tarinfo=_build_header_class(file),
                    encoding="utf-8",
                    errors="surrogateescape",
                ) as tar:
                    yield tar, file
            except (tarfile.TarError, ValueError, RecursionError) as error:
                raise _corrupt(str(error)) from error


def too_many_files(max_files: int) -> ArchiveError:
    """Return the error for an archive with more than `max_files` members."""
    return ArchiveError(
        f"The archive holds more than {max_files} files: leave some out, or pack larger folders "
        "as several datasets.",
        code="too_many_files",
    )


def _walk(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        yield info
        # The library keeps every header, some hundred MB for the largest archives allowed.
        tar.members.clear()  # type: ignore[attr-defined]  # no public way
