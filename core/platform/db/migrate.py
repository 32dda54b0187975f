"""Bring a database's schema to the newest revision, safely from several processes at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from core.platform.db.engine import Database

#: The revisions ship beside `core`, in the checkout as in the images.
_MIGRATIONS = Path(__file__).parents[3] / "migrations"
#: Any constant will do, as long as every release uses the same.
_ADVISORY_LOCK = 0x1DA7_0001


def upgrade_to_head(url: str) -> None:
    """Run every revision that the database has not seen yet, in one transaction.

    Processes that start together wait for the first of them; the others find nothing to do.

    Args:
        url: SQLAlchemy URL, as `core.platform.db.engine.Database` takes it.
    """
    _run(url, lambda config: command.upgrade(config, "head"))


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


def _run(url: str, action: Any) -> None:  # noqa: ANN401 - a lambda over Alembic's untyped commands
    with migration_connection(url) as connection:
        config = _build_config()
        config.attributes["connection"] = connection
        action(config)


def _build_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config
