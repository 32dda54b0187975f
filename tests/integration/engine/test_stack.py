"""The launcher with two fronts: one port, one engine, which is started again when it dies."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.settings import build_environment
from embedded.lock import DataDirLock, find_owner
from tests.integration.api.live import wait_until
from tests.integration.engine.conftest import Site
from tests.integration.inference.published import draw

_ROOT = Path(__file__).parents[3]
_PATIENCE_S = 120


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    """The address of a whole stack over the site's models."""
    environment = build_environment(
        {
            "IDAT_DATA_DIR": str(site.data_dir),
            "IDAT_HOST": "127.0.0.1",
            "IDAT_PORT": "0",
            "IDAT_API_KEYS": "",
            "IDAT_API_PROCESSES": "2",
            "IDAT_ENGINE_SOCKET": "",
            "IDAT_ROLES": "control,inference",
            "IDAT_DATABASE_URL": "",
            "IDAT_STORAGE_URL": "",
            "IDAT_BROKER_URL": "",
            "IDAT_DEVICE": "cpu",
            "IDAT_THREADS": "1",
        }
    )
    with subprocess.Popen(
        [sys.executable, "-m", "embedded", "up", "--quiet"],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("Ctrl-C stops it." in line for line in process.stdout)
            owner = find_owner(site.data_dir)
            assert owner is not None
            yield owner.url
        finally:
            process.terminate()
            assert process.wait(_PATIENCE_S) == 0
    lock = DataDirLock(site.data_dir)  # each process of the stack keeps it
    lock.acquire(timeout_s=_PATIENCE_S, say=lambda _message: None)
    lock.release()


def _find_engine_pid(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        found = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", found)[0]
        return pid


def _read_metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=_PATIENCE_S).text
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else -1.0


@pytest.mark.slow
def test_fronts_share_a_port_and_an_engine_that_is_started_again(site: Site, url: str) -> None:
    def classify() -> int:
        path = f"{url}/v1/models/animals/classify"
        return httpx.post(path, content=draw(1), timeout=_PATIENCE_S).status_code

    wait_until(lambda: _read_metric(url, "idat_engine_fronts") == 2)
    assert [classify() for _ in range(8)] == [200] * 8  # each over a connection of its own
    os.kill(_find_engine_pid(site.data_dir / "engine" / "socket"), signal.SIGKILL)
    outcomes = set()

    def is_back() -> bool:
        outcomes.add(classify())
        return 503 in outcomes and _read_metric(url, "idat_engine_fronts") == 2

    wait_until(is_back)
    assert outcomes <= {200, 503}
    assert classify() == 200
