"""What Alembic runs around the revisions: which database, under which lock, in one transaction.

`core.platform.db.migrate` brings a connection that already holds the migration lock; the `alembic`
command, run by hand, takes one here in the same way.
"""

from alembic import context
from sqlalchemy import Connection

from core.platform.db.base import Base
from core.platform.db.migrate import migration_connection
from core.platform.db.tables import DatasetRow
from core.settings import Settings

#: importing any table has registered them all
_METADATA = Base.metadata
assert DatasetRow.__tablename__ in _METADATA.tables


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=_METADATA,
        # SQLite cannot alter a table in place: Alembic copies it into a new one.
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run_offline(url: str) -> None:
    context.configure(url=url, target_metadata=_METADATA, literal_binds=True, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_given: Connection | None = context.config.attributes.get("connection")
if context.is_offline_mode():
    _run_offline(Settings().resolved_database_url)
elif _given is not None:
    _run(_given)
else:
    with migration_connection(Settings().resolved_database_url) as _connection:
        _run(_connection)
