"""A store that stalls or fails under a running job, with real processes on a real S3 server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.faults.asking import ask, cancel_open_jobs, wait_for_no_trainer, wait_for_status
from tests.e2e.faults.conftest import run_stack
from tests.e2e.stack import Stack, wait_until
from tests.fixtures.s3 import Bucket
from tests.fixtures.tcp_proxy import Fault, Proxy, http_error, open_proxy
from tests.integration.platform.storage.s3_rig import environment_of

pytest_plugins = ["tests.fixtures.s3"]

#: Five steps an epoch.
EPOCHS = 12
STEPS = 5 * EPOCHS


@pytest.fixture(scope="module")
def bucket(s3_endpoint_url: str, s3_client: Any) -> Bucket:
    """One for the tests of this module."""
    s3_client.create_bucket(Bucket="faults")
    return Bucket(s3_endpoint_url, "faults", s3_client)


@pytest.fixture(scope="module")
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    """What everybody believes to be the S3 server."""
    with open_proxy(bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, bucket: Bucket, proxy: Proxy
) -> Iterator[Stack]:
    """On SQLite and S3, which has the usual time to answer: 20 seconds, four times."""
    stack = Stack(tmp_path_factory.mktemp("s3"))
    settings = bucket.settings(Path(stack.data_dir), s3_endpoint_url=proxy.url, s3_timeout_s=20)
    yield from run_stack(stack, **environment_of(settings))


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, archive: bytes) -> str:
    """The dataset of all tests."""
    return stack.upload(archive, seed="3")


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, dataset_id: str) -> bytes:
    """The adapter of a job that nothing happened to."""
    stack.spawn("worker")
    job = stack.wait_for_end(stack.submit(dataset_id, epochs=EPOCHS))
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    stack.end_workers()
    return stack.download_adapter(job["model_id"])


@pytest.fixture(autouse=True)
def sound_again(stack: Stack, proxy: Proxy) -> Iterator[None]:
    """Whatever becomes of a test, the store works and no worker is left behind it."""
    yield
    proxy.always = None
    proxy.go_on()
    cancel_open_jobs(stack)
    stack.end_workers()


def stall_a_checkpoint(stack: Stack, proxy: Proxy, job_id: str) -> None:
    """Stop the store's bytes, and wait until the supervisor has met that."""
    stack.wait_for_step(job_id, STEPS // 8)
    proxy.stall()
    assert proxy.struck.wait(timeout=120), "no checkpoint was sent"


def test_a_cancel_does_not_wait_for_a_store_that_stalls(
    stack: Stack, dataset_id: str, undisturbed: bytes, proxy: Proxy, bucket: Bucket
) -> None:
    """F11. The upload would have given up after more than a minute."""
    stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=500)
    stall_a_checkpoint(stack, proxy, job_id)
    assert ask(stack, job_id, "cancel") == (200, "cancelling")
    wait_for_status(stack, job_id, "cancelled")
    wait_for_no_trainer(stack, job_id)
    proxy.go_on()
    # What was on its way may have arrived: whole, or not at all.
    assert bucket.count_unfinished() == 0


def test_a_shutdown_does_not_wait_for_a_store_that_stalls(
    stack: Stack, dataset_id: str, undisturbed: bytes, proxy: Proxy
) -> None:
    """F13. The job goes on from the checkpoint before, to the same bytes."""
    worker = stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=EPOCHS)
    stall_a_checkpoint(stack, proxy, job_id)
    worker.terminate()
    # 20 s for the trainer, and what a starved machine takes for the rest.
    assert worker.wait(timeout=40) == 0
    assert stack.get_job(job_id)["status"] == "queued"
    assert "attempt.released" in stack.event_types(job_id)
    proxy.go_on()
    stack.spawn("worker")
    job = stack.wait_for_end(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2), job
    assert "attempt.lost" not in stack.event_types(job_id)
    assert stack.download_adapter(job["model_id"]) == undisturbed


def test_a_store_that_refuses_checkpoints_costs_no_attempt_and_no_byte(
    stack: Stack, dataset_id: str, undisturbed: bytes, proxy: Proxy
) -> None:
    """F16. Each refusal is told; the training is worth more than a checkpoint."""
    stack.spawn("worker")
    job_id = stack.submit(dataset_id, epochs=EPOCHS)
    stack.wait_for_step(job_id, STEPS // 8)
    proxy.always = Fault("answer", answer=http_error("503 Slow Down", "SlowDown"))
    proxy.cut()
    path = f"/v1/fine_tuning/jobs/{job_id}/events?limit=100&order=asc"
    wait_until(
        lambda: "could not be stored" in stack.client.get(path).text,
        what="a checkpoint to be refused",
    )
    assert stack.get_job(job_id)["status"] == "running"
    proxy.always = None
    proxy.cut()
    job = stack.wait_for_end(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 1), job
    assert stack.download_adapter(job["model_id"]) == undisturbed
