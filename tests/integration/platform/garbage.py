"""Stores with old blobs in them, and rows that name some."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.platform.collection.naming import ensure_stored
from core.platform.datasets import repository as datasets
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, ModelRow
from core.platform.storage.base import BlobStore
from core.platform.storage.local import LocalStore
from core.types import DatasetId

GRACE_S = 3600.0
DAY_S = 86_400.0


def age(path: Path, age_s: float = 10 * GRACE_S) -> Path:
    """Make a file look as if it had been written so long ago."""
    then_s = time.time() - age_s
    os.utime(path, (then_s, then_s))
    return path


def put_old(store: LocalStore, data: bytes, age_s: float = 10 * GRACE_S) -> str:
    """Store bytes as if so long ago."""
    sha256 = store.put_bytes(data).sha256
    age(store.fetch(sha256), age_s)
    return sha256


def name_archive(session: Session, store: BlobStore, sha256: str) -> DatasetId:
    """A dataset with this archive, as the upload route writes it."""
    ensure_stored(session, store, sha256)
    dataset = datasets.create_dataset(
        session, name="f", seed=0, archive_sha256=sha256, archive_bytes=1, archive_name="f.zip"
    )
    return DatasetId(dataset.id)


def add_named(database: Database, store: BlobStore, sha256: str) -> DatasetId:
    """A committed dataset with this archive."""
    with database.write() as session:
        return name_archive(session, store, sha256)


def delete_long_ago(database: Database, table: type[DatasetRow] | type[ModelRow], key: str) -> None:
    """Delete a row as if a day ago."""
    with database.write() as session:
        session.execute(update(table).where(table.id == key).values(deleted_at=db_now() - DAY_S))


def find_broken_archives(database: Database, store: BlobStore) -> list[str]:
    """The oracle: archives that a dataset still needs and the store has lost."""
    with database.read() as session:
        needed = session.scalars(
            select(DatasetRow.archive_sha256).where(
                DatasetRow.deleted_at.is_(None), DatasetRow.state != "invalid"
            )
        )
        return [sha256 for sha256 in set(needed) if not store.exists(sha256)]


def count(database: Database, table: type) -> int:
    """Rows of a table."""
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


class PausingStore(LocalStore):
    """A store that lets something happen at the last moment before a deletion."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before_deletion: Callable[[], None] | None = None

    def delete(self, sha256: str) -> None:
        if self.before_deletion is not None:
            meanwhile, self.before_deletion = self.before_deletion, None
            meanwhile()
        super().delete(sha256)


def wait_a_moment(is_done: Callable[[], bool]) -> None:
    """Give another thread the time that it needs, if nothing holds it up."""
    for _ in range(30):
        if is_done():
            return
        threading.Event().wait(0.01)
