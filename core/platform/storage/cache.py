"""Local copies of blobs that lie elsewhere: bounded, shared by the processes of a data directory.

What keeps a reader safe from eviction:

* **An open file or mapping stays readable** after its name is removed; that is POSIX. `open`
  returns one, and starts over when the name went between finding and opening it.
* **A path stays** when it is the caller's own: `link` makes a hard link in the caller's folder,
  a second name of the same bytes that eviction does not know. A file with a second name is not
  evicted at all, as this would free nothing.
* A path returned by `get` alone may go as soon as another blob needs the room.

An entry appears under its name by a rename, after its digest was checked and its bytes flushed.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from core.clock import monotonic_s, now_s
from core.errors import StorageFullError
from core.platform.storage.errors import StoreUnavailableError
from core.platform.storage.files import move_into_place, remove_old_files, typed_disk_errors

_POLL_S = 0.02
#: How often a name may go between finding and using it. Once is rare already.
_TRIES = 10

#: Writes a blob's bytes, checked, to the path that it is given.
Download = Callable[[Path], None]


class FileCache:
    """A folder of blobs, `<first two hex digits>/<sha256>`, least recently used first out."""

    def __init__(self, root: Path, max_bytes: int, *, turn_s: float = 120.0) -> None:
        """Create the folder if it is missing.

        Args:
            root: the folder; hard links work within its file system only.
            max_bytes: bound on the files here. A larger blob, and files with a second name
                elsewhere, may exceed it for as long as they are in use.
            turn_s: how long to wait for whoever is fetching the same blob. Its process may be
                stopped, so the wait has an end; what then follows is a second download, harmless
                but for the traffic.
        """
        self._root = root
        self._max_bytes = max_bytes
        self._turn_s = turn_s
        self._incoming = root / "incoming"
        self._turns = root / "turns"
        for folder in (self._incoming, self._turns):
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, sha256: str, download: Download) -> Path:
        """Return a path with the blob's bytes, downloaded if need be; open it at once.

        Threads and processes that want the same blob at the same time download it once.

        Raises:
            StorageFullError: the disk is full, even without anything else in this cache.
        """
        if (found := self._find(sha256)) is not None:
            return found
        with self._take_turn(sha256[:2]):
            if (found := self._find(sha256)) is not None:
                return found
            try:
                return self._add(sha256, download)
            except StorageFullError:
                # The bound was set too high for this disk: give back all that can be.
                if self._evict(0) == 0:
                    raise
            return self._add(sha256, download)

    def open(self, sha256: str, download: Download) -> BinaryIO:
        """Open a blob for reading; the caller closes it."""
        for _ in range(_TRIES):
            path = self.get(sha256, download)
            with contextlib.suppress(FileNotFoundError):
                return path.open("rb")
        raise _too_small()

    def link(self, sha256: str, folder: Path, download: Download) -> Path:
        """Give a blob a second name in a folder of the caller's, who removes it.

        On another file system it is a copy.
        """
        target = folder / sha256
        for _ in range(_TRIES):
            path = self.get(sha256, download)
            try:
                target.hardlink_to(path)
            except FileExistsError:
                return target
            except FileNotFoundError:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                    raise
                with contextlib.suppress(FileNotFoundError):
                    return _copy(path, target)
            else:
                return target
        raise _too_small()

    def adopt(self, path: Path, sha256: str) -> None:
        """Take over a file whose digest is known; where that would need a copy, remove it."""
        try:
            size_bytes = path.stat().st_size
            if size_bytes <= self._max_bytes:
                self.make_room(size_bytes)
                move_into_place(path, self._path(sha256))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                raise
        path.unlink(missing_ok=True)

    def discard(self, sha256: str) -> None:
        """Remove a blob; whoever has it open or linked keeps it."""
        self._path(sha256).unlink(missing_ok=True)

    def make_room(self, size_bytes: int) -> None:
        """Evict until so many more bytes stay within the bound, or nothing is left to evict."""
        self._evict(max(0, self._max_bytes - size_bytes))

    def remove_abandoned(self, *, older_than_s: float) -> int:
        """Remove the partial files of killed processes; return how many."""
        return remove_old_files(self._incoming, older_than_s=older_than_s)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def _find(self, sha256: str) -> Path | None:
        """Return a blob's path, and note that it was used just now."""
        path = self._path(sha256)
        try:
            # The access time is the cache's own mark: file systems keep it loosely or not at all.
            os.utime(path, (now_s(), path.stat().st_mtime))
        except FileNotFoundError:
            return None
        return path

    def _add(self, sha256: str, download: Download) -> Path:
        partial, final = self._incoming / uuid.uuid4().hex, self._path(sha256)
        with typed_disk_errors(partial):
            download(partial)
            move_into_place(partial, final)
        return final

    def _evict(self, keep_bytes: int) -> int:
        """Remove the least recently used files until at most so many bytes stay; return how many.

        Two processes may do this at once: both may remove more than was needed, nothing worse.
        """
        entries: list[tuple[float, int, Path, bool]] = []
        for folder in self._root.glob("[0-9a-f][0-9a-f]"):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    is_alone = status.st_nlink == 1
                    entries.append((status.st_atime, status.st_size, path, is_alone))
        total_bytes = sum(size_bytes for _, size_bytes, _, _ in entries)
        removed = 0
        for _, size_bytes, path, is_alone in sorted(entries):
            if total_bytes <= keep_bytes:
                break
            if is_alone:
                path.unlink(missing_ok=True)
                total_bytes -= size_bytes
                removed += 1
        return removed

    @contextlib.contextmanager
    def _take_turn(self, name: str) -> Iterator[None]:
        """Hold one of 256 locks, that a killed process gives up by itself."""
        deadline_s = monotonic_s() + self._turn_s
        with (self._turns / name).open("wb") as file:
            while not _try_lock(file) and monotonic_s() < deadline_s:
                time.sleep(_POLL_S)
            yield


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy(source: Path, target: Path) -> Path:
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    with typed_disk_errors(partial):
        shutil.copyfile(source, partial)
        partial.replace(target)
    return target


def _too_small() -> StoreUnavailableError:
    return StoreUnavailableError(
        "files leave the local cache faster than they can be opened; raise "
        "IDAT_STORAGE_CACHE_BYTES and try again"
    )
