"""Deliveries to real receivers: what arrives, what is tried again, and whom nobody can hold up."""

import base64
import hashlib
import hmac
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.clock import monotonic_s
from core.platform.db.engine import Database
from core.platform.db.tables import WebhookDeliveryRow
from core.platform.doorbell import DELIVER_TASK
from core.platform.webhooks.addresses import AllowedHosts
from core.settings import Settings, build_environment
from core.types import DeliveryState
from tests.fixtures.certificates import build_contexts
from tests.fixtures.receivers import Handler, Receiver, Script, flood, hang, receiving
from tests.integration.platform import rows
from tests.integration.platform.webhook_rows import (
    add_endpoint,
    add_event,
    change_endpoint,
    deliveries_of,
    delivery_of,
    endpoint_of,
    make_due,
)
from worker import deliver, tasks
from worker.deliver import Sender, deliver_due, send_due
from worker.runtime import Runtime
from worker.sweeper import sweep

_ROOT = Path(__file__).parents[3]
ALLOWED = AllowedHosts.from_settings(["127.0.0.1"])


def never() -> bool:
    return False


def build_sender(database: Database, **changes: object) -> Sender:
    options: dict[str, object] = {"owner": "host:1", "allowed": ALLOWED, **changes}
    return Sender(database, **options)  # type: ignore[arg-type]


def send(database: Database, *, threads: int = 4, **changes: object) -> int:
    return send_due(build_sender(database, **changes), threads=threads, should_stop=never)


def last_error(database: Database, event_id: str) -> str:
    return str(delivery_of(database, event_id).attempts[-1]["error"])


StartRuntime = Callable[..., Runtime]


@pytest.fixture
def start_runtime(tmp_path: Path) -> Iterator[StartRuntime]:
    """Open what a pool process has at hand, on some database."""
    opened: list[Runtime] = []

    def start(database_url: str, **changes: object) -> Runtime:
        settings = Settings.model_validate(
            {
                "data_dir": tmp_path / "data",
                "database_url": database_url,
                "webhook_allowed_hosts": "127.0.0.1",
                **changes,
            }
        )
        opened.append(Runtime(settings))
        return opened[-1]

    yield start
    for runtime in opened:
        runtime.database.dispose()


def verify(receiver: Receiver, secrets: list[str]) -> None:
    """Check every signature as a receiver would, by the specification's words."""
    for received in receiver.received:
        headers = received.headers
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
        given = headers["webhook-signature"].split(" ")
        expected = []
        for secret in secrets:
            key = base64.b64decode(secret.split("_", 1)[1])
            digest = hmac.digest(key, signed, hashlib.sha256)
            expected.append("v1," + base64.b64encode(digest).decode())
        assert given == expected
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
        assert headers["content-type"] == "application/json"


class TestOutcomes:
    def test_a_job_ends_and_its_receiver_is_told(self, database: Database) -> None:
        with receiving() as receiver:
            endpoint = add_endpoint(database, receiver.url("/hook?key=1"))
            job_id = rows.add_job(database)
            rows.cancel(database, job_id)
            assert send(database) == 1
            assert send(database) == 0
        (row,) = deliveries_of(database)
        assert (row.state, row.subject_id) == (DeliveryState.DELIVERED, job_id)
        (received,) = receiver.received
        assert received.path == "/hook?key=1"
        assert received.body == row.payload.encode()
        assert receiver.ids() == [row.id]
        verify(receiver, [endpoint.secret])

    def test_both_secrets_sign_after_a_rotation(self, database: Database) -> None:
        older = "whsec_" + base64.b64encode(b"o" * 32).decode()
        with receiving() as receiver:
            endpoint = add_endpoint(database, receiver.url())
            change_endpoint(
                database,
                endpoint.id,
                previous_secret=older,
                previous_secret_until=time.time() + 3600,
            )
            add_event(database, endpoint)
            send(database)
        verify(receiver, [endpoint.secret, older])
        assert len(receiver.received) == 1

    def test_500_then_success_under_one_id(self, database: Database) -> None:
        with receiving(Script([500, 503, 200])) as receiver:
            endpoint = add_endpoint(database, receiver.url())
            event_id = add_event(database, endpoint)
            for _ in range(3):
                assert send(database) == 1
                make_due(database)
            assert send(database) == 0
        assert receiver.ids() == [event_id] * 3
        assert len({received.body for received in receiver.received}) == 1
        row = delivery_of(database, event_id)
        assert row.state == DeliveryState.DELIVERED
        assert [attempt["status"] for attempt in row.attempts] == [500, 503, 200]
        assert [attempt["attempt"] for attempt in row.attempts] == [1, 2, 3]
        assert endpoint_of(database, endpoint.id).failures == 0
        verify(receiver, [endpoint.secret])

    def test_a_redirect_is_not_followed(self, database: Database) -> None:
        with receiving() as inside, receiving() as receiver:
            receiver.answer = Script([302], headers={"Location": inside.url()})
            event_id = add_event(database, add_endpoint(database, receiver.url()))
            send(database)
        assert inside.received == []
        assert delivery_of(database, event_id).attempts[0]["status"] == 302
        assert "redirects are not followed" in last_error(database, event_id)

    def test_410_ends_the_endpoint(self, database: Database) -> None:
        with receiving(410) as receiver:
            endpoint = add_endpoint(database, receiver.url())
            add_event(database, endpoint)
            add_event(database, endpoint)
            assert send(database, threads=1) == 1
        assert {row.state for row in deliveries_of(database)} == {DeliveryState.FAILED}
        assert endpoint_of(database, endpoint.id).disabled_at is not None

    def test_a_hanging_receiver_is_a_failed_attempt(self, database: Database) -> None:
        with receiving(hang) as receiver:
            event_id = add_event(database, add_endpoint(database, receiver.url()))
            send(database, timeout_s=0.3)
        row = delivery_of(database, event_id)
        assert row.state == DeliveryState.PENDING
        assert "no whole reply within" in last_error(database, event_id)
        assert row.attempts[0]["duration_ms"] >= 300

    def test_an_endless_reply_is_a_failed_attempt(self, database: Database) -> None:
        with receiving(flood) as receiver:
            event_id = add_event(database, add_endpoint(database, receiver.url()))
            send(database)
        assert "longer than 64 kB" in last_error(database, event_id)

    def test_the_limits_are_the_promised_ones(self) -> None:
        assert deliver.ATTEMPT_TIMEOUT_S == 15.0
        assert deliver.LEASE_S >= 2 * deliver.ATTEMPT_TIMEOUT_S


class TestAddresses:
    def test_a_private_address_is_never_connected_to(self, sqlite: Database) -> None:
        with receiving() as receiver:
            event_id = add_event(sqlite, add_endpoint(sqlite, receiver.url()))
            send(sqlite, allowed=AllowedHosts())
        assert receiver.received == []
        assert delivery_of(sqlite, event_id).state == DeliveryState.PENDING
        assert "webhook_url_not_allowed" in last_error(sqlite, event_id)

    def test_a_name_that_rebinds_is_refused_and_nothing_else_suffers(
        self, sqlite: Database
    ) -> None:
        """Public when the endpoint was made; the receiver's own loopback at the delivery."""
        with receiving() as inside:
            endpoint = add_endpoint(sqlite, inside.url(host="rebinding.example.com"))
            job_id = rows.add_job(sqlite)
            rows.cancel(sqlite, job_id)
            send(sqlite, allowed=AllowedHosts(), resolver=lambda *_: ["127.0.0.1"])
        assert inside.received == []
        (row,) = deliveries_of(sqlite)
        assert (row.state, row.endpoint_id) == (DeliveryState.PENDING, endpoint.id)
        assert rows.job_of(sqlite, job_id).state == "cancelled"

    def test_the_name_is_resolved_once_and_its_checked_address_used(self, sqlite: Database) -> None:
        """A name service that lies from the second question on is never asked twice."""
        answers = [["127.0.0.1"], ["127.0.0.2"]]
        asked: list[str] = []

        def resolver(host: str, _port: int) -> list[str]:
            asked.append(host)
            return answers[len(asked) - 1]

        with receiving() as receiver:
            add_event(sqlite, add_endpoint(sqlite, receiver.url(host="hooks.example.com")))
            send(sqlite, resolver=resolver)
        assert asked == ["hooks.example.com"]
        assert receiver.received[0].headers["host"] == f"hooks.example.com:{receiver.port}"

    def test_tls_is_verified_for_the_name_at_the_checked_address(
        self, sqlite: Database, tmp_path: Path
    ) -> None:
        server, client = build_contexts(tmp_path, "hooks.example.com")
        with receiving(tls=server) as receiver:
            right = add_endpoint(sqlite, receiver.url(host="hooks.example.com"))
            wrong = add_endpoint(sqlite, receiver.url(host="other.example.com"))
            good, bad = add_event(sqlite, right), add_event(sqlite, wrong)
            send(sqlite, tls=client, resolver=lambda *_: ["127.0.0.1"])
        assert receiver.ids() == [good]
        assert "no trusted connection" in last_error(sqlite, bad)

    def test_a_row_whose_url_is_no_url_fails_like_any_other(self, sqlite: Database) -> None:
        event_id = add_event(sqlite, add_endpoint(sqlite, "file:///etc/passwd"))
        send(sqlite)
        assert "must begin with" in last_error(sqlite, event_id)


class TestFairness:
    def test_hanging_receivers_hold_up_nobody_else(self, database: Database) -> None:
        """As many hanging endpoints as threads, known to fail: the others are served meanwhile."""
        threads = 4
        with receiving(hang) as hanging, receiving() as healthy:
            for _ in range(threads):
                endpoint = add_endpoint(database, hanging.url())
                change_endpoint(database, endpoint.id, failures=1, failing_since=time.time())
                add_event(database, endpoint)
            expected = {
                add_event(database, add_endpoint(database, healthy.url())) for _ in range(6)
            }
            run = threading.Thread(
                target=send, args=(database,), kwargs={"threads": threads, "timeout_s": 30.0}
            )
            run.start()
            _wait_until(lambda: len(healthy.ids()) == len(expected))
            assert set(healthy.ids()) == expected
            assert run.is_alive()  # the hanging ones are still being waited for
            hanging.over.set()
            run.join(60)

    def test_many_events_for_a_hanging_receiver_take_one_thread(self, sqlite: Database) -> None:
        with receiving(hang) as hanging, receiving() as healthy:
            endpoint = add_endpoint(sqlite, hanging.url())
            for _ in range(8):
                add_event(sqlite, endpoint)
            event_id = add_event(sqlite, add_endpoint(sqlite, healthy.url()))
            run = threading.Thread(
                target=send, args=(sqlite,), kwargs={"threads": 2, "timeout_s": 30.0}
            )
            run.start()
            _wait_until(lambda: healthy.ids() == [event_id])
            assert len(hanging.received) <= 1
            change_endpoint(sqlite, endpoint.id, disabled_at=1.0)  # nothing more for it
            hanging.over.set()
            run.join(60)

    def test_what_comes_due_while_a_receiver_hangs_does_not_wait_for_it(
        self, database: Database
    ) -> None:
        with receiving(hang) as hanging, receiving() as healthy:
            add_event(database, add_endpoint(database, hanging.url()))
            run = threading.Thread(target=send, args=(database,), kwargs={"timeout_s": 30.0})
            run.start()
            assert hanging.arrived.wait(60)
            rows.cancel(database, rows.add_job(database))  # of which the hanging one is told, too
            later = add_event(database, add_endpoint(database, healthy.url()))
            _wait_until(lambda: healthy.ids() == [later])
            assert run.is_alive()
            assert len(hanging.received) == 1
            hanging.over.set()
            run.join(60)

    def test_a_draining_worker_claims_nothing_more(self, sqlite: Database) -> None:
        with receiving() as receiver:
            add_event(sqlite, add_endpoint(sqlite, receiver.url()))
            assert send_due(build_sender(sqlite), threads=2, should_stop=lambda: True) == 0
        assert receiver.received == []


class TestWorkers:
    def test_racing_workers_send_each_event_once(self, database: Database) -> None:
        inflight: dict[str, int] = {}
        doubled: list[str] = []
        lock = threading.Lock()

        def answer(handler: Handler) -> None:
            event_id = str(handler.headers["webhook-id"])
            with lock:
                inflight[event_id] = inflight.get(event_id, 0) + 1
                if inflight[event_id] > 1:
                    doubled.append(event_id)
            time.sleep(0.01)
            with lock:
                inflight[event_id] -= 1
            Script([200])(handler)

        with receiving(answer) as receiver:
            for _ in range(4):
                endpoint = add_endpoint(database, receiver.url())
                for _ in range(3):
                    add_event(database, endpoint)
            workers = [
                threading.Thread(target=send, args=(database,), kwargs={"owner": f"host:{n}"})
                for n in range(3)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(60)
            # A worker ends when it finds nothing free; what is left is for the next ring.
            while send(database):
                pass
        assert doubled == []
        assert len(receiver.ids()) == len(set(receiver.ids())) == 12
        assert {row.state for row in deliveries_of(database)} == {DeliveryState.DELIVERED}

    def test_a_worker_killed_while_sending_and_another_resends(
        self, database_url: str, database: Database, start_runtime: StartRuntime
    ) -> None:
        with receiving(hang) as receiver:
            event_id = add_event(database, add_endpoint(database, receiver.url()))
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.unit.worker.children.delivering", database_url],
                cwd=_ROOT,
                env=build_environment({}),
            )
            try:
                assert receiver.arrived.wait(60)
            finally:
                worker.send_signal(signal.SIGKILL)
                worker.wait(30)
            row = delivery_of(database, event_id)
            assert (row.state, row.attempt) == (DeliveryState.SENDING, 1)
            assert row.lease_owner == f"killed:{worker.pid}"

            receiver.answer = Script([200])
            assert send(database) == 0  # the dead one's lease still holds
            rows.let_lease_run_out(database, event_id, WebhookDeliveryRow)
            result = sweep(start_runtime(database_url))
            assert (result.counts["webhook_resends"], result.faults) == (1, {})
            assert send(database) == 1
            assert receiver.ids() == [event_id, event_id]
        assert delivery_of(database, event_id).state == DeliveryState.DELIVERED

    def test_a_broker_that_is_down_delays_nothing(
        self, start_runtime: StartRuntime, database_url: str
    ) -> None:
        runtime = start_runtime(database_url, broker_url="redis://127.0.0.1:1/0")
        with receiving() as receiver:
            event_id = add_event(runtime.database, add_endpoint(runtime.database, receiver.url()))
            assert deliver_due(runtime) == 1
            assert receiver.ids() == [event_id]

    def test_the_task_sends_unless_the_worker_is_at_it(
        self, start_runtime: StartRuntime, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = start_runtime(sqlite_url)
        monkeypatch.setattr(tasks, "get_runtime", lambda: runtime)
        assert tasks.deliver.name == DELIVER_TASK
        with receiving() as receiver:
            event_id = add_event(runtime.database, add_endpoint(runtime.database, receiver.url()))
            with tasks.hold_slot(runtime.folder, "deliver", 1):
                tasks.deliver()
            assert receiver.ids() == []
            tasks.deliver()
            assert receiver.ids() == [event_id]


def test_a_sweep_rings_once_for_all_that_is_due_and_counts_what_it_gives_up(
    start_runtime: StartRuntime, sqlite_url: str
) -> None:
    runtime = start_runtime(sqlite_url, broker_url="redis://127.0.0.1:1/0")
    rung: list[str] = []
    runtime.doorbell = Bell(rung)
    endpoint, closed = add_endpoint(runtime.database), add_endpoint(runtime.database)
    for row in (endpoint, endpoint, closed):
        add_event(runtime.database, row)
    change_endpoint(runtime.database, closed.id, disabled_at=1.0)
    result = sweep(runtime)
    assert result.faults == {}
    assert rung.count(DELIVER_TASK) == 1
    assert result.counts["webhooks_given_up"] == 1
    assert "webhook_resends" not in result.counts


class Bell:
    """Remembers the rings."""

    def __init__(self, rung: list[str]) -> None:
        self.rung = rung

    def ring(self, task: str) -> bool:
        self.rung.append(task)
        return True


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = monotonic_s() + timeout_s
    while not condition():
        assert monotonic_s() < deadline_s
        time.sleep(0.01)
