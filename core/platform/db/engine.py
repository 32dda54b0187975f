"""Engine and transactions, for SQLite and PostgreSQL alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from core.platform.db.journal import choose_wal

#: The database is out of reach or too busy; the same statement may succeed later.
TRANSIENT_ERRORS = (OperationalError, InterfaceError)

_SQLITE_BUSY_TIMEOUT_MS = 15_000
_CONNECT_TIMEOUT_S = 5
#: A statement that takes longer means a sick database; the caller must learn of it in time to give
#: its lease up.
_STATEMENT_TIMEOUT_MS = 15_000


class Database:
    """An engine and the two kinds of transaction that the project uses.

    A request or a task step is one transaction, opened here at the edge; nothing else commits.
    """

    def __init__(self, url: str) -> None:
        """Connect lazily.

        Args:
            url: SQLAlchemy URL; `sqlite:///…` or `postgresql://…` (psycopg 3).
        """
        self.engine = _build_engine(url)
        self._writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        self._reader = self.engine.execution_options(sqlite_begin="BEGIN DEFERRED")

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that commits at the end of the block and rolls back on an exception.

        SQLite takes its write lock at once: a transaction that first reads and then writes would
        otherwise fail with SQLITE_BUSY that no timeout can wait out.
        """
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction for reading; on SQLite it blocks no writer."""
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read_columns(self) -> Iterator[Connection]:
        """Open a transaction for reading columns, without a session, which costs more than they."""
        with self._reader.connect() as connection:
            yield connection

    def dispose(self) -> None:
        """Close all pooled connections."""
        self.engine.dispose()


def _build_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": _SQLITE_BUSY_TIMEOUT_MS / 1000})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(
        parsed,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "options": f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )


def _prepare_sqlite(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
    # The driver's own implicit BEGIN would come too late and be a deferred one.
    raw: Any = connection
    raw.isolation_level = None
    cursor = connection.cursor()
    choose_wal(cursor, time_limit_s=_SQLITE_BUSY_TIMEOUT_MS / 1000)
    # FULL: a committed job survives a power cut, not only a crash of the process.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_BUSY_TIMEOUT_MS}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(
        connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE")
    )
