"""Slots: how many things of a kind one worker does at once, whatever its doorbell says.

A slot is a locked file. The operating system drops the lock when its holder dies, so no crash can
lose a slot.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_slot(folder: Path, kind: str, count: int) -> Iterator[int | None]:
    """Hold one of `count` slots of a kind for the length of the block.

    Args:
        folder: where the worker keeps its locks.
        kind: what the slot is for.
        count: how many there are.

    Yields:
        The slot's number, or None when all are taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        descriptor = os.open(folder / f"{kind}-{number}.lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
        finally:
            os.close(descriptor)
    yield None
