"""Workers and trainers that die, sleep through their lease or have a wrong clock."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.faults.asking import cancel_open_jobs, find_trainers, wait_for_no_trainer
from tests.e2e.stack import LEASE_TTL_S, Stack, wait_until

#: Of two processes' clocks from the true time.
_JUMP_S = 3600.0
#: Read by every Python that finds it on its path, before anything else runs.
_WRONG_CLOCK = """
import os, time
_time, _shift_s = time.time, float(os.environ["CLOCK_SHIFT_S"])
time.time = lambda: _time() + _shift_s
"""


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, archive: bytes) -> str:
    """The dataset of all tests."""
    return stack.upload(archive, seed="3")


@pytest.fixture(autouse=True)
def nothing_left(stack: Stack) -> Iterator[None]:
    """Every test starts its own workers."""
    yield
    cancel_open_jobs(stack)
    stack.end_workers()


def test_a_trainer_that_dies_each_time_fails_its_job_and_no_other(
    stack: Stack, dataset_id: str
) -> None:
    """F8. As with one that the system kills for its memory."""
    poison = stack.submit(dataset_id, epochs=500)
    innocent = stack.submit(dataset_id, epochs=1)
    is_over = threading.Event()

    def kill_on_sight() -> None:
        while not is_over.wait(0.05):
            for pid in find_trainers(stack, poison):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_on_sight)
    killer.start()
    try:
        stack.spawn("worker")
        job = stack.wait_for_end(poison)
    finally:
        is_over.set()
        killer.join()
    assert (job["status"], job["attempt"]) == ("failed", 3), job
    assert job["error"]["code"] == "process_died"
    assert "SIGKILL" in job["error"]["message"]
    types = stack.event_types(poison)
    assert [types.count(each) for each in ("attempt.started", "attempt.lost", "job.failed")] == [
        3,
        2,
        1,
    ]
    job = stack.wait_for_end(innocent)
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job


def test_wrong_clocks_neither_take_a_lease_nor_keep_one(
    stack: Stack, dataset_id: str, tmp_path: Path
) -> None:
    """F15. Two workers, two hours apart: each sweeps what the other holds, and once rightly."""
    (tmp_path / "sitecustomize.py").write_text(_WRONG_CLOCK)
    stack.environment["PYTHONPATH"] = str(tmp_path)
    try:
        stack.environment["CLOCK_SHIFT_S"] = str(-_JUMP_S)
        behind = stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=500)
        stack.wait_for_step(job_id, 2)
        stack.environment["CLOCK_SHIFT_S"] = str(_JUMP_S)
        stack.spawn("worker")
    finally:
        del stack.environment["PYTHONPATH"], stack.environment["CLOCK_SHIFT_S"]
    # Many sweeps of a worker for which every lease has long run out.
    others = [stack.submit(dataset_id, epochs=1) for _ in range(2)]
    for each in others:
        assert stack.wait_for_end(each)["status"] == "succeeded"
    job = stack.get_job(job_id)
    assert (job["status"], job["attempt"]) == ("running", 1), job

    # F7. And one that dies is found dead by the other, after its lease and no hours later.
    trainers = find_trainers(stack, job_id)
    behind.kill()
    wait_for_no_trainer(stack, job_id, timeout_s=5)
    assert len(trainers) == 1
    behind.wait()
    wait_until(
        lambda: stack.get_job(job_id)["attempt"] == 2,
        timeout_s=LEASE_TTL_S * 10,
        what="the other worker to take the job over",
    )
    assert "attempt.lost" in stack.event_types(job_id)
    assert stack.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").status_code == 200
    assert stack.wait_for_end(job_id)["status"] == "cancelled"
