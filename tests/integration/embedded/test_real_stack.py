"""The launcher around the real API and the real worker."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from core.settings import build_environment
from embedded.lock import DataDirLock, find_owner

ROOT = Path(__file__).parents[3]
PATIENCE_S = 120


@pytest.fixture
def launcher(tmp_path):
    environment = build_environment(
        {
            "IDAT_DATA_DIR": str(tmp_path),
            "IDAT_HOST": "127.0.0.1",
            "IDAT_PORT": "0",
            "IDAT_API_KEYS": "",
            "IDAT_ROLES": "control",
            "IDAT_DATABASE_URL": "",
            "IDAT_STORAGE_URL": "",
            "IDAT_BROKER_URL": "",
        }
    )
    with subprocess.Popen(
        [sys.executable, "-m", "embedded", "up", "--quiet"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.kill()
    wait_until_everything_has_ended(tmp_path)


def wait_until_everything_has_ended(data_dir):
    """Return when no process of the stack is left: each of them keeps the folder's lock."""
    lock = DataDirLock(data_dir)
    lock.acquire(timeout_s=PATIENCE_S, say=lambda _message: None)
    lock.release()


def wait_until_announced(process):
    announced = []
    for line in process.stdout:
        announced.append(line)
        if "Ctrl-C stops it." in line:
            return "".join(announced)
    pytest.fail(f"the stack ended with exit code {process.wait()}: {announced}")


class TestUp:
    def test_serves_until_told_to_stop(self, launcher, tmp_path):
        announced = wait_until_announced(launcher)
        url = find_owner(tmp_path).url

        assert f"API      {url}" in announced
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert httpx.get(f"{url}/v1/datasets").json()["data"] == []

        launcher.terminate()
        assert launcher.wait(PATIENCE_S) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/readyz")

    def test_nothing_survives_a_launcher_that_is_killed(self, launcher, tmp_path):
        wait_until_announced(launcher)
        url = find_owner(tmp_path).url

        launcher.kill()
        launcher.wait()

        wait_until_everything_has_ended(tmp_path)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/readyz")
