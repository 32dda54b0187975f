"""The memory that the jobs of one worker share: who has how much, and what is left.

What a running job needs stands in a file that is locked for as long as the job runs, as its slot
is (`worker.slots`), so that no crash can keep memory taken. Claims of one worker are made one after
the other, under a lock of their own: two at once would both take what is left.
"""

import fcntl
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from core.settings import Settings

logger = logging.getLogger(__name__)

_QUERY = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S = 10.0
_MIB = 1 << 20


class SharedMemory:
    """What one worker has, and what its running jobs have taken of it."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        """Take a worker's folder, and how much its jobs share.

        Args:
            folder: where the worker keeps its locks.
            total_bytes: what they share.
        """
        self._folder = folder
        self._total_bytes = total_bytes

    @contextmanager
    def hold_claims(self) -> Iterator[None]:
        """Keep the worker's other processes from claiming for the length of the block.

        What follows is to be called inside of one.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "claims.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def find_free_bytes(self) -> int | None:
        """Return what is left, or None when nothing runs: then any job may start."""
        found = [_read_need(path) for path in self._folder.glob("need-*.lock")]
        needs = [need for need in found if need is not None]
        return max(0, self._total_bytes - sum(needs)) if needs else None

    def take(self, slot: int, need_bytes: int) -> int:
        """Note what the job on a slot needs, until the descriptor that is returned is closed."""
        path = self._folder / f"need-{slot}.lock"
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, str(need_bytes).encode())
        return descriptor


def _read_need(path: Path) -> int | None:
    """Return what the job of a slot needs, None if none runs there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(path.read_text())
    else:
        return None  # whoever wrote it has ended
    finally:
        os.close(descriptor)


def find_total_bytes(settings: Settings) -> int | None:
    """Return the memory that a worker's jobs share, or None if there is nothing to share."""
    if settings.worker_memory_bytes:
        return settings.worker_memory_bytes
    return None if settings.device == "cpu" else _find_gpu_bytes()


@cache
def _find_gpu_bytes() -> int | None:
    """Return the memory of the smallest GPU of this host, without loading torch; None without one.

    The smallest: which of them the trainers will see is not known here.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - a fixed command
            _QUERY, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("no GPU's memory is known, jobs share none: %s", error)
        return None
    sizes = [int(line) * _MIB for line in answer.split() if re.fullmatch(r"[0-9]+", line)]
    return min(sizes, default=None)
