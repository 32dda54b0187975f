"""Pausing and resuming through real processes: no trainer meanwhile, the same bytes in the end."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, wait_until

#: 30 training images in batches of 8 make 4 steps an epoch.
EPOCHS = 12
STEPS = 4 * EPOCHS
#: Within which no trainer may hold the device any more, whatever it was doing.
PROMISE_S = 30.0


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, archive: bytes) -> str:
    """The dataset of all tests."""
    return stack.upload(archive, name="gratings", seed="3")


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, dataset_id: str) -> bytes:
    """The adapter of a job that nothing happened to."""
    stack.spawn("worker")
    job = stack.wait_for_end(stack.submit(dataset_id, epochs=EPOCHS))
    assert job["status"] == "succeeded", job
    stack.end_workers()
    return stack.download_adapter(job["model_id"])


@pytest.fixture(autouse=True)
def no_worker_left(stack: Stack) -> Iterator[None]:
    """Every test starts its own workers, and leaves none behind whatever becomes of it."""
    yield
    stack.end_workers()


def ask(stack: Stack, job_id: str, action: str) -> str:
    response = stack.client.post(f"/v1/fine_tuning/jobs/{job_id}/{action}")
    assert response.status_code == 200, response.text
    return str(response.json()["status"])


def wait_for_status(stack: Stack, job_id: str, status: str) -> None:
    wait_until(
        lambda: stack.get_job(job_id)["status"] == status,
        timeout_s=PROMISE_S,
        what=f"{job_id} to be {status}",
    )


def test_a_paused_job_frees_its_worker_and_ends_with_the_same_bytes(
    stack: Stack, dataset_id: str, undisturbed: bytes
) -> None:
    stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=EPOCHS)
    stack.wait_for_step(job_id, STEPS // 3)
    assert ask(stack, job_id, "pause") == "pausing"
    wait_for_status(stack, job_id, "paused")
    # The child is dead before the row says so.
    assert stack.find_children("worker.trainer") == []
    paused = stack.get_job(job_id)
    assert (paused["attempt"], paused["error"]) == (1, None)

    # The slot is free for others, which do not wait for it.
    other = stack.wait_for_end(stack.submit(dataset_id, epochs=1, priority=-5))
    assert other["status"] == "succeeded", other
    assert stack.get_job(job_id) == paused
    assert ask(stack, job_id, "pause") == "paused"

    assert ask(stack, job_id, "resume") == "queued"
    job = stack.wait_for_end(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    assert stack.download_adapter(job["model_id"]) == undisturbed
    told = stack.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100&order=asc")["data"]
    assert any(event["message"].startswith("resuming after step") for event in told)
    types = [event["type"] for event in told if event["type"] != "message"]
    assert types == [
        "job.created",
        "attempt.started",
        "job.pausing",
        "job.paused",
        "job.resumed",
        "attempt.started",
        "job.succeeded",
    ]


def test_workers_killed_after_a_pause_and_in_the_middle_of_one_change_nothing(
    stack: Stack, dataset_id: str, undisturbed: bytes
) -> None:
    first = stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=EPOCHS)
    stack.wait_for_step(job_id, STEPS // 4)
    ask(stack, job_id, "pause")
    wait_for_status(stack, job_id, "paused")
    first.kill()
    first.wait()
    ask(stack, job_id, "resume")

    second = stack.spawn("worker")
    # The row still shows the step of the attempt before: on a fast machine one beyond the half.
    wait_until(lambda: stack.get_job(job_id)["attempt"] == 2, what="the second attempt to begin")
    stack.wait_for_step(job_id, STEPS // 2)
    doomed = [second.pid, *stack.descendants(second.pid)]
    ask(stack, job_id, "pause")
    for pid in doomed:  # before a renewal can tell the supervisor, but for the luckiest one
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    second.wait()
    stack.wait_for_no_trainer()

    stack.spawn("worker")  # its sweep finds the lease run out
    wait_for_status(stack, job_id, "paused")
    assert stack.find_children("worker.trainer") == []
    assert ask(stack, job_id, "resume") == "queued"
    job = stack.wait_for_end(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 3), job
    assert stack.download_adapter(job["model_id"]) == undisturbed
    assert stack.event_types(job_id).count("job.paused") == 2


def test_a_paused_job_can_be_cancelled(stack: Stack, dataset_id: str, undisturbed: bytes) -> None:
    stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=500)
    stack.wait_for_step(job_id, 2)
    ask(stack, job_id, "pause")
    assert ask(stack, job_id, "cancel") == "cancelling"
    assert stack.wait_for_end(job_id, timeout_s=PROMISE_S)["status"] == "cancelled"
    stack.wait_for_no_trainer()
    waiting = stack.submit(dataset_id)
    ask(stack, waiting, "pause")
    wait_for_status(stack, waiting, "paused")
    assert ask(stack, waiting, "cancel") == "cancelled"
