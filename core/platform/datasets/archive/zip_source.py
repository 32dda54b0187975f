"""Zip archives: the central directory checked before anything is inflated.

The library refuses neither overlapping members nor a directory that disagrees with its own end
record, so both are checked here (CVE-2024-0450, CVE-2025-8291).
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.platform.datasets.archive.entries import (
    MAX_RATIO,
    ArchiveError,
    ArchiveLimits,
    Member,
    shown,
)
from core.platform.datasets.archive.names import MAX_PATH_BYTES, clean_name
from core.platform.datasets.archive.tar_source import too_many_files

ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")

_END = struct.Struct("<4s4H2LH")  # end of central directory
_END_MAGIC = b"PK\x05\x06"
_MAX_COMMENT_BYTES = 0xFFFF
_LOCATOR = struct.Struct("<4sLQL")  # ZIP64 locator, right before the end record
_LOCATOR_MAGIC = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2L4Q")  # ZIP64 end record, which the locator points at
_END64_MAGIC = b"PK\x06\x06"
_LOCAL_HEADER_BYTES = 30
_DIRECTORY_HEADER_BYTES = 46
_MAX_EXTRA_BYTES = 1024  # times and owners need some dozens

_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_UTF8_FLAG = 0x800
_RATIO_FLOOR_BYTES = 2**20  # below it a high ratio does no harm: drawings in one colour

_LIBRARY_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    zlib.error,
    ValueError,  # also UnicodeDecodeError of a name
    EOFError,
    OverflowError,
)


@dataclass(frozen=True)
class _EndRecord:
    """Where the central directory lies. `count` may have wrapped at 65,536 unless `is_zip64`."""

    count: int
    directory_bytes: int
    directory_offset: int
    position: int
    is_zip64: bool


class ZipSource:
    """The members of a zip."""

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        """Read and check the central directory; nothing is inflated yet.

        Raises:
            ArchiveError: for a damaged, encrypted or hostile directory.
        """
        with path.open("rb") as file:
            end = _find_end_record(file, path.stat().st_size)
        if end.is_zip64 and end.count > limits.max_files:
            raise too_many_files(limits.max_files)
        most_bytes = _DIRECTORY_HEADER_BYTES + MAX_PATH_BYTES + _MAX_EXTRA_BYTES
        if end.directory_bytes > limits.max_files * most_bytes:
            raise too_many_files(limits.max_files)
        try:
            self._zip = zipfile.ZipFile(path)
        except _LIBRARY_ERRORS as error:
            raise _corrupt(str(error)) from error
        try:
            self._infos = sorted(self._zip.infolist(), key=lambda info: info.header_offset)
            self._check(end, limits)
            self._members = tuple(
                Member(index, _checked_name(info), info.file_size, is_folder=info.is_dir())
                for index, info in enumerate(self._infos)
            )
        except BaseException:
            self._zip.close()
            raise

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order of their data."""
        return self._members

    def iterate(self, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (index, bytes) of the wanted members, in the order of their data."""
        for index in sorted(wanted):
            info = self._infos[index]
            try:
                with self._zip.open(info) as file:
                    # Not one byte more than declared, however much the data would inflate to.
                    data = file.read(info.file_size + 1)
            except _LIBRARY_ERRORS as error:
                raise _corrupt(f"{shown(info.filename)}: {error}") from error
            if len(data) != info.file_size:
                raise _corrupt(
                    f"{shown(info.filename)} inflates to {len(data)} bytes, not {info.file_size}"
                )
            yield index, data

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def _check(self, end: _EndRecord, limits: ArchiveLimits) -> None:
        count = len(self._infos)
        if count > limits.max_files:
            raise too_many_files(limits.max_files)
        # Finder writes more than 65,535 members without ZIP64: the count wraps.
        wanted = count if end.is_zip64 else count % 2**16
        if end.count != wanted:
            raise _corrupt(f"the end record counts {end.count} members, the directory {count}")
        total_bytes = sum(info.file_size for info in self._infos)
        if total_bytes > limits.max_total_bytes:
            raise ArchiveError(
                f"The archive inflates to {total_bytes} bytes, at most {limits.max_total_bytes} "
                "are read: split it up.",
                code="archive_too_large",
            )
        for number, info in enumerate(self._infos):
            following = self._infos[number + 1 : number + 2]
            limit = following[0].header_offset if following else end.directory_offset
            least = _LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
            if info.header_offset + least > limit:
                raise ArchiveError(
                    f"{shown(info.filename)} overlaps another member: pack the archive again.",
                    code="zip_bomb",
                )
            _check_member(info)


def _check_member(info: zipfile.ZipInfo) -> None:
    name = shown(info.filename)
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise ArchiveError(
            f"{name} is encrypted: pack the archive without a password.", code="archive_encrypted"
        )
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(
            f"{name} is a link or a device: only plain files and folders are read. "
            "Pack the files themselves.",
            code="special_file",
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"{name} is compressed by method {info.compress_type}: pack with the ordinary "
            "method (deflate) or without compression.",
            code="unsupported_compression",
        )
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise _corrupt(f"{name} declares two sizes")
    if info.file_size > max(_RATIO_FLOOR_BYTES, MAX_RATIO * info.compress_size):
        raise ArchiveError(
            f"{name} declares to inflate to more than {MAX_RATIO} times its size, as no "
            "photograph does: pack the images without other files.",
            code="zip_bomb",
        )


def _checked_name(info: zipfile.ZipInfo) -> str:
    # The library cuts `filename` at a NUL; the original shows it.
    name = info.orig_filename
    if not info.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):  # then it really is the old code page
            # Finder and others write UTF-8 without saying so.
            name = name.encode("cp437").decode("utf-8")
    return clean_name(name)


def _find_end_record(file: BinaryIO, file_bytes: int) -> _EndRecord:
    tail_bytes = min(file_bytes, _END.size + _MAX_COMMENT_BYTES)
    file.seek(file_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    start = tail.rfind(_END_MAGIC)
    if start < 0 or len(tail) - start < _END.size:
        raise ArchiveError(
            "The zip ends without its directory: the upload or the file was cut. Send it again.",
            code="archive_truncated",
        )
    _, disk, _, _, count, size, offset, comment_bytes = _END.unpack_from(tail, start)
    position = file_bytes - tail_bytes + start
    if position + _END.size + comment_bytes != file_bytes:
        raise _corrupt("bytes follow the end record")
    end = _EndRecord(count, size, offset, position, is_zip64=False)
    locator_at = position - _LOCATOR.size
    if locator_at >= 0:
        file.seek(locator_at)
        locator = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if locator[0] == _LOCATOR_MAGIC:
            end = _read_zip64(file, locator[2], locator_at)
    if disk or end.directory_offset + end.directory_bytes != end.position:
        raise _corrupt("the directory is not where the end record says, or on several disks")
    return end


def _read_zip64(file: BinaryIO, position: int, locator_at: int) -> _EndRecord:
    # The library takes the record right before the locator, others the one that it points at.
    if position != locator_at - _END64.size:
        raise _corrupt("the ZIP64 locator points elsewhere")
    file.seek(position)
    magic, _, _, _, _, _, _, count, size, offset = _END64.unpack(file.read(_END64.size))
    if magic != _END64_MAGIC:
        raise _corrupt("the ZIP64 end record is missing")
    return _EndRecord(count, size, offset, position, is_zip64=True)


def _corrupt(reason: str) -> ArchiveError:
    return ArchiveError(f"The zip is damaged ({reason}): pack it again.", code="archive_corrupt")
