"""The lock between those who name a blob in a row and those who delete blobs that no row names."""

import errno

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.platform.storage.base import BlobStore

#: Hexadecimal digits of a digest that make a lock's key: 60 bits, a positive BIGINT. Two blobs that
#: share them share a lock, which costs a moment.
_KEY_DIGITS = 15


class BlobCollectedError(FileNotFoundError):
    """A blob that a row was about to name has just been collected: store its bytes again."""

    def __init__(self, sha256: str) -> None:
        super().__init__(errno.ENOENT, "collected before a row named it; store it again", sha256)


def ensure_stored(session: Session, store: BlobStore, *digests: str) -> None:
    """Keep blobs from being collected until this transaction ends, and look that they are there.

    Call it in the transaction that writes the row which names them.

    Args:
        session: a write transaction.
        store: where the blobs are.
        digests: their names.

    Raises:
        BlobCollectedError: one is missing.
    """
    has_locks = _begin(session)
    for sha256 in sorted(set(digests)):
        if has_locks:
            session.execute(select(func.pg_advisory_xact_lock_shared(_key(sha256))))
        if not store.exists(sha256):
            raise BlobCollectedError(sha256)


def try_lock_to_delete(session: Session, sha256: str) -> bool:
    """Keep others from naming a blob until this transaction ends; False if somebody is about to.

    Args:
        session: a write transaction; on SQLite it is the only one anyway.
        sha256: the blob.
    """
    if not _begin(session):
        return True
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(_key(sha256)))))


def _begin(session: Session) -> bool:
    """Begin the transaction in the database, and return whether that has locks with keys.

    SQLite has one for all who write, which is taken here: looking at the store needs no statement,
    and would otherwise come before it.
    """
    return session.connection().dialect.name == "postgresql"


def _key(sha256: str) -> int:
    return int(sha256[:_KEY_DIGITS], 16)
