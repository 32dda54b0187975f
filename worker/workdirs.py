"""Folders of workers and of attempts. Whoever dies leaves one behind; the next sweep removes it.

A folder is its holder's for as long as that holds a lock on a file in it, which no crash can leave
locked. Process ids would not do: containers that share a data directory have the same ones.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Not `worker-`: sweeps of the release before would take the folders under that for theirs.
WORKER_PREFIX = "slots-"

_ATTEMPT_PREFIX = "attempt-"
_LOCK = "lock"
#: What the release before calls a worker's folder, which holds no lock.
_OLD_WORKER_PREFIX = "worker-"


@contextmanager
def hold_workdir(scratch_dir: Path, row_id: str, attempt: int) -> Iterator[Path]:
    """Make the working folder of an attempt, and remove it at the end of the block."""
    workdir = scratch_dir / f"{_ATTEMPT_PREFIX}{row_id}-{attempt}"
    descriptor = _make_locked(workdir)
    try:
        yield workdir
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
        os.close(descriptor)


def hold_worker_folder(folder: Path) -> int:
    """Make a worker's folder, empty; it is the worker's until the descriptor returned is closed.

    Pool processes inherit the lock: for as long as one of them lives, the folder is in use.
    """
    return _make_locked(folder)


def remove_abandoned(scratch_dir: Path) -> list[Path]:
    """Remove the folders of attempts whose holder has died; return them."""
    return [path for path in scratch_dir.glob(f"{_ATTEMPT_PREFIX}*") if _remove_unheld(path)]


def remove_dead_workers(scratch_dir: Path, *, own: Path) -> list[Path]:
    """Remove the folders of workers that have died; return them.

    Args:
        scratch_dir: where workers have their folders.
        own: the caller's, which is spared.
    """
    new = [folder for folder in scratch_dir.glob(f"{WORKER_PREFIX}*") if folder != own]
    old = [
        folder
        for folder in scratch_dir.glob(f"{_OLD_WORKER_PREFIX}*")
        if not _is_alive(folder.name.removeprefix(_OLD_WORKER_PREFIX))
    ]
    return [folder for folder in (*new, *old) if _remove_unheld(folder)]


def _remove_unheld(folder: Path) -> bool:
    """Remove a folder unless somebody holds it; return whether this call removed it."""
    try:
        # Created where it is missing: its maker may have died before it could lock the folder.
        descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
    except FileNotFoundError:
        return False  # removed by its holder this very moment
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_lock_of(descriptor, folder):
            return False
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        # Not before the folder is gone: who waits for this lock would use a vanishing folder.
        os.close(descriptor)
    return True


def _make_locked(folder: Path) -> int:
    """Make an empty folder and lock it; return the descriptor that holds the lock.

    A sweep may meet the folder before it is locked and take it for abandoned; then it is made anew.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
        except (FileExistsError, FileNotFoundError):
            # It was there and went away between two looks: mkdir itself looks twice.
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_lock_of(descriptor, folder):
            break
        os.close(descriptor)
    for leftover in folder.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover.name != _LOCK:
            leftover.unlink()
    return descriptor


def _is_lock_of(descriptor: int, folder: Path) -> bool:
    """Return whether the opened lock is still the folder's, rather than one removed with it."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat())
    except FileNotFoundError:
        return False


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
