"""What a store of blobs must do. A blob is named by the SHA-256 of its bytes and never changes."""

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


class BlobStore(Protocol):
    """Content-addressed storage; every method may raise OSError or `StorageFullError`."""

    def put_file(self, path: Path) -> Blob:
        """Store a copy of a file, durable when this returns; storing twice is harmless."""

    def take_file(self, path: Path, sha256: str) -> Blob:
        """Store a file whose digest the caller has computed while writing, and remove it."""

    def put_bytes(self, data: bytes) -> Blob:
        """Store a few bytes."""

    def open(self, sha256: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it. Raises FileNotFoundError."""

    def fetch(self, sha256: str) -> Path:
        """Return a local, read-only path with the blob's bytes. Raises FileNotFoundError."""

    def exists(self, sha256: str) -> bool:
        """Return whether the blob is stored."""

    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not there is harmless."""
