"""The results file: one JSON line for each dataset, method and seed, appended when it is known."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import ConflictError, InvalidError

FORMAT = 1
#: What names a row. Two rows that agree in all of it are the same result.
KEY = ("dataset", "method", "seed", "mode", "where", "settings", "data_digest", "weights")

Row = dict[str, Any]


class ResultsError(InvalidError):
    """The file holds something else than results."""

    code = "invalid_results"


class ResultsFile:
    """The results file, held by one process for as long as the block lasts.

    A line that a killed process left half-written is removed.
    """

    def __init__(self, path: Path) -> None:
        """Name the file, which need not exist."""
        self.path = path
        self.rows: list[Row] = []
        self._by_key: dict[str, Row] = {}
        self._file: BufferedRandom | None = None

    def __enter__(self) -> Self:
        """Open and lock the file and read its rows.

        Raises:
            ConflictError: another process writes it.
            ResultsError: a line is no result.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.seek(0)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.rows = _parse(whole, self.path)
            self._by_key = {_normalise(row): row for row in self.rows}
            if len(whole) < len(content):
                file.truncate(len(whole))
        except BlockingIOError as error:
            file.close()
            raise ConflictError(
                f"another run is writing {self.path}; wait for it, or name another file with --out"
            ) from error
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """Return the row of this `KEY`, or None."""
        return self._by_key.get(_normalise(key))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on the disk when this returns."""
        assert self._file is not None, "entered"
        line = json.dumps({"format": FORMAT, **row}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        known: Row = json.loads(line)
        self.rows.append(known)
        self._by_key[_normalise(known)] = known


def read_results(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of some results files, which may be growing.

    Raises:
        ResultsError: a file is not there, or a line is no result.
    """
    rows = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
        rows += _parse(content[: content.rfind(b"\n") + 1], path)
    return rows


def _parse(content: bytes, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
            is_row = isinstance(row, dict) and row.get("format") == FORMAT
        except ValueError:
            is_row = False
        if not is_row or not row.keys() >= set(KEY):
            raise ResultsError(
                f"{path}:{number} is not a result of this benchmark; name another file"
            )
        rows.append(row)
    return rows


def _normalise(row: Mapping[str, Any]) -> str:
    """Return the key as text; through JSON, so that a tuple equals the list that it becomes."""
    return json.dumps([row[name] for name in KEY], sort_keys=True)
