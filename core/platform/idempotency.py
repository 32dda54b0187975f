"""Answers given under an `Idempotency-Key`: the same request sent twice creates one resource.

The key's row is written in the transaction that creates the resource, so there is never one without
the other, and of two requests in flight one waits for the other or fails on the primary key.
"""

from sqlalchemy.orm import Session

from core.errors import InvalidError
from core.platform.db.tables import IdempotencyRow


class IdempotencyKeyReusedError(InvalidError):
    """The key has been used for a different request."""

    code = "idempotency_key_reused"


def find_resource(session: Session, key: str, request_sha256: str) -> str | None:
    """Return the id that this very request has created before, or None.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.
    """
    row = session.get(IdempotencyRow, key)
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise IdempotencyKeyReusedError(
            f"the Idempotency-Key {key!r} was used for a different request, which created "
            f"{row.resource_id}; use a new key for a new request"
        )
    return row.resource_id


def remember(session: Session, key: str, request_sha256: str, resource_id: str) -> None:
    """Write down what a request has created.

    Raises:
        sqlalchemy.exc.IntegrityError: another request with this key was faster.
    """
    row = IdempotencyRow(key=key, request_sha256=request_sha256, resource_id=resource_id)
    session.add(row)
    session.flush()
