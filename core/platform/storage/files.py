"""Writing files so that they are whole, durable, or not there."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from core.clock import now_s
from core.errors import StorageFullError

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def typed_disk_errors(partial: Path) -> Iterator[None]:
    """Leave no partial file behind, and name a full disk as what it is."""
    try:
        yield
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                "the disk of the store or of the data directory is full; free space and try again"
            ) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def move_into_place(source: Path, final: Path) -> None:
    """Give a finished file of the same file system its name: read-only, and safe from power cuts.

    Whoever holds an older file of that name open keeps it.
    """
    source.chmod(0o444)
    _fsync(source)
    final.parent.mkdir(exist_ok=True)
    source.replace(final)
    # The rename itself must survive a power cut, or a row could name a missing blob.
    _fsync(final.parent)


def remove_old_files(folder: Path, *, older_than_s: float) -> int:
    """Remove the files of a folder that nobody has written to for so long; return how many."""
    removed = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= now_s() - older_than_s:
                path.unlink()
                removed += 1
    return removed


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
