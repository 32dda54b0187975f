"""Deleting the blobs that no row names."""

import logging
from dataclasses import dataclass

from sqlalchemy import select

from core.clock import monotonic_s
from core.platform.collection.naming import try_lock_to_delete
from core.platform.collection.references import is_referenced, read_references
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.storage.base import BlobStore, StoredBlob

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How much one walk may delete before it leaves the rest to the next.

    Attributes:
        blobs: at most so many.
        time_s: no further one after so long. Only deleting is counted: a walk that could not get
            past what is to be kept would never delete anything.
    """

    blobs: int = 1000
    time_s: float = 30.0


@dataclass
class Collection:
    """What one walk through the store has done.

    Attributes:
        seen: blobs met.
        seen_bytes: their size.
        deleted: blobs deleted.
        deleted_bytes: their size.
        failed: blobs that the store would not delete.
        is_complete: whether the walk came to the end of the store.
    """

    seen: int = 0
    seen_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    failed: int = 0
    is_complete: bool = False


def collect_blobs(
    database: Database,
    store: BlobStore,
    result: Collection,
    *,
    grace_s: float,
    budget: Budget | None = None,
) -> None:
    """Walk through the store and delete what no row names and nobody is about to name.

    Any number may walk at once; each blob is deleted, and counted, by one of them. A walk that dies
    or ends early leaves a store that the next one finds like any other.

    Args:
        database: the truth.
        store: where the blobs are.
        result: is told what is done as it is done, so that a fault on the way hides nothing.
        grace_s: blobs put more recently are spared: their row may be about to be written.
        budget: how much to delete at most.

    Raises:
        AppError, OSError: the store cannot be listed, or is out of reach.
    """
    budget = budget or Budget()
    references: set[bytes] | None = None
    with database.read() as session:
        # Not this machine's clock, which may be a day off.
        newest_s = session.scalars(select(db_now())).one() - grace_s
    spent_s = 0.0
    for blob in store.iter_blobs():
        result.seen += 1
        result.seen_bytes += blob.size_bytes
        if blob.modified_at_s > newest_s:
            continue
        if references is None:
            with database.read() as session:
                references = read_references(session)
        if bytes.fromhex(blob.sha256) in references:
            continue
        started_s = monotonic_s()
        _try_to_delete(database, store, blob, result)
        spent_s += monotonic_s() - started_s
        if result.deleted >= budget.blobs or spent_s > budget.time_s:
            return
    result.is_complete = True


def _try_to_delete(
    database: Database, store: BlobStore, blob: StoredBlob, result: Collection
) -> None:
    try:
        is_deleted = collect_blob(database, store, blob.sha256)
    except OSError as error:
        # One that cannot be deleted must not keep the others.
        logger.warning("the store did not delete %s: %s", blob.sha256, error)
        result.failed += 1
        return
    if is_deleted:
        logger.info("collected %s, %d bytes that no row names", blob.sha256, blob.size_bytes)
        result.deleted += 1
        result.deleted_bytes += blob.size_bytes


def collect_blob(database: Database, store: BlobStore, sha256: str) -> bool:
    """Delete a blob unless a row names it or is about to; return whether this call deleted it.

    The lock is held until the blob is gone: who names it afterwards sees that it is missing.
    """
    with database.write() as session:
        if not try_lock_to_delete(session, sha256) or is_referenced(session, sha256):
            return False
        if not store.exists(sha256):
            return False
        store.delete(sha256)
        return True
