"""Stacks for the end-to-end tests: embedded, and with PostgreSQL and Redis where there are any."""

import os
import uuid
from collections.abc import Iterator

import psycopg
import pytest
import redis
from psycopg import sql

from tests.e2e.stack import Stack, build_archive

_POSTGRES_URL = os.environ.get(  # noqa: TID251 - tests find their servers here, not in the settings
    "IDAT_TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/test"
)
_REDIS_URL = os.environ.get(  # noqa: TID251 - as above
    "IDAT_TEST_REDIS_URL", "redis://127.0.0.1:6379/11"
)
_BROKER_KEYS = ("celery", "_kombu.*", "unacked*")


@pytest.fixture(scope="module", params=["embedded", "scaled"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """An API; tests start the workers that they need."""
    data_dir = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        yield from _run(Stack(data_dir))
        return
    name = f"idat_e2e_{uuid.uuid4().hex[:12]}"
    try:
        server = psycopg.connect(_POSTGRES_URL, autocommit=True, connect_timeout=2)
    except psycopg.OperationalError as error:
        pytest.skip(f"PostgreSQL at IDAT_TEST_DATABASE_URL cannot be reached: {error}")
    broker = redis.Redis.from_url(_REDIS_URL, socket_connect_timeout=2)
    try:
        broker.ping()
    except redis.ConnectionError as error:
        server.close()
        pytest.skip(f"Redis at IDAT_TEST_REDIS_URL cannot be reached: {error}")
    database_url = _POSTGRES_URL.rsplit("/", 1)[0] + f"/{name}"
    with server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield from _run(Stack(data_dir, database_url=database_url, broker_url=_REDIS_URL))
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            for pattern in _BROKER_KEYS:
                for key in broker.scan_iter(pattern):
                    broker.delete(key)
            broker.close()


def _run(stack: Stack) -> Iterator[Stack]:
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def archive() -> bytes:
    """A zip without splits."""
    return build_archive()
