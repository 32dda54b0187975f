"""What a store of blobs must do. A blob is named by the SHA-256 of its bytes and never changes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Blob:
    """A stored blob.

    Attributes:
        sha256: its name, lower-case hex.
        size_bytes: its length.
    """

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class StoredBlob(Blob):
    """A blob as the store lists it.

    Attributes:
        modified_at_s: Unix time, by the store's clock, at which its bytes were last put there.
    """

    modified_at_s: float


class BlobStore(Protocol):
    """Content-addressed storage, safe to use from many threads.

    Every method may raise OSError, `StorageFullError`, and where a server is asked
    `StoreUnavailableError` or `StoreMisconfiguredError` (`core.platform.storage.errors`).
    """

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file, durable when this returns; storing twice is harmless."""

    def take_file(self, path: Path, sha256: str) -> Blob:
        """Store a file whose digest the caller has computed while writing, and remove it."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store a few bytes."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it, and keeps it whatever happens meanwhile.

        Raises:
            BlobMissingError: a FileNotFoundError too.
            BlobCorruptError: its bytes are not those that the name promises.
        """

    def fetch(self, sha256: str, *, into: Path | None = None) -> Path:
        """Return a local, read-only path with the blob's bytes.

        Args:
            sha256: the blob's name.
            into: the caller's folder, on the same file system as the data directory; the path is
                good for as long as this folder is there. Without it the path must be opened at
                once: a store that keeps local copies removes them when it needs the room.

        Raises:
            BlobMissingError: a FileNotFoundError too.
            BlobCorruptError: its bytes are not those that the name promises.
        """

    def exists(self, sha256: str) -> bool:
        """Return whether the blob is stored."""

    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not there is harmless."""

    def iter_blobs(self) -> Iterator[StoredBlob]:
        """List all blobs, in no order. What comes or goes meanwhile may be listed or not.

        Putting bytes that are stored already makes their blob new again, to within ten minutes. So
        whoever collects garbage may trust an age in hours: a blob that is old, and that no row
        names, was not put a moment ago by somebody whose row is about to be committed.
        """

    def remove_abandoned(self, *, older_than_s: float) -> int:
        """Remove what killed writers left: partial files, unfinished uploads; return how many.

        Args:
            older_than_s: spare those begun more recently; they may be at work.
        """

    def check(self) -> None:
        """Use the store a little, as everything else does; raises what any use would raise."""
