"""Answers given under an `Idempotency-Key`: the same request sent twice creates one resource.

A key is its project's: the same one of another project is another key. The key's row is written in
the transaction that creates the resource, so there is never one without the other, and of two
requests in flight one waits for the other or fails on the primary key.
"""

import hashlib

from sqlalchemy.orm import Session

from core.errors import InvalidError
from core.platform.db.tables import IdempotencyRow
from core.types import DEFAULT_PROJECT


class IdempotencyKeyReusedError(InvalidError):
    """The key has been used for a different request."""

    code = "idempotency_key_reused"


def find_resource(
    session: Session, key: str, request_sha256: str, *, project: str = DEFAULT_PROJECT
) -> str | None:
    """Return the id that this very request of a project has created before, or None.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.
    """
    row = session.get(IdempotencyRow, _qualify(key, project))
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise IdempotencyKeyReusedError(
            f"the Idempotency-Key {key!r} was used for a different request, which created "
            f"{row.resource_id}; use a new key for a new request"
        )
    return row.resource_id


def remember(
    session: Session,
    key: str,
    request_sha256: str,
    resource_id: str,
    *,
    project: str = DEFAULT_PROJECT,
) -> None:
    """Write down what a request has created.

    Raises:
        sqlalchemy.exc.IntegrityError: another request with this key was faster.
    """
    row = IdempotencyRow(
        key=_qualify(key, project), request_sha256=request_sha256, resource_id=resource_id
    )
    session.add(row)
    session.flush()


def _qualify(key: str, project: str) -> str:
    """Return what a project's key is stored as.

    No key of a request holds a space. Those of the default project are stored as they are, as the
    release before does, which knows no other. Of the others a digest is kept, for which the column
    has room: widening it would break the statements that processes of that release have prepared.
    """
    if project == DEFAULT_PROJECT:
        return key
    return f"{project} {hashlib.sha256(key.encode()).hexdigest()}"
