"""A ring through a real Redis reaches a worker's queue, where one can be reached."""

import json
import os
from collections.abc import Iterator

import pytest
import redis

from core.platform.doorbell import TRAIN_TASK, VALIDATE_TASK, build_doorbell

_SERVER_URL = os.environ.get(  # noqa: TID251 - tests find their servers here, not in the settings
    "IDAT_TEST_REDIS_URL", "redis://127.0.0.1:6379/0"
)
#: Numbered databases are all that keeps tests apart from whatever else uses the server.
_OWN_DATABASES = range(8, 16)
_QUEUE = "celery"


@pytest.fixture
def own_redis() -> Iterator[tuple[str, "redis.Redis"]]:
    """URL and connection of an empty database of the server, emptied again at the end."""
    for number in _OWN_DATABASES:
        url = f"{_SERVER_URL.rsplit('/', 1)[0]}/{number}"
        connection = redis.Redis.from_url(url, socket_connect_timeout=2)
        try:
            # Taken by a key, so that sessions beside this one pass on to another number.
            is_free = connection.dbsize() == 0 and connection.setnx("idat-test", "taken")
        except redis.ConnectionError as error:
            pytest.skip(f"Redis at IDAT_TEST_REDIS_URL cannot be reached: {error}")
        if is_free:
            yield url, connection
            connection.flushdb()
            connection.close()
            return
        connection.close()
    pytest.skip(f"no empty database among {_OWN_DATABASES} of the Redis at IDAT_TEST_REDIS_URL")


def test_a_ring_is_an_empty_message_for_its_task(
    own_redis: tuple[str, "redis.Redis"],
) -> None:
    url, connection = own_redis
    doorbell = build_doorbell(url)
    doorbell.ring(TRAIN_TASK)
    doorbell.ring(VALIDATE_TASK)
    messages = [json.loads(raw) for raw in connection.lrange(_QUEUE, 0, -1)]
    assert [m["headers"]["task"] for m in messages] == [VALIDATE_TASK, TRAIN_TASK]
    for message in messages:
        assert message["headers"]["argsrepr"] == "()"
        assert message["headers"]["kwargsrepr"] == "{}"


def test_rings_arrive_after_the_broker_lost_everything(
    own_redis: tuple[str, "redis.Redis"],
) -> None:
    url, connection = own_redis
    doorbell = build_doorbell(url)
    doorbell.ring(TRAIN_TASK)
    connection.flushdb()
    doorbell.ring(TRAIN_TASK)
    assert connection.llen(_QUEUE) == 1


def test_rings_arrive_after_connections_were_cut(own_redis: tuple[str, "redis.Redis"]) -> None:
    url, connection = own_redis
    doorbell = build_doorbell(url)
    doorbell.ring(TRAIN_TASK)
    number = url.rsplit("/", 1)[1]
    for client in connection.client_list():
        if client["db"] == number and int(client["id"]) != connection.client_id():
            connection.client_kill_filter(_id=client["id"])
    for _ in range(2):  # the first may find out that the line is dead
        doorbell.ring(TRAIN_TASK)
    assert connection.llen(_QUEUE) >= 2
