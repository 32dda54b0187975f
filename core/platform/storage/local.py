"""Blobs in a local folder: `<root>/<first two hex digits>/<sha256>`."""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from core.platform.storage.base import Blob, StoredBlob
from core.platform.storage.errors import blob_missing
from core.platform.storage.files import (
    CHUNK_BYTES,
    move_into_place,
    remove_old_files,
    typed_disk_errors,
)

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
        with typed_disk_errors(incoming), path.open("rb") as source, incoming.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
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
            with typed_disk_errors(source):
                shutil.move(path, source)
        with typed_disk_errors(source):
            move_into_place(source, final)
        return Blob(sha256, size_bytes)

    def put_bytes(self, data: bytes) -> Blob:
        """Write a few bytes."""
        incoming = self._incoming / uuid.uuid4().hex
        with typed_disk_errors(incoming):
            incoming.write_bytes(data)
        return self.take_file(incoming, hashlib.sha256(data).hexdigest())

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob."""
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError as error:
            raise blob_missing(sha256) from error

    def fetch(self, sha256: str, *, into: Path | None = None) -> Path:  # noqa: ARG002
        """Return the blob's own path: it is local already, and goes only with the blob."""
        path = self._path(sha256)
        if not path.exists():
            raise blob_missing(sha256)
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

    def check(self) -> None:
        """Write a small file, and remove it."""
        probe = self._incoming / uuid.uuid4().hex
        with typed_disk_errors(probe):
            probe.write_bytes(b"probe")
            probe.unlink()
