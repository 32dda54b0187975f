"""SQLite's write-ahead log, with which readers and the one writer do not wait for each other."""

import sqlite3
import time

from sqlalchemy.engine.interfaces import DBAPICursor

from core.clock import monotonic_s

_RETRY_S = 0.02


def choose_wal(cursor: DBAPICursor, time_limit_s: float) -> None:
    """Switch the file to a write-ahead log, which it stays with.

    While several processes open a new file, SQLite may say at once that it is locked, whatever
    timeout there is: two that both wait for the other would wait for ever.

    Args:
        cursor: Of the connection that was just opened.
        time_limit_s: For how long to try again.

    Raises:
        sqlite3.OperationalError: The file cannot be switched, or stayed locked all that time.
    """
    until_s = monotonic_s() + time_limit_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or monotonic_s() >= until_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return
