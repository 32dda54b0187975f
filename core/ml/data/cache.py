"""The image cache: every image of a dataset, decoded and resized once, as one `.npy` of uint8.

Row i of the array of shape (N, image_px, image_px, 3) is item i of the manifest. The file is never
changed after it has its name; readers map it, so that the processes of a host share its pages.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from core.errors import AppError
from core.ml.data.atomic import publish_file, replace_file

CHANNELS = 3


class CacheCorruptError(AppError):
    """A file is not the image cache that it should be; it can be built again from the archive."""

    code = "cache_corrupt"
    retryable = True


def cache_name(image_px: int) -> str:
    """Return the file name of the cache of this image size."""
    return f"images_{image_px}.npy"


def write_cache(
    path: Path, rows: Iterable[npt.NDArray[np.uint8]], *, count: int, image_px: int
) -> str:
    """Write a cache row by row, atomically.

    Args:
        path: the file to make.
        rows: `count` arrays of shape (image_px, image_px, 3).
        count: number of images.
        image_px: side of an image.

    Returns:
        SHA-256 of the file in hex.

    Raises:
        ValueError: for a row of another shape or another number of rows.
    """
    with replace_file(path) as file:
        sha256 = hashlib.sha256()

        def write(data: bytes) -> None:
            sha256.update(data)
            file.write(data)

        write(_header(count, image_px))
        written = 0
        for row in rows:
            write(_row_bytes(row, image_px))
            written += 1
        if written != count:
            raise ValueError(f"{written} rows instead of {count}")
    return sha256.hexdigest()


class CacheBuilder:
    """Fills a cache in any order, from any thread: images come as an archive stores them.

    Rows are written by `pwrite`, not through a map: a full disk then raises instead of killing the
    process.
    """

    def __init__(self, path: Path, *, capacity: int, image_px: int) -> None:
        """Open a scratch file beside `path`.

        Args:
            path: the cache to make.
            capacity: most rows.
            image_px: side of an image.
        """
        self._path = path
        self._capacity = capacity
        self._image_px = image_px
        self._scratch = path.with_name(f".{path.name}.rows")
        self._file: BinaryIO = self._scratch.open("w+b")
        self._header_bytes = len(_header(capacity, image_px))
        self._row_bytes = image_px * image_px * CHANNELS
        self._filled: set[int] = set()
        self._lock = threading.Lock()

    def put(self, index: int, row: npt.NDArray[np.uint8]) -> None:
        """Write row `index`.

        Raises:
            ValueError: for another shape.
            OSError: when the disk is full.
        """
        view = memoryview(_row_bytes(row, self._image_px))
        offset = self._header_bytes + index * self._row_bytes
        while view:
            done = os.pwrite(self._file.fileno(), view, offset)
            view, offset = view[done:], offset + done
        with self._lock:
            self._filled.add(index)

    def finish(self, keep: Sequence[int] | None = None) -> str:
        """Give the cache its name and return the SHA-256 of the file in hex.

        Args:
            keep: the rows that stay, in their new order; all of them by default.

        Raises:
            ValueError: when a row that stays was never put.
        """
        kept = range(self._capacity) if keep is None else keep
        missing = set(kept) - self._filled
        if missing:
            raise ValueError(f"row {min(missing)} was never put")
        if list(kept) == list(range(self._capacity)):
            os.pwrite(self._file.fileno(), _header(self._capacity, self._image_px), 0)
            digest = cache_digest(self._scratch)
            publish_file(self._file, self._scratch, self._path)
        else:
            rows = (self._read(index) for index in kept)
            digest = write_cache(self._path, rows, count=len(kept), image_px=self._image_px)
        self.close()
        return digest

    def close(self) -> None:
        """Remove the scratch file."""
        self._file.close()
        self._scratch.unlink(missing_ok=True)

    def _read(self, index: int) -> npt.NDArray[np.uint8]:
        offset = self._header_bytes + index * self._row_bytes
        data = os.pread(self._file.fileno(), self._row_bytes, offset)
        return np.frombuffer(data, np.uint8).reshape(self._image_px, self._image_px, CHANNELS)


def open_cache(path: Path) -> npt.NDArray[np.uint8]:
    """Return a cache as a read-only map of shape (N, image_px, image_px, 3).

    Raises:
        CacheCorruptError: when the file is cut or is no image cache.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CacheCorruptError(f"{path.name} is not an image cache: {error}") from error
    shape = rows.shape
    is_square = len(shape) == len("NHWC") and shape[1] == shape[2] and shape[3] == CHANNELS
    if rows.dtype != np.uint8 or not is_square:
        raise CacheCorruptError(f"{path.name} holds {rows.dtype} of shape {shape}, not images")
    result: npt.NDArray[np.uint8] = rows
    return result


def cache_digest(path: Path) -> str:
    """Return the SHA-256 of a cache file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(count: int, image_px: int) -> bytes:
    buffer = io.BytesIO()
    shape = (count, image_px, image_px, CHANNELS)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _row_bytes(row: npt.NDArray[np.uint8], image_px: int) -> bytes:
    if row.shape != (image_px, image_px, CHANNELS) or row.dtype != np.uint8:
        raise ValueError(f"a row of {row.dtype} {row.shape}, not uint8 of side {image_px}")
    return row.tobytes()
