"""A real server process with the inference role."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from core.settings import build_environment
from tests.integration.api.live import wait_until

_ROOT = Path(__file__).parents[3]


@contextmanager
def run_server(data_dir: Path, **settings: str) -> Iterator[str]:
    """Run `python -m api` until the end of the block; yield its URL once it is ready."""
    environment = build_environment(
        {
            "IDAT_DATA_DIR": str(data_dir),
            "IDAT_DATABASE_URL": "",
            "IDAT_STORAGE_URL": "",
            "IDAT_HOST": "127.0.0.1",
            "IDAT_PORT": "0",
            "IDAT_ROLES": "inference",
            "IDAT_API_KEYS": "",
            "IDAT_DEVICE": "cpu",
            "IDAT_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            **settings,
        }
    )
    with (data_dir / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://"), (data_dir / "api.log").read_text()
        wait_until(lambda: process.poll() is not None or _is_ready(url))
        assert process.poll() is None, (data_dir / "api.log").read_text()
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
