"""A forward-only reader over a plain or compressed file that counts what comes out.

The standard library's file objects set no limit on the memory of an xz dictionary, nor on the
output.
"""

import bz2
import lzma
import zlib
from typing import BinaryIO

from core.platform.datasets.archive.entries import MAX_RATIO, ArchiveError

GZIP_MAGIC = b"\x1f\x8b"
BZIP2_MAGIC = b"BZh"
XZ_MAGIC = b"\xfd7zXZ\x00"

_CHUNK_BYTES = 256 * 1024
_XZ_MEMORY_BYTES = 256 * 2**20  # `xz -9` needs 65 MiB
_GZIP_WINDOW_BITS = 16 + zlib.MAX_WBITS
_RATIO_FLOOR_BYTES = 8 * 2**20  # below it a high ratio does no harm: rows of tiny, alike files


class _GzipDecompressor:
    """`zlib.decompressobj` with the interface of the two others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP_WINDOW_BITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(data or self._inner.unconsumed_tail, max_length)


_Decompressor = _GzipDecompressor | bz2.BZ2Decompressor | lzma.LZMADecompressor


def _build_decompressor(magic: bytes) -> _Decompressor | None:
    if magic.startswith(GZIP_MAGIC):
        return _GzipDecompressor()
    if magic.startswith(BZIP2_MAGIC):
        return bz2.BZ2Decompressor()
    if magic.startswith(XZ_MAGIC):
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    return None


class InflatingReader:
    """Reads a file forwards, inflating gzip, bzip2 or xz, and refuses a bomb while it goes off."""

    def __init__(self, file: BinaryIO, *, file_bytes: int, max_total_bytes: int) -> None:
        """Start at the beginning of the file.

        Args:
            file: the archive, opened for reading.
            file_bytes: its size on disk.
            max_total_bytes: most bytes it may inflate to.
        """
        self._file = file
        self._file.seek(0)
        self._magic = file.read(len(XZ_MAGIC))
        self._file.seek(0)
        self._decompressor = _build_decompressor(self._magic)
        self._left_over = b""
        self._count = 0
        self._max_bytes = max_total_bytes
        self._max_by_ratio = max(_RATIO_FLOOR_BYTES, MAX_RATIO * file_bytes)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, and none only at the end.

        Raises:
            ArchiveError: when the stream is cut, damaged, or inflates beyond the limits.
        """
        if self._decompressor is None:
            return self._counted(self._file.read(size))
        try:
            return self._counted(self._inflate(size))
        except lzma.LZMAError as error:
            raise _corrupt(str(error)) from error
        except (zlib.error, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's fault, not the archive's: bz2 raises OSError without a number
            raise _corrupt(str(error)) from error

    def drain(self) -> None:
        """Read to the end, so that a missing tail or a wrong checksum shows."""
        while self.read(_CHUNK_BYTES):
            pass

    def _inflate(self, size: int) -> bytes:
        while True:
            decompressor = self._decompressor
            assert decompressor is not None
            if decompressor.eof:
                # Streams may follow each other, with zeros between them (tapes, pigz, xz padding).
                rest = decompressor.unused_data.lstrip(b"\0") or self._next_stream()
                if not rest:
                    return b""
                self._left_over = rest
                self._decompressor = _build_decompressor(self._magic)
                continue
            data = self._left_over
            self._left_over = b""
            if not data and decompressor.needs_input:
                data = self._file.read(_CHUNK_BYTES)
                if not data:
                    raise ArchiveError(
                        "The archive ends too early: the file was cut. Send it again.",
                        code="archive_truncated",
                    )
            inflated = decompressor.decompress(data, size)
            if inflated:
                return inflated

    def _next_stream(self) -> bytes:
        while data := self._file.read(_CHUNK_BYTES):
            if rest := data.lstrip(b"\0"):
                return rest
        return b""

    def _counted(self, data: bytes) -> bytes:
        self._count += len(data)
        if self._count > self._max_bytes:
            raise ArchiveError(
                f"The archive inflates to more than {self._max_bytes} bytes: split it up.",
                code="archive_too_large",
            )
        if self._decompressor is not None and self._count > self._max_by_ratio:
            raise ArchiveError(
                f"The archive inflates to more than {MAX_RATIO} times its size, as no set of "
                "images does: pack the images without other files.",
                code="zip_bomb",
            )
        return data


def _corrupt(reason: str) -> ArchiveError:
    return ArchiveError(
        f"The archive's compressed data are damaged ({reason}): pack it again.",
        code="archive_corrupt",
    )
