"""Uploads over real connections: streaming, limits, and clients that go away."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api import uploads
from api.app import create_app
from core.platform.collection.scratch import remove_abandoned_uploads
from core.platform.db.engine import Database
from core.settings import Settings
from tests.integration.api.live import serve, wait_until
from tests.integration.api.rig import Rig, build_zip

_ROOT = Path(__file__).parents[3]
_MIB = 1 << 20
_HEAD = b'--sep\r\nContent-Disposition: form-data; name="file"; filename="x.zip"\r\n\r\n'
_TAIL = b"\r\n--sep--\r\n"
_TYPE = {"Content-Type": "multipart/form-data; boundary=sep"}


class LiveRig(Rig):
    """A rig whose API listens on a port."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, *lines: str, body: bytes = b"") -> socket.socket:
        """Open a connection and send the beginning of a request."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = "\r\n".join((*lines, f"Host: 127.0.0.1:{self.port}", "", ""))
        connection.sendall(head.encode() + body)
        return connection

    def begin_upload(self, *headers: str, body: bytes) -> socket.socket:
        """Send the beginning of an upload, and wait until some of it is on disk."""
        lines = ("POST /v1/datasets HTTP/1.1", f"Content-Type: {_TYPE['Content-Type']}", *headers)
        connection = self.send(*lines, body=body)
        wait_until(lambda: self.count_scratch_bytes() > 0)
        return connection

    def count_scratch_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.settings.scratch_dir.glob("upload-*"))


@pytest.fixture
def start_live(data_dir: Path) -> Iterator[Callable[..., LiveRig]]:
    """Start a real server with some settings changed."""
    running = []

    def start(**changes: object) -> LiveRig:
        settings = Settings.model_validate({"data_dir": data_dir, "roles": ["control"], **changes})
        app = create_app(settings)
        server = serve(app)
        port = server.__enter__()
        running.append(server)
        database: Database = app.state.services.database
        rig = LiveRig(settings, app, None, database)  # type: ignore[arg-type]  # no test client
        rig.port = port
        return rig

    yield start
    for server in running:
        server.__exit__(None, None, None)


def _read_status(connection: socket.socket) -> int:
    answer = b""
    while b"\r\n" not in answer:
        received = connection.recv(4096)
        if not received:
            break
        answer += received
    return int(answer.split()[1]) if answer else 0


def test_a_small_archive_makes_the_whole_way(start_live: Callable[..., LiveRig]) -> None:
    live = start_live()
    answer = httpx.post(f"{live.url}/v1/datasets", files={"file": ("x.zip", build_zip())})
    assert answer.status_code == 202
    assert live.count_rows() == {"datasets": 1}


class TestLimits:
    def test_a_declared_length_over_the_limit_is_refused_unread(
        self, start_live: Callable[..., LiveRig]
    ) -> None:
        live = start_live(max_archive_bytes=_MIB)
        connection = live.send(
            "POST /v1/datasets HTTP/1.1",
            f"Content-Type: {_TYPE['Content-Type']}",
            f"Content-Length: {100 * _MIB}",
        )
        with connection:
            assert _read_status(connection) == 413
        live.assert_untouched()

    def test_a_body_that_does_not_tell_its_length_is_counted(
        self, start_live: Callable[..., LiveRig]
    ) -> None:
        live = start_live(max_archive_bytes=_MIB)

        def body() -> Iterator[bytes]:
            yield _HEAD
            for _ in range(4):
                yield os.urandom(_MIB)
            yield _TAIL

        answer = httpx.post(f"{live.url}/v1/datasets", content=body(), headers=_TYPE)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        live.assert_untouched()

    def test_an_archive_at_the_limit_is_taken(self, start_live: Callable[..., LiveRig]) -> None:
        archive = build_zip()
        live = start_live(max_archive_bytes=len(archive))
        answer = httpx.post(f"{live.url}/v1/datasets", files={"file": ("x.zip", archive)})
        assert answer.status_code == 202

    @pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999999"])
    def test_a_length_that_is_none_is_refused(
        self, start_live: Callable[..., LiveRig], length: str
    ) -> None:
        live = start_live()
        connection = live.send("POST /v1/datasets HTTP/1.1", f"Content-Length: {length}")
        with connection:
            assert _read_status(connection) in (400, 413)
        live.assert_untouched()


class TestGoneClients:
    @pytest.mark.parametrize("framing", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
    def test_a_client_that_goes_leaves_nothing(
        self, start_live: Callable[..., LiveRig], framing: str
    ) -> None:
        live = start_live()
        body = _HEAD + os.urandom(3 * _MIB)
        if "chunked" in framing:
            body = b"%x\r\n" % len(body) + body + b"\r\n"
        connection = live.begin_upload(framing, body=body)
        connection.close()
        wait_until(lambda: live.list_files() == [])
        live.assert_untouched()

    def test_a_body_shorter_than_declared_makes_no_dataset(
        self, start_live: Callable[..., LiveRig]
    ) -> None:
        live = start_live()
        padding = os.urandom(2 * _MIB)
        connection = live.begin_upload("Content-Length: 3000000", body=_HEAD + padding + _TAIL)
        connection.shutdown(socket.SHUT_WR)
        with connection:
            assert _read_status(connection) in (0, 400)
        wait_until(lambda: live.list_files() == [])
        live.assert_untouched()

    def test_a_slow_upload_holds_nobody_up(self, start_live: Callable[..., LiveRig]) -> None:
        live = start_live()
        body = _HEAD + os.urandom(2 * _MIB)
        with live.begin_upload("Content-Length: 9000000", body=body):
            for path in ("/healthz", "/readyz", "/v1/datasets"):
                assert httpx.get(live.url + path).status_code == 200

    def test_an_upload_under_way_is_not_taken_for_an_abandoned_one(
        self, start_live: Callable[..., LiveRig]
    ) -> None:
        live = start_live()
        with live.begin_upload("Content-Length: 9000000", body=_HEAD + os.urandom(2 * _MIB)):
            assert remove_abandoned_uploads(live.settings.scratch_dir, grace_s=0) == []
            assert live.count_scratch_bytes() > 0


def test_a_broker_that_hangs_does_not_delay_the_answer(
    start_live: Callable[..., LiveRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_live()
    asked, may_return = threading.Event(), threading.Event()

    def hang(_task: str) -> None:
        asked.set()
        may_return.wait()

    monkeypatch.setattr(live.app.state.services.doorbell, "ring", hang)
    try:
        answer = httpx.post(f"{live.url}/v1/datasets", files={"file": ("x.zip", build_zip())})
        assert answer.status_code == 202
        wait_until(asked.is_set)
        assert live.count_rows() == {"datasets": 1}
    finally:
        may_return.set()


def test_a_full_disk_is_507_and_leaves_nothing(
    start_live: Callable[..., LiveRig], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_live()
    open_form = uploads._ArchiveForm.__init__
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a FileIO is wanted
        # The kernel itself says ENOSPC to every write.
        monkeypatch.setattr(
            uploads._ArchiveForm,
            "__init__",
            lambda form, _target, *rest: open_form(form, full, *rest),
        )
        answer = httpx.post(f"{live.url}/v1/datasets", files={"file": ("x.zip", build_zip())})
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert "retry-after" in answer.headers
    live.assert_untouched()


def test_concurrent_uploads_with_one_key_make_one_dataset(
    start_live: Callable[..., LiveRig],
) -> None:
    live = start_live()
    answers: list[httpx.Response] = []
    archive = build_zip()

    def upload() -> None:
        answers.append(
            httpx.post(
                f"{live.url}/v1/datasets",
                files={"file": ("x.zip", archive)},
                headers={"Idempotency-Key": "same"},
                timeout=60,
            )
        )

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert live.count_rows() == {"datasets": 1, "idempotency_keys": 1}


def test_a_large_body_is_never_held_in_memory(data_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "api"],
        cwd=_ROOT,
        env={
            "PATH": "",
            "IDAT_DATA_DIR": str(data_dir),
            "IDAT_PORT": "0",
            "IDAT_ROLES": "control",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        upload = build_zip()
        assert httpx.post(f"{url}/v1/datasets", files={"file": ("x.zip", upload)}).is_success
        before_bytes = _read_peak_bytes(process.pid)

        def body() -> Iterator[bytes]:
            yield _HEAD
            for _ in range(160):
                yield bytes(_MIB)
            yield _TAIL

        answer = httpx.post(f"{url}/v1/datasets", content=body(), headers=_TYPE, timeout=120)
        assert answer.status_code == 422
        grown_bytes = _read_peak_bytes(process.pid) - before_bytes
    finally:
        process.terminate()
        process.communicate()
    assert grown_bytes < 40 * _MIB


def _read_peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024
