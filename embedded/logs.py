"""Log files of the children: each child writes its own file, the launcher reads along.

The children do not write into a pipe to the launcher: a slow terminal would then stop them, and
they could not say their last words when the launcher is gone.
"""

from collections import deque
from pathlib import Path
from typing import BinaryIO

_ROTATE_BYTES = 16 * 2**20
_READ_BYTES = 2**16


class ChildLog:
    """One child's log file, appended to by the child and followed by the launcher."""

    def __init__(self, path: Path) -> None:
        """Start following at the file's present end; an overgrown file is put aside first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > _ROTATE_BYTES:
            path.replace(path.with_suffix(path.suffix + ".1"))
        path.touch()
        self.path = path
        self._offset = path.stat().st_size
        self._partial = b""

    def open_for_child(self) -> BinaryIO:
        """Return the file opened for appending, as a child's standard output."""
        return self.path.open("ab")

    def read_lines(self) -> list[str]:
        """Return the complete lines written since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(_READ_BYTES)
        self._offset += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def read_tail(self, count: int) -> list[str]:
        """Return the last `count` lines of the file."""
        with self.path.open(errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
