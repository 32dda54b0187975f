"""The history of the database's schema, as Alembic revisions. Run by `core.platform.db.migrate`."""
