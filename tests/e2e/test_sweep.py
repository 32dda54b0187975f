"""A real worker sweeps: what killed processes and deletions left goes, what is needed stays."""

import hashlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import IdempotencyRow
from core.platform.idempotency import remember
from core.platform.storage.local import LocalStore
from tests.e2e.stack import Stack, build_archive, find_free_port, wait_until
from tests.integration.platform.garbage import age, put_old


@pytest.fixture
def database(stack: Stack) -> Iterator[Database]:
    url = stack.environment["IDAT_DATABASE_URL"] or f"sqlite:///{stack.data_dir / 'idat.db'}"
    database = Database(url)
    yield database
    database.dispose()


@pytest.fixture
def store(stack: Stack) -> LocalStore:
    return LocalStore(stack.data_dir / "blobs")


@pytest.fixture(autouse=True)
def no_worker_left(stack: Stack) -> Iterator[None]:
    stack.environment.update(IDAT_COLLECT_INTERVAL_S="1", IDAT_ROLES="control")
    yield
    stack.end_workers()


def counted(stack: Stack) -> dict[str, int]:
    """The sum of what the sweeps say that they did."""
    total: dict[str, int] = {}
    for sweep in stack.get("/v1/maintenance?limit=100")["data"]:
        assert sweep["faults"] == {}
        for kind, count in sweep["counts"].items():
            total[kind] = total.get(kind, 0) + count
    return total


def kill_during_upload(stack: Stack) -> Path:
    """Kill an API, one beside the stack's own, in the middle of an upload; return what it left."""
    port = find_free_port()
    scratch = stack.data_dir / "scratch"
    stack.environment["IDAT_PORT"] = str(port)
    api = stack.spawn("api")
    stack.environment["IDAT_PORT"] = str(stack.port)
    wait_until(lambda: is_listening(port), what="the second API to listen")
    with begin_upload(port):
        wait_until(lambda: bool(list(scratch.glob("upload-*"))), what="the upload to begin")
        api.send_signal(signal.SIGKILL)
        api.wait()
    (leftover,) = scratch.glob("upload-*")
    return leftover


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def begin_upload(port: int) -> socket.socket:
    """Send the beginning of a large upload."""
    connection = socket.create_connection(("127.0.0.1", port))
    head = (
        "POST /v1/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="x.zip"\r\n\r\n'
    )
    connection.sendall(head.encode() + os.urandom(1 << 20))
    return connection


def test_a_worker_collects_what_is_left_behind(
    stack: Stack, database: Database, store: LocalStore
) -> None:
    scratch, incoming = stack.data_dir / "scratch", stack.data_dir / "blobs" / "incoming"
    age(kill_during_upload(stack), 120)
    (scratch / "attempt-ftjob_1-1").mkdir()
    # Of a store: a half-written blob, and whole ones, of which one is of an upload under way.
    for name, age_s in (("half", 10 * 3600), ("being-written", 0)):
        (incoming / name).write_bytes(b"half")
        age(incoming / name, age_s)
    orphans = [put_old(store, b"orphan %d" % number) for number in range(3)]
    young = store.put_bytes(b"about to be named").sha256
    # A request of the day before yesterday.
    with database.write() as session:
        remember(session, "old", "0" * 64, "ds_1")
        session.execute(update(IdempotencyRow).values(created_at=db_now() - 2 * 86_400))
    kept, gone = build_archive(images=8), build_archive(images=8, seed=1)
    kept_id, gone_id = stack.upload(kept), stack.upload(gone)
    assert stack.client.delete(f"/v1/datasets/{gone_id}").status_code == 204
    kept_sha, gone_sha = (hashlib.sha256(data).hexdigest() for data in (kept, gone))
    for sha256 in (kept_sha, gone_sha):
        age(store.fetch(sha256))

    stack.spawn("worker")
    expected = {
        "abandoned_uploads": 1,
        "attempt_folders": 1,
        "blobs": 4,
        "idempotency_keys": 1,
        "partial_blobs": 1,
    }
    wait_until(
        lambda: expected.items() <= counted(stack).items(),
        timeout_s=90,
        what=f"the sweeps to say {expected}, and not {counted(stack)}",
    )
    assert [store.exists(sha256) for sha256 in orphans] == [False] * 3
    assert [store.exists(sha256) for sha256 in (kept_sha, gone_sha, young)] == [True, False, True]
    assert [*scratch.glob("upload-*"), *scratch.glob("attempt-ftjob_1-*")] == []
    assert [path.name for path in incoming.iterdir()] == ["being-written"]
    wait_until(
        lambda: stack.get(f"/v1/datasets/{kept_id}")["status"] == "ready",
        timeout_s=90,
        what="the dataset to be ready",
    )
    assert store.exists(kept_sha)
