"""Stacks of the fault tests. A scaled one has a Redis of its own: the tests freeze and kill it."""

from collections.abc import Iterator

import pytest

from tests.e2e.faults.own_redis import OwnRedis
from tests.e2e.stack import Stack
from tests.fixtures.postgresql import throwaway_postgresql


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    """A Redis server of this module's own."""
    server = OwnRedis(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def scaled_stack(tmp_path_factory: pytest.TempPathFactory, own_redis: OwnRedis) -> Iterator[Stack]:
    """An API on PostgreSQL and Redis."""
    with throwaway_postgresql() as url:
        data_dir = tmp_path_factory.mktemp("scaled")
        yield from run_stack(Stack(data_dir, database_url=url, broker_url=own_redis.url))


@pytest.fixture(scope="module")
def embedded_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API on SQLite, without a broker."""
    yield from run_stack(Stack(tmp_path_factory.mktemp("embedded")))


@pytest.fixture(scope="module", params=["embedded", "scaled"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """An API on either kind of back end; tests start the workers that they need."""
    stack: Stack = request.getfixturevalue(f"{request.param}_stack")
    return stack


def run_stack(stack: Stack, **changes: str) -> Iterator[Stack]:
    """Start a stack, with these variables changed, and end it."""
    stack.environment.update(IDAT_ROLES="control", **changes)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
