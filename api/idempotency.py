"""The `Idempotency-Key` header: create once, answer every repetition with what was created."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.deps import ProjectDep
from api.schemas.fields import IDEMPOTENCY_KEY_PATTERN
from core.errors import ConflictError, NotFoundError
from core.platform.db.engine import Database
from core.platform.idempotency import find_resource, remember

Row = TypeVar("Row")


class ResourceDeletedError(ConflictError):
    """The repeated request has created something that is gone, and shall not create it again."""

    code = "resource_deleted"


#: Header of an answer that repeats an earlier one.
REPLAYED_HEADER = "Idempotent-Replayed"


@dataclass(frozen=True)
class ProjectKey:
    """An `Idempotency-Key`, and the project within which it means something.

    Attributes:
        value: what the caller chose.
        project: the caller's.
    """

    value: str
    project: str


def _read_key(
    project: ProjectDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=IDEMPOTENCY_KEY_PATTERN,
            description="Chosen by the caller, once for each thing to create; makes a repetition "
            "of the request safe.",
        ),
    ] = None,
) -> ProjectKey | None:
    return None if idempotency_key is None else ProjectKey(idempotency_key, project)


IdempotencyKey = Annotated[ProjectKey | None, Depends(_read_key)]


def digest_request(route: str, content: dict[str, Any]) -> str:
    """Return a digest that two requests share if they ask for the same."""
    text = json.dumps([route, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def find_created(
    database: Database, key: ProjectKey | None, digest: str, load: Callable[[Session, str], Row]
) -> Row | None:
    """Return what this request has created before, or None.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.
        ResourceDeletedError: what it created has been deleted.
    """
    if key is None:
        return None
    with database.read() as session:
        resource_id = find_resource(session, key.value, digest, project=key.project)
        return None if resource_id is None else _load(session, key, resource_id, load)


def create_once(
    database: Database,
    key: ProjectKey | None,
    digest: str,
    *,
    create: Callable[[Session], tuple[str, Row]],
    load: Callable[[Session, str], Row],
) -> tuple[Row, bool]:
    """Create a row, or find the one that the same request has created before.

    Args:
        database: where.
        key: the request's key, None if it has none.
        digest: of the request.
        create: inserts the row and returns it with its id.
        load: reads a row by its id.

    Returns:
        The row, and whether it was created just now.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.
        ResourceDeletedError: what it created has been deleted.
    """
    try:
        with database.write() as session:
            if key is not None:
                resource_id = find_resource(session, key.value, digest, project=key.project)
                if resource_id is not None:
                    return _load(session, key, resource_id, load), False
            created_id, row = create(session)
            if key is not None:
                remember(session, key.value, digest, created_id, project=key.project)
            return row, True
    except IntegrityError:
        # On PostgreSQL two requests with one key may both have found nothing; the slower one fails
        # at its insert, after the faster one's commit, and finds that one's row.
        earlier = find_created(database, key, digest, load)
        if earlier is None:
            raise
        return earlier, False


def _load(
    session: Session, key: ProjectKey, resource_id: str, load: Callable[[Session, str], Row]
) -> Row:
    try:
        return load(session, resource_id)
    except NotFoundError as error:
        raise ResourceDeletedError(
            f"the request with the Idempotency-Key {key.value!r} created {resource_id}, which has "
            "been deleted since; use a new key to create it again"
        ) from error
