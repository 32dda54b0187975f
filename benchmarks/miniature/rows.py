"""The results file: one JSON object a line, appended under a lock, never changed."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from core.errors import InvalidError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return every row; none if there is no file.

    A last line without its line break is what a killed run was writing: it is left out.

    Raises:
        InvalidError: another line is no JSON object.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InvalidError(f"line {number} of {path} is no result; mend it or remove the line")
        rows.append(row)
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row that is on the disk when this returns; other processes may append as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_line(file.fileno())
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _cut_torn_line(descriptor: int) -> None:
    """Remove what follows the last line break: under the lock, nobody is writing it any more."""
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0)
    os.ftruncate(descriptor, whole.rfind(b"\n") + 1)
