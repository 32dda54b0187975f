"""F12: a database that does not answer for a while, under a running job."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from core.settings import Settings
from tests.e2e.faults.asking import ask, find_trainers, wait_for_no_trainer, wait_for_status
from tests.e2e.stack import LEASE_TTL_S, Stack, wait_until
from tests.fixtures.tcp_proxy import Proxy, open_proxy
from worker.ending import Limits

#: After which a supervisor that could not renew ends its trainer.
FENCE_S = Limits.from_settings(
    Settings.model_validate({"lease_ttl_s": LEASE_TTL_S, "heartbeat_s": 1})
).fence_s

Block = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def block(stack: Stack) -> Iterator[Block]:
    """Keeps the workers that are started from now on from the database, for a block's length."""
    url = stack.environment["IDAT_DATABASE_URL"]
    if not url:
        yield lambda: _lock(stack)
    else:
        server, _, name = url.rpartition("/")
        account, _, address = server.rpartition("@")
        with open_proxy(f"http://{address}") as proxy:
            stack.environment["IDAT_DATABASE_URL"] = (
                f"{account}@{proxy.url.removeprefix('http://')}/{name}"
            )
            yield lambda: _stall(proxy)
            stack.environment["IDAT_DATABASE_URL"] = url
            stack.end_workers()
    stack.end_workers()


@contextmanager
def _lock(stack: Stack) -> Iterator[None]:
    """Somebody else has SQLite's only write lock."""
    other = sqlite3.connect(stack.data_dir / "idat.db", timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


@contextmanager
def _stall(proxy: Proxy) -> Iterator[None]:
    """Connections stay, and nothing comes through."""
    proxy.stall()
    try:
        yield
    finally:
        proxy.go_on()


def test_an_outage_shorter_than_the_fence_goes_unnoticed_and_a_longer_one_costs_one_attempt(
    stack: Stack, archive: bytes, block: Block
) -> None:
    dataset_id = stack.upload(archive, seed="3")
    job_id = stack.submit(dataset_id, epochs=500)
    stack.spawn("worker")
    stack.wait_for_step(job_id, 2)
    (trainer,) = find_trainers(stack, job_id)
    with block():
        time.sleep(0.3 * FENCE_S)
    # A renewal after the outage proves that the attempt goes on.
    step = int(stack.get_job(job_id)["progress"]["details"]["step"])
    stack.wait_for_step(job_id, step + 4)
    assert find_trainers(stack, job_id) == [trainer]
    assert stack.get_job(job_id)["attempt"] == 1

    with block():
        # It ends itself: nobody can tell it that its lease is lost.
        wait_for_no_trainer(stack, job_id)
        assert stack.get_job(job_id)["attempt"] == 1
    wait_until(
        lambda: stack.get_job(job_id)["attempt"] == 2,
        timeout_s=LEASE_TTL_S * 10,
        what="another attempt to begin",
    )
    wait_until(lambda: find_trainers(stack, job_id) != [], what="its trainer to begin")
    types = stack.event_types(job_id)
    assert [types.count(each) for each in ("attempt.started", "attempt.lost")] == [2, 1]
    assert ask(stack, job_id, "cancel") == (200, "cancelling")
    wait_for_status(stack, job_id, "cancelled")
