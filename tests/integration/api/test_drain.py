"""SIGTERM to the real process while requests keep coming: whatever it has accepted it answers."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.settings import build_environment
from tests.integration.api.live import wait_until
from tests.integration.api.models import build_files, build_picture, import_model

_ROOT = Path(__file__).parents[3]
_PATIENCE_S = 120.0
_CLIENTS = 6


@pytest.fixture
def process(data_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """The API as its own process, whose first step of leaving lasts two seconds."""
    changes = {
        "IDAT_DATA_DIR": str(data_dir),
        "IDAT_DATABASE_URL": "",
        "IDAT_STORAGE_URL": "",
        "IDAT_API_KEYS": "",
        "IDAT_HOST": "127.0.0.1",
        "IDAT_PORT": "0",
        "IDAT_ROLES": "control,inference",
        "IDAT_DEVICE": "cpu",
        "IDAT_THREADS": "1",
        "IDAT_INFERENCE_DEADLINE_S": "120",
        "IDAT_DRAIN_S": "2",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "api"],
        cwd=_ROOT,
        env=build_environment(changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


class Load:
    """Clients that send one image after the other, until they are told to go elsewhere."""

    def __init__(self, url: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = url
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every client has been told."""
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        picture = build_picture()
        with httpx.Client(base_url=self._url, timeout=_PATIENCE_S) as client:
            while True:
                outcome, is_last = self._ask(client, picture)
                with self._lock:
                    self.outcomes[outcome] += 1
                if is_last:
                    return

    def _ask(self, client: httpx.Client, picture: bytes) -> tuple[str, bool]:
        url = "/v1/models/animals/classify"
        try:
            answer = client.post(url, content=picture, headers={"content-type": "image/png"})
        except httpx.TransportError as error:
            return repr(error), True
        if answer.status_code == 200:
            return "answered", False
        is_told = answer.headers.get("connection") == "close"
        return f"{answer.status_code} {answer.json()['code']}, {is_told=}", True


@pytest.mark.slow
def test_what_was_accepted_is_answered_and_the_rest_sent_elsewhere(
    process: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with httpx.Client(base_url=url, timeout=_PATIENCE_S) as client:
        wait_until(lambda: _is_up(client))
        import_model(client, build_files(tmp_path), "animals")
        load = Load(url)
        wait_until(lambda: load.outcomes["answered"] >= 2 * _CLIENTS)
        slow = _begin_upload(url)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/readyz").json()["errors"][0]["code"] == "process_not_ready"
        assert client.get("/healthz").status_code == 200, "it is alive, but not ready"
        load.join()
        assert _finish_upload(slow).startswith("HTTP/1.1 200"), "accepted before the signal"
    answered = load.outcomes.pop("answered")
    assert answered >= 2 * _CLIENTS
    assert load.outcomes == {"503 draining, is_told=True": _CLIENTS}
    started_s = time.monotonic()
    process.communicate(timeout=_PATIENCE_S)
    assert process.returncode in (0, -signal.SIGTERM)
    assert time.monotonic() - started_s < _PATIENCE_S / 2


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _begin_upload(url: str) -> tuple[socket.socket, bytes]:
    """Send a request but for the last byte of its body."""
    picture = build_picture(1)
    client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), _PATIENCE_S)
    head = (
        "POST /v1/models/animals/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: image/png\r\nContent-Length: {len(picture)}\r\n\r\n"
    )
    client.sendall(head.encode() + picture[:-1])
    # It is accepted once the server has read its head: the next request of another connection
    # would be answered after that at the earliest.
    for _ in range(3):
        assert httpx.get(f"{url}/healthz", timeout=_PATIENCE_S).status_code == 200
    return client, picture[-1:]


def _finish_upload(upload: tuple[socket.socket, bytes]) -> str:
    client, rest = upload
    with client:
        client.sendall(rest)
        return client.recv(65_536).decode()
