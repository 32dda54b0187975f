"""F13: each API and each worker is shut down and started again while jobs and requests come."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.stack import Stack, find_free_port, wait_until

ROUNDS = 2
#: Within which a process that is told to end has ended; 25 s are promised, where a machine has time
#: for it: a trainer that is still loading torch is given up after 20 s.
EXIT_S = 90.0


class Fleet:
    """Some APIs and workers on one stack's back ends, the stack's own API among them."""

    def __init__(self, stack: Stack, *, size: int) -> None:
        self.stack = stack
        self.ports = [stack.port, *(find_free_port() for _ in range(size - 1))]
        self.apis = [stack.api, *(self._start_api(port) for port in self.ports[1:])]
        self.workers = [stack.spawn("worker") for _ in range(size)]
        for port in self.ports:
            self._wait_until_ready(port)

    def restart_all(self) -> None:
        """One after the other: SIGTERM, and another in its place."""
        for index, port in enumerate(self.ports):
            self._end(self.apis[index])
            self.apis[index] = self._start_api(port)
            self._wait_until_ready(port)
        for index, worker in enumerate(self.workers):
            self._end(worker)
            self.workers[index] = self.stack.spawn("worker")

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        process.terminate()
        # uvicorn sends itself the signal again when it has finished, as a shell would expect it.
        assert process.wait(timeout=EXIT_S) in (0, -signal.SIGTERM)

    def _start_api(self, port: int) -> "subprocess.Popen[bytes]":
        self.stack.environment["IDAT_PORT"] = str(port)
        return self.stack.spawn("api")

    def _wait_until_ready(self, port: int) -> None:
        def is_ready() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, what=f"the API at {port} to be ready")


class Client(threading.Thread):
    """Sends requests until told to stop, and submits a job now and then.

    A connection that is refused or closed is tried again at the next API, as a load balancer does;
    with one API alone that waits for it. A job is submitted under a key, so that trying again
    creates no other.

    Attributes:
        jobs: the ids of the jobs that were acknowledged.
        answers: how many requests were answered.
        errors: answers of the APIs that say that something is wrong with them.
    """

    def __init__(self, ports: list[int], dataset_id: str, *, jobs: int) -> None:
        super().__init__(name="client")
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._dataset_id = dataset_id
        self._wanted = jobs
        self._is_to_stop = threading.Event()
        self.jobs: list[str] = []
        self.answers = 0
        self.errors: list[str] = []

    def run(self) -> None:
        while not self._is_to_stop.wait(0.1):
            if len(self.jobs) < self._wanted and self.answers % 10 == 0:
                self._submit()
            else:
                self._send("GET", "/v1/fine_tuning/jobs?limit=5")

    def stop(self) -> None:
        self._is_to_stop.set()
        self.join(timeout=120)
        assert not self.is_alive()

    def _submit(self) -> None:
        answer = self._send(
            "POST",
            "/v1/fine_tuning/jobs",
            headers={"idempotency-key": f"restart-{len(self.jobs)}"},
            json={
                "dataset_id": self._dataset_id,
                "method": {"type": "idat", "pair": "starter"},
                "hyperparameters": {"epochs": 12, "batch_size": 8, "precision": "fp32"},
            },
        )
        if answer is not None and answer.status_code == 201:
            self.jobs.append(answer.json()["id"])

    def _send(self, method: str, path: str, **content: object) -> httpx.Response | None:
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s:
            for url in self._urls:
                try:
                    answer = httpx.request(method, url + path, timeout=60, **content)
                except httpx.TransportError:
                    continue  # this one is down, or went down just now
                self.answers += 1
                if answer.status_code >= 400:
                    self.errors.append(f"{method} {path}: {answer.status_code} {answer.text}")
                return answer
            self._urls.append(self._urls.pop(0))
            time.sleep(0.05)
        self.errors.append(f"{method} {path}: nobody answers")
        return None


@pytest.fixture
def port_kept(stack: Stack) -> Iterator[None]:
    yield
    stack.environment["IDAT_PORT"] = str(stack.port)


def test_nothing_is_lost_and_nobody_charged(stack: Stack, archive: bytes, port_kept: None) -> None:
    dataset_id = stack.upload(archive, seed="3")
    is_scaled = bool(stack.environment["IDAT_BROKER_URL"])
    fleet = Fleet(stack, size=2 if is_scaled else 1)
    client = Client(fleet.ports, dataset_id, jobs=5 if is_scaled else 3)
    client.start()
    try:
        for _ in range(ROUNDS):
            wait_until(lambda: stack.find_children("worker.trainer") != [], what="a job to run")
            fleet.restart_all()
        wait_until(lambda: len(client.jobs) == client._wanted, what="all jobs to be submitted")
    finally:
        client.stop()
    assert client.errors == []
    listed = stack.get("/v1/fine_tuning/jobs?limit=100")["data"]
    assert sorted(client.jobs) == sorted(job["id"] for job in listed)
    for job_id in client.jobs:
        job = stack.wait_for_end(job_id)
        assert job["status"] == "succeeded", job
        types = stack.event_types(job_id)
        assert types.count("attempt.lost") == 0
        assert types.count("attempt.started") == types.count("attempt.released") + 1
        assert types.count("job.succeeded") == 1
