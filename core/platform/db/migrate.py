"""Bring a database's schema to the newest revision, while other processes use it.

Processes that migrate at once take turns. Those that serve and work meanwhile are never made to
wait for long: a migration that cannot have a table in a moment lets go of everything and tries
again, as whoever asks for a table after it would queue behind it.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.platform.db.engine import Database

logger = logging.getLogger(__name__)

#: The revisions ship beside `core`, in the checkout as in the images.
_MIGRATIONS = Path(__file__).parents[3] / "migrations"
#: Any constant will do, as long as every release uses the same.
_ADVISORY_LOCK = 0x1DA7_0001
#: Longest wait for a table, and so the longest that anybody else waits behind it. Less than a
#: second, after which PostgreSQL looks for deadlocks and may break off the others.
_LOCK_TIMEOUT_MS = 800
_LOCK_PAUSE_S = 1.0
_LOCK_PATIENCE_S = 300.0
#: lock_not_available and deadlock_detected
_LOCK_STATES = frozenset({"55P03", "40P01"})


def upgrade_to_head(url: str) -> None:
    """Run every revision that the database has not seen yet, in one transaction.

    Processes that start together wait for the first of them; the others find nothing to do, and nor
    does a process of an older release.

    Args:
        url: SQLAlchemy URL, as `core.platform.db.engine.Database` takes it.

    Raises:
        OperationalError: a transaction kept a table for minutes; nothing has been changed.
    """
    _run(url, _upgrade)


def downgrade_to(url: str, revision: str) -> None:
    """Undo revisions down to the one named; `base` drops every table."""
    _run(url, lambda config: command.downgrade(config, revision))


def find_revision(session: Session) -> str | None:
    """Return the revision that the database is at, or None for an empty database."""
    return MigrationContext.configure(session.connection()).get_current_revision()


@cache
def head_revision() -> str:
    """Return the newest revision that this code knows.

    Raises:
        RuntimeError: the `migrations` folder does not lie beside `core`, or is empty.
    """
    head = ScriptDirectory.from_config(_build_config()).get_current_head()
    if head is None:
        raise RuntimeError(f"there are no revisions in {_MIGRATIONS}")
    return head


def is_workable(revision: str | None) -> bool:
    """Return whether this release can work on a schema: its own newest, or a newer release's.

    Revisions only add, so that the release before goes on working beside each of them. A schema of
    an older release lacks what this one reads.
    """
    if revision is None:
        return False
    return revision == head_revision() or _is_newer(revision)


def _is_newer(revision: str) -> bool:
    # Revisions are numbered with as many digits each.
    return revision > head_revision()


@contextmanager
def migration_connection(url: str) -> Iterator[Connection]:
    """Open a transaction that holds the migration lock until it commits at the end of the block."""
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                with _sqlite_transaction(connection):
                    yield connection
            else:
                with connection.begin():
                    # The wait for the lock is as long as the other process's migration.
                    connection.execute(text("SET LOCAL statement_timeout = 0"))
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
                    connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"))
                    yield connection
    finally:
        database.dispose()


@contextmanager
def _sqlite_transaction(connection: Connection) -> Iterator[None]:
    # Copying a table, as SQLite's ALTER needs it, drops the old one; with foreign keys on that
    # would delete or refuse the rows that point at it. The pragma works outside transactions only,
    # and so goes past SQLAlchemy, whose every statement begins one.
    raw: Any = connection.connection.driver_connection
    raw.execute("PRAGMA foreign_keys=OFF")
    # BEGIN IMMEDIATE (see `Database`): the write lock is the migration lock.
    with connection.begin():
        yield
        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if dangling:
            raise RuntimeError(f"the migration left dangling references: {dangling[:5]}")


def _upgrade(config: Config) -> None:
    connection: Connection = config.attributes["connection"]
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is not None and _is_newer(revision):
        logger.info("the schema is at revision %s of a newer release; left as it is", revision)
        return
    command.upgrade(config, "head")


def _run(url: str, action: Callable[[Config], None]) -> None:
    """Run an action on the migration connection, again for as long as others hold what it needs."""
    deadline_s = monotonic_s() + _LOCK_PATIENCE_S
    while True:
        try:
            with migration_connection(url) as connection:
                config = _build_config()
                config.attributes["connection"] = connection
                action(config)
        except OperationalError as error:
            if not _is_lock_conflict(error) or monotonic_s() > deadline_s:
                raise
            logger.info("others use a table that is to be changed; trying again: %s", error.orig)
            time.sleep(_LOCK_PAUSE_S)
        else:
            return


def _is_lock_conflict(error: OperationalError) -> bool:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return cause.sqlite_errorcode == sqlite3.SQLITE_BUSY
    return getattr(cause, "sqlstate", None) in _LOCK_STATES


def _build_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
