"""Working folders of attempts. Whoever dies leaves one behind; the next sweep removes it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "attempt-"
_LOCK = "lock"


@contextmanager
def hold_workdir(scratch_dir: Path, row_id: str, attempt: int) -> Iterator[Path]:
    """Make the working folder of an attempt, and remove it at the end of the block."""
    workdir = scratch_dir / f"{_PREFIX}{row_id}-{attempt}"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    descriptor = os.open(workdir / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield workdir
    finally:
        os.close(descriptor)
        shutil.rmtree(workdir, ignore_errors=True)


def remove_abandoned(scratch_dir: Path) -> list[Path]:
    """Remove the folders whose holder has died; return them."""
    removed = []
    for workdir in scratch_dir.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(workdir / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            # Either being made this very moment or removed by its holder; the next sweep sees.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
        shutil.rmtree(workdir, ignore_errors=True)
        removed.append(workdir)
    return removed
