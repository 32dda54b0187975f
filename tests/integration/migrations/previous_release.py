"""A process of the release before: it sends the very statements that this sent, and nothing else.

`release_0004.json` holds them, recorded from the code of that release (`record_release.py`), so
that no checkout of it is needed. They make up one life: a dataset and three jobs, with everything
that API, supervisors and sweeps do to them.
"""

import json
import sqlite3
import threading
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

RECORDED = Path(__file__).with_name("release_0004.json")
#: What the recording calls its rows.
_RECORDED_LIFE = "LIFE"
#: How the three jobs of a life end: state and number of attempts.
ENDS = {
    "ftjob_first": ("succeeded", 3),
    "ftjob_second": ("cancelled", 1),
    "ftjob_third": ("failed", 1),
}


class OldProcess(threading.Thread):
    """Lives one life after the other on a connection of its own, until told to stop.

    Attributes:
        lives: how many it has ended.
        fault: what broke it.
    """

    def __init__(self, url: str) -> None:
        super().__init__(name="previous-release")
        self._url = url
        self._is_to_stop = threading.Event()
        self._progress = threading.Condition()
        self.lives = 0
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            with _connect(self._url) as connection:
                while not self._is_to_stop.is_set():
                    _live(connection, self.lives)
                    with self._progress:
                        self.lives += 1
                        self._progress.notify_all()
        except Exception as error:  # noqa: BLE001 - raised again by those who wait for it
            with self._progress:
                self.fault = error
                self._progress.notify_all()

    def wait_for_lives(self, count: int) -> None:
        """Wait until it has ended so many more."""
        with self._progress:
            goal = self.lives + count
            assert self._progress.wait_for(lambda: self.fault or self.lives >= goal, timeout=120)
        self.raise_fault()

    def stop(self) -> None:
        """Let it end the life that it is in."""
        self._is_to_stop.set()
        self.join(timeout=120)
        assert not self.is_alive(), "the process of the release before hangs"
        self.raise_fault()

    def raise_fault(self) -> None:
        if self.fault is not None:
            raise self.fault


def _connect(url: str) -> Any:
    if url.startswith("sqlite"):
        connection = sqlite3.connect(
            url.removeprefix("sqlite:///"), timeout=15, isolation_level=None
        )
        connection.execute("PRAGMA foreign_keys=ON")
        return _Closing(connection)
    # As the driver has it by default: statements are prepared after the fifth time.
    return psycopg.connect(url, autocommit=True)


class _Closing:
    """A SQLite connection whose block ends with its end, as psycopg's does."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_error: object) -> None:
        self._connection.close()


@cache
def _read_recording() -> dict[str, list[dict[str, Any]]]:
    recording: dict[str, list[dict[str, Any]]] = json.loads(RECORDED.read_text())
    return recording


def _live(connection: Any, number: int) -> None:
    kind = "sqlite" if isinstance(connection, sqlite3.Connection) else "postgresql"
    for step in _read_recording()[kind]:
        try:
            connection.execute(step["begin"] or "BEGIN")
            for statement in step["statements"]:
                cursor = connection.execute(
                    statement["sql"], _rename(statement["parameters"], str(number))
                )
                if cursor.description is not None:
                    cursor.fetchall()
            connection.execute("COMMIT")
        except Exception as error:
            error.add_note(f"life {number}, step {step['step']!r}")
            raise


def _rename(value: Any, life: str) -> Any:
    match value:
        case str():
            return value.replace(_RECORDED_LIFE, life)
        case list():
            return [_rename(each, life) for each in value]
        case dict():
            return {name: _rename(each, life) for name, each in value.items()}
        case _:
            return value
