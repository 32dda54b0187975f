"""Blobs in a local folder: `<root>/<first two hex digits>/<sha256>`."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from core.clock import now_s
from core.errors import StorageFullError
from core.platform.storage.base import Blob, StoredBlob

_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[0-9a-f]{64}")


class LocalStore:
    """A folder on one machine. A blob appears under its name whole or not at all."""

    def __init__(self, root: Path) -> None:
        """Create the folder if it is missing."""
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def put_file(self, path: Path) -> Blob:
        """Copy a file in, hashing on the way."""
        incoming = self._incoming / uuid.uuid4().hex
        digest = hashlib.sha256()
        with _typed_errors(incoming), path.open("rb") as source, incoming.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        return self.take_file(incoming, digest.hexdigest())

    def take_file(self, path: Path, sha256: str) -> Blob:
        """Move a file in; across file systems that is a copy."""
        final = self._path(sha256)
        size_bytes = path.stat().st_size
        # Made new again, so that it is not taken for garbage; if it went just now, it is moved in.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.utime(final)
            path.unlink()
            return Blob(sha256, size_bytes)
        source = path
        if path.parent != self._incoming:
            source = self._incoming / uuid.uuid4().hex
            with _typed_errors(source):
                shutil.move(path, source)
        with _typed_errors(source):
            source.chmod(0o444)
            _fsync(source)
            final.parent.mkdir(exist_ok=True)
            source.replace(final)
            # The rename itself must survive a power cut, or a row could name a missing blob.
            _fsync(final.parent)
        return Blob(sha256, size_bytes)

    def put_bytes(self, data: bytes) -> Blob:
        """Write a few bytes."""
        incoming = self._incoming / uuid.uuid4().hex
        with _typed_errors(incoming):
            incoming.write_bytes(data)
        return self.take_file(incoming, hashlib.sha256(data).hexdigest())

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob."""
        return self._path(sha256).open("rb")

    def fetch(self, sha256: str) -> Path:
        """Return the blob's own path: it is local already."""
        path = self._path(sha256)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such blob", str(path))
        return path

    def exists(self, sha256: str) -> bool:
        """Look."""
        return self._path(sha256).exists()

    def delete(self, sha256: str) -> None:
        """Unlink."""
        self._path(sha256).unlink(missing_ok=True)

    def iter_blobs(self) -> Iterator[StoredBlob]:
        """Walk through the folders."""
        for folder in self._root.iterdir():
            if len(folder.name) != 2:  # noqa: PLR2004 - digits; not `incoming`
                continue
            for path in folder.iterdir():
                # Gone since it was listed: no blob any more.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if _NAME.fullmatch(path.name):
                        yield StoredBlob(path.name, status.st_size, status.st_mtime)

    def remove_abandoned(self, *, older_than_s: float) -> int:
        """Remove partial files that nobody has written to for so long."""
        return remove_old_files(self._incoming, older_than_s=older_than_s)


def remove_old_files(folder: Path, *, older_than_s: float) -> int:
    """Remove the files of a folder that nobody has written to for so long; return how many."""
    removed = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= now_s() - older_than_s:
                path.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def _typed_errors(partial: Path) -> Iterator[None]:
    """Leave no partial file behind, and name a full disk as what it is."""
    try:
        yield
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                "the disk of the store is full; free space and send the request again"
            ) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
