"""A running service for a test: real API, real Celery worker, real trainer, over real HTTP."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from core.settings import build_environment

_ROOT = Path(__file__).parents[2]
_START_S = 120.0
_TERMINAL = {"succeeded", "failed", "cancelled"}

#: Short enough that a test can wait for an expiry, long enough for a starved machine's heartbeats.
LEASE_TTL_S = 8.0


def build_archive(*, classes: int = 3, images: int = 16, seed: int = 0) -> bytes:
    """Return a zip of small pictures in class folders: gratings of one orientation per class."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:24] / 24
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for label in range(classes):
            angle = np.pi * label / classes
            for index in range(images):
                phase, pitch = rng.uniform(0, 2 * np.pi), rng.uniform(18, 24)
                wave = np.sin(pitch * (columns * np.cos(angle) + rows * np.sin(angle)) + phase)
                pixels = 128 + 90 * wave[..., None] + rng.normal(0, 12, (24, 24, 3))
                picture = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(picture, "PNG")
                archive.writestr(f"grating{label}/{index:03d}.png", picture.getvalue())
    return buffer.getvalue()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 120.0, what: str) -> None:
    """Poll until the condition holds, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)


class Stack:
    """Processes on one database and one store."""

    def __init__(self, data_dir: Path, *, database_url: str = "", broker_url: str = "") -> None:
        self.data_dir = data_dir
        self.port = find_free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = build_environment(
            {
                "IDAT_DATA_DIR": str(data_dir),
                "IDAT_DATABASE_URL": database_url,
                "IDAT_BROKER_URL": broker_url,
                "IDAT_HOST": "127.0.0.1",
                "IDAT_PORT": str(self.port),
                "IDAT_DEVICE": "cpu",
                "IDAT_THREADS": "1",
                "IDAT_LEASE_TTL_S": str(LEASE_TTL_S),
                "IDAT_HEARTBEAT_S": "1",
                "IDAT_POLL_INTERVAL_S": "0.3",
                "IDAT_SWEEP_INTERVAL_S": "1",
                "IDAT_CHECKPOINT_INTERVAL_S": "0.5",
                "IDAT_WEBHOOK_ALLOWED_HOSTS": "127.0.0.1",
                "OMP_WAIT_POLICY": "PASSIVE",
            }
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def start(self) -> None:
        """Migrate, start the API and wait until it is ready."""
        subprocess.run(
            [sys.executable, "-m", "migrations", "upgrade"],
            cwd=_ROOT,
            env=self.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        self.spawn("api")
        wait_until(self._is_ready, timeout_s=_START_S, what="the API to be ready")

    def spawn(self, module: str) -> "subprocess.Popen[bytes]":
        """Start `python -m module`, its output in the data folder."""
        log = self.data_dir / f"{module}-{len(self._processes)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    @property
    def api(self) -> "subprocess.Popen[bytes]":
        """The API that `start` has started."""
        return self._processes[0]

    def end_workers(self) -> None:
        """Shut the workers down, the orderly way first."""
        workers = self._processes[1:]
        for worker in workers:
            for pid in (worker.pid, *self.descendants(worker.pid)):
                _signal(pid, signal.SIGCONT)
            _signal(worker.pid, signal.SIGTERM)
        for worker in workers:
            try:
                worker.wait(timeout=40)
            except subprocess.TimeoutExpired:
                for pid in (worker.pid, *self.descendants(worker.pid)):
                    _signal(pid, signal.SIGKILL)
                worker.wait(timeout=10)
        del self._processes[1:]
        self.wait_for_no_trainer()

    def wait_for_no_trainer(self) -> None:
        """Wait until no trainer of this stack is left."""
        wait_until(
            lambda: self.find_children("worker.trainer") == [],
            timeout_s=20,
            what="the trainers to end",
        )

    def stop(self) -> None:
        """End every process that was started, whatever state it is in."""
        self.client.close()
        for process in self._processes:
            for pid in (process.pid, *self.descendants(process.pid)):
                _signal(pid, signal.SIGKILL)
            process.wait(timeout=30)
        for pid in self.find_children("worker"):
            _signal(pid, signal.SIGKILL)

    def _is_ready(self) -> bool:
        assert self._processes[0].poll() is None, "the API died; see its log"
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def find_children(self, module: str) -> list[int]:
        """Return the process ids of the supervised children that work in this stack's folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(part.startswith(module) for part in command) and any(
                part.startswith(str(self.data_dir)) for part in command
            ):
                found.append(int(entry.name))
        return found

    def read_command(self, pid: int) -> str:
        """Return a process's command line; empty when it has ended."""
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def descendants(self, pid: int) -> list[int]:
        """Return the process ids below a process, deepest last."""
        children: list[int] = []
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
        return children + [deeper for child in children for deeper in self.descendants(child)]

    # What a client does.

    def upload(self, archive: bytes, **fields: str) -> str:
        """Upload an archive and return the dataset's id."""
        response = self.client.post(
            "/v1/datasets", files={"file": ("pictures.zip", archive)}, data=fields
        )
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def submit(self, dataset_id: str, *, epochs: int = 4, **changes: Any) -> str:
        """Submit a job for the starter pair and return its id."""
        body = {
            "dataset_id": dataset_id,
            "name": "gratings",
            "method": {"type": "idat", "pair": "starter"},
            "hyperparameters": {"epochs": epochs, "batch_size": 8, "precision": "fp32"},
            **changes,
        }
        response = self.client.post("/v1/fine_tuning/jobs", json=body)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON resource."""
        response = self.client.get(path)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def get_job(self, job_id: str) -> dict[str, Any]:
        """GET a job."""
        return self.get(f"/v1/fine_tuning/jobs/{job_id}")

    def wait_for_end(self, job_id: str, *, timeout_s: float = 200.0) -> dict[str, Any]:
        """Wait until the job has ended and return it."""
        wait_until(
            lambda: self.get_job(job_id)["status"] in _TERMINAL,
            timeout_s=timeout_s,
            what=f"{job_id} to end",
        )
        return self.get_job(job_id)

    def wait_for_step(self, job_id: str, step: int) -> None:
        """Wait until the job's trainer has taken some steps."""

        def has_come_so_far() -> bool:
            job = self.get_job(job_id)
            assert job["status"] not in _TERMINAL, job
            return int(job["progress"]["details"].get("step") or 0) >= step

        wait_until(has_come_so_far, timeout_s=200, what=f"{job_id} to reach step {step}")

    def download_adapter(self, model_id: str) -> bytes:
        """Download an adapter."""
        response = self.client.get(f"/v1/models/{model_id}/adapter")
        assert response.status_code == 200, response.text
        return response.content

    def event_types(self, job_id: str) -> list[str]:
        """Return the types of the job's events, oldest first."""
        events = self.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100&order=asc")["data"]
        return [event["type"] for event in events]


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
