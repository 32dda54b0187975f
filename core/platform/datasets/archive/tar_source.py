"""Tar archives, plain or compressed, read as a stream: one pass to list, one pass to read.

A stream can only go forwards, which rules out the loops that negative sizes cause in readers that
seek.
"""

import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self, cast

from core.platform.datasets.archive.entries import ArchiveError, ArchiveLimits, Member, shown
from core.platform.datasets.archive.inflate import InflatingReader
from core.platform.datasets.archive.names import clean_name

_BLOCK_BYTES = tarfile.BLOCKSIZE
#: Extended headers (long names, pax records) are read whole, some with slow patterns.
_MAX_HEADER_BYTES = 8 * 1024
_EXTENDED_TYPES = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is refused where the library would take it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < _BLOCK_BYTES:
            raise ArchiveError(
                "The tar ends without its end mark: the upload or the file was cut. Send it again.",
                code="archive_truncated",
            )
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):
                raise  # the end mark
            raise ArchiveError(
                f"The tar holds a damaged header ({error}): pack it again.", code="archive_corrupt"
            ) from error
        if info.size < 0:
            raise ArchiveError(
                f"{shown(info.name)} declares a negative size: pack the archive again.",
                code="archive_corrupt",
            )
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise _special(info.name)
        if info.type in _EXTENDED_TYPES and info.size > _MAX_HEADER_BYTES:
            raise ArchiveError(
                f"A tar header is {info.size} bytes long: pack the archive again without extended "
                "attributes (tar --no-xattrs).",
                code="archive_corrupt",
            )
        return info


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
                    file = tar.extractfile(info)
                    data = file.read() if file else b""
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
        with self._open() as (tar, reader):
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
                    raise ArchiveError(
                        f"{shown(info.name)} declares a negative size: pack the archive again.",
                        code="archive_corrupt",
                    )
                yield Member(index, name, info.size, is_folder=info.isdir())
            reader.drain()

    @contextmanager
    def _open(self) -> Iterator[tuple[tarfile.TarFile, InflatingReader]]:
        with self._path.open("rb") as file:
            reader = InflatingReader(
                file,
                file_bytes=self._path.stat().st_size,
                max_total_bytes=self._limits.max_total_bytes,
            )
            try:
                with tarfile.open(
                    fileobj=cast(BinaryIO, reader),  # a stream needs nothing but `read`
                    mode="r|",
                    tarinfo=_StrictTarInfo,
                    encoding="utf-8",
                    errors="surrogateescape",
                ) as tar:
                    yield tar, reader
            except (tarfile.TarError, ValueError, RecursionError) as error:
                raise ArchiveError(
                    f"The tar is cut or damaged ({error}): pack it again.", code="archive_corrupt"
                ) from error


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
