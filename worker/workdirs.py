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
    descriptor = _make_locked(workdir)
    try:
        yield workdir
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
        os.close(descriptor)


def remove_abandoned(scratch_dir: Path) -> list[Path]:
    """Remove the folders whose holder has died; return them."""
    removed = []
    for workdir in scratch_dir.glob(f"{_PREFIX}*"):
        try:
            # Created where it is missing: its maker may have died before it could lock the folder.
            descriptor = os.open(workdir / _LOCK, os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:
            continue  # removed by its holder this very moment
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_lock_of(descriptor, workdir):
                shutil.rmtree(workdir, ignore_errors=True)
                removed.append(workdir)
        except BlockingIOError:
            continue
        finally:
            # Not before the folder is gone: who waits for this lock would use a vanishing folder.
            os.close(descriptor)
    return removed


def _make_locked(workdir: Path) -> int:
    """Make an empty folder and lock it; return the descriptor that holds the lock.

    A sweep may meet the folder before it is locked and take it for abandoned; then it is made anew.
    """
    while True:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(workdir / _LOCK, os.O_CREAT | os.O_RDWR)
        except (FileExistsError, FileNotFoundError):
            # It was there and went away between two looks: mkdir itself looks twice.
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_lock_of(descriptor, workdir):
            break
        os.close(descriptor)
    for leftover in workdir.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover.name != _LOCK:
            leftover.unlink()
    return descriptor


def _is_lock_of(descriptor: int, workdir: Path) -> bool:
    """Return whether the opened lock is still the folder's, rather than one removed with it."""
    try:
        return os.path.samestat(os.fstat(descriptor), (workdir / _LOCK).stat())
    except FileNotFoundError:
        return False
