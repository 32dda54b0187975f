"""Claims, leases, retries and endings of deliveries, on both databases; nothing is sent here."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from core.platform.collection import rows
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.tables import WebhookDeliveryRow
from core.platform.leases import LeaseLostError
from core.platform.webhooks import endpoints
from core.platform.webhooks.attempts import Outcome
from core.platform.webhooks.deliveries import (
    Outgoing,
    claim_due,
    count_by_state,
    expire_attempts,
    find_oldest_due_s,
    has_due,
)
from core.platform.webhooks.schedule import DAY_S, RETRY_DELAYS_S
from core.types import DeliveryState
from tests.integration.platform.rows import let_lease_run_out
from tests.integration.platform.webhook_rows import (
    BROKEN,
    OK,
    add_endpoint,
    add_event,
    change_endpoint,
    claim,
    claim_one,
    deliveries_of,
    delivery_of,
    end,
    endpoint_of,
    make_due,
)

GONE = Outcome(status=410, error="the receiver answered 410", duration_ms=5)


class TestClaim:
    def test_one_attempt_at_a_time(self, database: Database) -> None:
        event_id = add_event(database, add_endpoint(database))
        with database.read() as session:
            assert has_due(session)
        outgoing = claim_one(database)
        assert (outgoing.claim.row_id, outgoing.claim.attempt) == (event_id, 1)
        assert claim(database) is None
        with database.read() as session:
            assert not has_due(session)

    def test_racing_claims_take_each_delivery_once(self, database: Database) -> None:
        expected = {add_event(database, add_endpoint(database)) for _ in range(6)}
        barrier = threading.Barrier(4)

        def race(number: int) -> list[str]:
            barrier.wait(10)
            taken = []
            while (outgoing := claim(database, f"host:{number}")) is not None:
                taken.append(outgoing.claim.row_id)
            return taken

        with ThreadPoolExecutor(4) as pool:
            taken = [event_id for run in pool.map(race, range(4)) for event_id in run]
        assert sorted(taken) == sorted(expected)
        assert {row.attempt for row in deliveries_of(database)} == {1}

    def test_an_endpoint_that_is_being_sent_to_waits_its_turn(self, database: Database) -> None:
        busy, other = add_endpoint(database), add_endpoint(database)
        first, second = add_event(database, busy), add_event(database, busy)
        third = add_event(database, other)
        outgoing = claim_one(database)
        assert claim_one(database).claim.row_id == third
        assert claim(database) is None
        end(database, outgoing, OK)
        assert {outgoing.claim.row_id, claim_one(database).claim.row_id} == {first, second}

    def test_endpoints_that_answer_come_first(self, database: Database) -> None:
        failing, healthy = add_endpoint(database), add_endpoint(database)
        change_endpoint(database, failing.id, failures=1)
        late, early = add_event(database, failing), add_event(database, healthy)
        assert claim_one(database).claim.row_id == early
        assert claim(database, only_healthy=True) is None
        assert claim_one(database).claim.row_id == late

    def test_what_is_not_due_waits(self, database: Database) -> None:
        event_id = add_event(database, add_endpoint(database))
        with database.write() as session:
            session.execute(update(WebhookDeliveryRow).values(due_at=db_now() + 60))
        assert claim(database) is None
        make_due(database)
        assert claim_one(database).claim.row_id == event_id

    def test_a_racing_claim_waits_for_no_lock(self, postgresql: Database) -> None:
        add_event(postgresql, add_endpoint(postgresql))
        with postgresql.write() as session:
            assert claim_due(session, owner="host:1", ttl_s=60) is not None
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(claim, postgresql, "host:2").result(10) is None


class TestLease:
    def test_a_lost_attempt_is_sent_again_with_the_same_id(self, database: Database) -> None:
        event_id = add_event(database, add_endpoint(database))
        lost = claim_one(database)
        let_lease_run_out(database, event_id, WebhookDeliveryRow)
        with database.write() as session:
            assert expire_attempts(session) == [event_id]
        again = claim_one(database)
        assert (again.claim.row_id, again.claim.attempt) == (event_id, 2)
        assert again.payload == lost.payload
        # The dead one wakes up, and may write nothing.
        with pytest.raises(LeaseLostError):
            end(database, lost, BROKEN)
        assert endpoint_of(database, again.endpoint_id).failures == 0
        assert end(database, again, OK) == DeliveryState.DELIVERED

    def test_a_live_lease_is_left_alone(self, database: Database) -> None:
        add_event(database, add_endpoint(database))
        claim_one(database)
        with database.write() as session:
            assert expire_attempts(session) == []


class TestOutcomes:
    def test_delivered(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        change_endpoint(database, endpoint.id, failures=3, failing_since=1.0)
        event_id = add_event(database, endpoint)
        assert end(database, claim_one(database), OK) == DeliveryState.DELIVERED
        row = delivery_of(database, event_id)
        assert row.finished_at is not None
        assert (row.lease_owner, row.lease_expires_at) == (None, None)
        (attempt,) = row.attempts
        assert (attempt["status"], attempt["error"], attempt["duration_ms"]) == (200, None, 5)
        healed = endpoint_of(database, endpoint.id)
        assert (healed.failures, healed.failing_since) == (0, None)
        make_due(database)
        assert claim(database) is None

    def test_retries_follow_the_schedule_and_end(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        event_id = add_event(database, endpoint)
        for number, pause_s in enumerate(RETRY_DELAYS_S, 1):
            outgoing = claim_one(database)
            assert outgoing.claim.attempt == number
            assert end(database, outgoing, BROKEN) == DeliveryState.PENDING
            wait_s = delivery_of(database, event_id).due_at - outgoing.sent_at_s
            assert pause_s <= wait_s < 1.1 * pause_s + 30
            make_due(database)
        assert end(database, claim_one(database), BROKEN) == DeliveryState.FAILED
        row = delivery_of(database, event_id)
        assert len(row.attempts) == row.failures == len(RETRY_DELAYS_S) + 1
        assert row.finished_at is not None
        # Within seconds here; the endpoint is given up only after days.
        assert endpoint_of(database, endpoint.id).disabled_at is None

    def test_410_disables_the_endpoint(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        sent, waits = add_event(database, endpoint), add_event(database, endpoint)
        assert end(database, claim_one(database), GONE) == DeliveryState.FAILED
        assert {delivery_of(database, one).state for one in (sent, waits)} == {DeliveryState.FAILED}
        disabled = endpoint_of(database, endpoint.id)
        assert disabled.disabled_at is not None
        assert disabled.disabled_reason is not None
        assert disabled.disabled_reason["code"] == "gone"

    @pytest.mark.parametrize(
        ("failures", "days", "is_disabled"), [(9, 3.1, True), (8, 30.0, False), (50, 2.9, False)]
    )
    def test_many_failures_over_days_disable_it(
        self, database: Database, failures: int, days: float, *, is_disabled: bool
    ) -> None:
        endpoint = add_endpoint(database)
        add_event(database, endpoint)
        since = claim_one(database)
        change_endpoint(
            database,
            endpoint.id,
            failures=failures,
            failing_since=since.sent_at_s - days * DAY_S,
        )
        state = end(database, since, BROKEN)
        row = endpoint_of(database, endpoint.id)
        assert row.failures == failures + 1
        assert (row.disabled_at is not None) is is_disabled
        assert state == (DeliveryState.FAILED if is_disabled else DeliveryState.PENDING)
        if is_disabled:
            assert row.disabled_reason is not None
            assert row.disabled_reason["code"] == "failing"

    def test_a_failure_after_the_endpoints_deletion_is_the_last(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        add_event(database, endpoint)
        outgoing = claim_one(database)
        with database.write() as session:
            endpoints.delete_endpoint(session, endpoint.id, project_id="default")
        assert end(database, outgoing, BROKEN) == DeliveryState.FAILED

    def test_enabling_begins_anew(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        add_event(database, endpoint)
        end(database, claim_one(database), GONE)
        with database.write() as session:
            row = endpoints.get_endpoint(session, endpoint.id, project_id="default", lock=True)
            endpoints.enable_endpoint(session, row)
        event_id = add_event(database, endpoint)
        assert claim_one(database).claim.row_id == event_id

    def test_two_endings_for_one_endpoint_at_once(self, database: Database) -> None:
        """Neither waits for ever, and a 410 leaves nothing pending."""
        endpoint = add_endpoint(database)
        claims: list[Outgoing] = []
        for _ in range(2):
            add_event(database, endpoint)
            claims.append(claim_one(database))
            # As two claims in the same instant on PostgreSQL would leave them.
            with database.write() as session:
                session.execute(update(WebhookDeliveryRow).values(state="delivered"))
        with database.write() as session:
            session.execute(update(WebhookDeliveryRow).values(state="sending"))
        with ThreadPoolExecutor(2) as pool:
            runs = [
                pool.submit(end, database, outgoing, outcome)
                for outgoing, outcome in zip(claims, (GONE, BROKEN), strict=True)
            ]
            states = [run.result(30) for run in runs]
        assert states[0] == DeliveryState.FAILED
        assert {row.state for row in deliveries_of(database)} == {DeliveryState.FAILED}


def test_the_numbers_for_metrics(database: Database) -> None:
    endpoint = add_endpoint(database)
    with database.read() as session:
        assert count_by_state(session) == dict.fromkeys(DeliveryState, 0)
        assert find_oldest_due_s(session) is None
    for _ in range(3):
        add_event(database, endpoint)
    end(database, claim_one(database), OK)
    claim_one(database)
    make_due(database)
    with database.read() as session:
        counts = count_by_state(session)
        overdue_s = find_oldest_due_s(session)
    assert counts == {"pending": 1, "sending": 1, "delivered": 1, "failed": 0}
    assert overdue_s is not None
    assert 1 <= overdue_s < 60


def test_what_ended_long_ago_is_collected_and_nothing_else(database: Database) -> None:
    endpoint, kept = add_endpoint(database), add_endpoint(database)
    old, waits = add_event(database, endpoint), add_event(database, kept)
    with database.write() as session:
        endpoints.delete_endpoint(session, endpoint.id, project_id="default")
    with database.write() as session:
        assert rows.forget_webhook_deliveries(session) == 0
        assert rows.purge_webhook_endpoints(session) == 0
        long_ago = db_now() - 8 * DAY_S
        finished = WebhookDeliveryRow.finished_at.is_not(None)
        session.execute(update(WebhookDeliveryRow).where(finished).values(finished_at=long_ago))
        session.execute(update(WebhookDeliveryRow).values(created_at=long_ago))
    change_endpoint(database, endpoint.id, deleted_at=long_ago)
    with database.write() as session:
        assert rows.purge_webhook_endpoints(session) == 0  # its delivery is still there
        assert rows.forget_webhook_deliveries(session) == 1
        assert rows.purge_webhook_endpoints(session) == 1
    assert [row.id for row in deliveries_of(database)] == [waits]
    assert old != waits
