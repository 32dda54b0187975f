"""A broker that forgets, freezes, dies, resets connections and delivers twice: the row holds."""

import statistics
import time
from collections.abc import Iterator

import pytest

from core.platform.doorbell import TRAIN_TASK, BrokerDoorbell
from tests.e2e.faults.asking import (
    ask,
    cancel_open_jobs,
    find_trainers,
    wait_for_no_trainer,
    wait_for_status,
)
from tests.e2e.faults.own_redis import OwnRedis
from tests.e2e.stack import Stack, build_archive, wait_until

#: After which Redis delivers again what nobody acknowledged: much less than a job takes.
VISIBILITY_TIMEOUT_S = 5.0
#: More than the threads that serve requests.
SUBMISSIONS = 50
RESETS = 20


@pytest.fixture(scope="module")
def stack(scaled_stack: Stack) -> Stack:
    scaled_stack.environment.update(
        IDAT_BROKER_VISIBILITY_TIMEOUT_S=str(VISIBILITY_TIMEOUT_S), IDAT_WORKER_SLOTS="2"
    )
    return scaled_stack


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, archive: bytes) -> str:
    """A dataset that is ready."""
    dataset_id = stack.upload(archive, seed="3")
    stack.spawn("worker")
    wait_until(
        lambda: stack.get(f"/v1/datasets/{dataset_id}")["status"] == "ready",
        what="the dataset to be ready",
    )
    stack.end_workers()
    return dataset_id


@pytest.fixture(autouse=True)
def nothing_left(stack: Stack, own_redis: OwnRedis) -> Iterator[None]:
    """Every test starts its own workers; the broker lives on."""
    yield
    own_redis.thaw()
    cancel_open_jobs(stack)
    stack.end_workers()


def count_attempts(stack: Stack, job_id: str) -> int:
    return stack.event_types(job_id).count("attempt.started")


def test_a_job_longer_than_the_visibility_timeout_is_worked_on_once(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F1. Four timeouts long, with more deliveries of the same ring on top."""
    stack.environment["IDAT_WORKER_SLOTS"] = "1"
    job_id = stack.submit(dataset_id, epochs=500)
    for _ in range(2):
        stack.spawn("worker")
    stack.wait_for_step(job_id, 2)
    began_s = time.monotonic()
    doorbell = BrokerDoorbell(own_redis.url)
    while time.monotonic() - began_s < 4 * VISIBILITY_TIMEOUT_S:
        assert doorbell.ring(TRAIN_TASK)
        time.sleep(1)
        assert len(stack.find_children("worker.trainer")) == 1
    job = stack.get_job(job_id)
    assert (job["status"], job["attempt"], count_attempts(stack, job_id)) == ("running", 1, 1)
    assert ask(stack, job_id, "cancel") == (200, "cancelling")
    wait_for_status(stack, job_id, "cancelled")
    assert count_attempts(stack, job_id) == 1
    stack.environment["IDAT_WORKER_SLOTS"] = "2"


def test_a_queue_that_is_lost_loses_no_job(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F4. Of twenty jobs all but four are withdrawn, to be done sooner."""
    jobs = [stack.submit(dataset_id, epochs=1) for _ in range(20)]
    wait_until(lambda: own_redis.client.llen("celery") > 0, what="the rings to arrive")
    own_redis.client.flushall()
    for job_id in jobs[2:18]:
        assert ask(stack, job_id, "cancel") == (200, "cancelled")
    stack.spawn("worker")
    for job_id in jobs[:2] + jobs[18:]:
        job = stack.wait_for_end(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job


def test_a_broker_that_is_killed_and_comes_back_empty_costs_nothing(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F4. The worker holds a connection, and an attempt, while it dies."""
    stack.spawn("worker")
    running = stack.submit(dataset_id, epochs=12)
    stack.wait_for_step(running, 2)
    own_redis.kill()
    waiting = stack.submit(dataset_id, epochs=1)
    own_redis.start()
    for job_id in (running, waiting):
        job = stack.wait_for_end(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job


def test_with_a_frozen_broker_jobs_are_accepted_and_every_wish_is_followed(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F6, F11. From every state; two jobs run meanwhile."""
    stack.spawn("worker")
    first, second = (stack.submit(dataset_id, epochs=500) for _ in range(2))
    for job_id in (first, second):
        stack.wait_for_step(job_id, 2)
    own_redis.freeze()

    took_s, waiting = [], []
    for _ in range(SUBMISSIONS):
        began_s = time.monotonic()
        waiting.append(stack.submit(dataset_id, epochs=1))
        took_s.append(time.monotonic() - began_s)
    assert statistics.median(took_s) < 1
    assert max(took_s) < 4, "a ring for a frozen broker lasts 5 seconds: somebody waited for it"

    # running -> pausing -> paused -> queued -> cancelled
    assert ask(stack, first, "pause") == (200, "pausing")
    wait_for_status(stack, first, "paused")
    wait_for_no_trainer(stack, first)
    assert ask(stack, first, "pause") == (200, "paused")
    assert ask(stack, first, "resume") == (200, "queued")
    assert ask(stack, first, "cancel") == (200, "cancelled")
    assert ask(stack, first, "cancel") == (200, "cancelled")
    assert ask(stack, first, "pause") == (409, "job_terminal")
    # running -> cancelling -> cancelled
    assert ask(stack, second, "cancel") == (200, "cancelling")
    assert ask(stack, second, "cancel")[0] == 200
    wait_for_status(stack, second, "cancelled")
    wait_for_no_trainer(stack, second)
    # queued -> paused -> cancelled; nobody has claimed them, nor validated the dataset
    assert ask(stack, waiting[0], "pause") == (200, "paused")
    assert ask(stack, waiting[0], "cancel") == (200, "cancelled")
    unready = stack.submit(stack.upload(build_archive(images=8, seed=9)))
    assert ask(stack, unready, "pause") == (200, "paused")
    assert ask(stack, unready, "resume") == (200, "validating_files")
    assert ask(stack, unready, "cancel") == (200, "cancelled")
    for job_id in waiting[2:]:
        assert ask(stack, job_id, "cancel") == (200, "cancelled")

    own_redis.thaw()
    job = stack.wait_for_end(waiting[1])
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    assert ask(stack, waiting[1], "cancel") == (409, "job_terminal")


def test_a_frozen_broker_keeps_no_worker_from_ending(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F13. Rings and the closing of connections last seconds each, and no longer."""
    worker = stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=500)
    stack.wait_for_step(job_id, 2)
    own_redis.freeze()
    waiting = [stack.submit(dataset_id, epochs=1) for _ in range(4)]
    worker.terminate()
    assert worker.wait(timeout=90) == 0
    job = stack.get_job(job_id)
    assert (job["status"], count_attempts(stack, job_id)) == ("queued", 1)
    assert "attempt.released" in stack.event_types(job_id)
    assert find_trainers(stack, job_id) == []
    for each in (job_id, *waiting):
        assert ask(stack, each, "cancel") == (200, "cancelled")


def test_a_worker_whose_connections_are_reset_again_and_again_goes_on(
    stack: Stack, dataset_id: str, own_redis: OwnRedis
) -> None:
    """F14. A job is submitted after each ten resets; the last proves that it still listens."""
    stack.spawn("worker")
    jobs = []
    for number in range(1, RESETS + 1):
        wait_until(lambda: own_redis.cut() > 0, what="somebody to be connected")
        if number % 10 == 0:
            jobs.append(stack.submit(dataset_id, epochs=1))
    for job_id in jobs:
        job = stack.wait_for_end(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 1), job
