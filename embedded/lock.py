"""One stack per data directory: an advisory lock on a file that also says who holds it."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.clock import monotonic_s
from core.errors import ConflictError

_FILE = "embedded.lock"
_POLL_S = 0.1


class DataDirBusyError(ConflictError):
    """Another stack works in this data directory."""

    code = "data_dir_busy"


@dataclass(frozen=True)
class Owner:
    """Who holds a data directory.

    Attributes:
        pid: the launcher.
        url: base URL of its API, without a slash at the end.
    """

    pid: int
    url: str


class DataDirLock:
    """An exclusive `flock` on a data directory.

    The lock belongs to the open file, so whoever inherits `fd` keeps it: the launcher's children
    hold it until the last of them has ended, even where the launcher itself was killed.
    """

    def __init__(self, data_dir: Path) -> None:
        """Create the directory and its lock file; take nothing yet."""
        data_dir.mkdir(parents=True, exist_ok=True)
        self._data_dir = data_dir
        # Never unlinked: a second stack could otherwise lock a file that nobody else sees.
        self.fd = os.open(data_dir / _FILE, os.O_RDWR | os.O_CREAT, 0o600)

    def acquire(self, *, timeout_s: float, say: Callable[[str], None]) -> None:
        """Take the lock.

        Children of a launcher that was killed finish on their own; they are waited for.

        Args:
            timeout_s: how long to wait for such children.
            say: told once when waiting begins.

        Raises:
            DataDirBusyError: a live stack holds it, or leftovers did not end in time.
        """
        deadline = monotonic_s() + timeout_s
        waiting = False
        while not self._try_lock():
            owner = find_owner(self._data_dir)
            if owner is not None and _is_alive(owner.pid):
                raise DataDirBusyError(
                    f"a stack already runs on {self._data_dir} (pid {owner.pid}, {owner.url}); "
                    "stop it, or set IDAT_DATA_DIR to another folder"
                )
            if monotonic_s() > deadline:
                raise DataDirBusyError(
                    f"processes of an earlier stack still hold {self._data_dir}; end them first"
                )
            if not waiting:
                say(f"waiting for the processes of an earlier stack on {self._data_dir} to end")
                waiting = True
            time.sleep(_POLL_S)

    def record_owner(self, owner: Owner) -> None:
        """Write down who holds the lock, for the next one who wants it."""
        content = json.dumps(asdict(owner)).encode()
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, content, 0)

    def release(self) -> None:
        """Let go, as far as this process is concerned."""
        os.close(self.fd)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def find_owner(data_dir: Path) -> Owner | None:
    """Return who last took the data directory, or None if nobody has written it down (yet)."""
    try:
        return Owner(**json.loads((data_dir / _FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
