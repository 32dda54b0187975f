"""The outbox: one event for each end and endpoint, in the transaction that ends it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.jobs import attempts, control
from core.platform.leases import LeaseLostError
from core.platform.webhooks import endpoints
from core.platform.webhooks.deliveries import abandon_waiting
from core.types import DatasetState, DeliveryState, JobState
from tests.integration.platform import rows
from tests.integration.platform.webhook_rows import (
    add_endpoint,
    add_event,
    change_endpoint,
    claim,
    deliveries_of,
    delivery_of,
    endpoint_of,
)


def told(database: Database) -> list[tuple[str, str]]:
    """Type and subject of every event."""
    return [(row.type, str(row.subject_id)) for row in deliveries_of(database)]


def payload_of(database: Database) -> dict[str, Any]:
    (row,) = deliveries_of(database)
    content: dict[str, Any] = json.loads(row.payload)
    return content


class TestJobs:
    @pytest.mark.parametrize(
        ("state", "event_type"),
        [
            (JobState.SUCCEEDED, "fine_tuning.job.succeeded"),
            (JobState.FAILED, "fine_tuning.job.failed"),
            (JobState.CANCELLED, "fine_tuning.job.cancelled"),
        ],
    )
    def test_an_end_is_told_once_to_each_endpoint(
        self, database: Database, state: JobState, event_type: str
    ) -> None:
        first, second = add_endpoint(database), add_endpoint(database)
        job_id = rows.add_job_in(database, state).row_id
        owed = deliveries_of(database)
        assert {row.endpoint_id for row in owed} == {first.id, second.id}
        assert {(row.type, row.subject_id) for row in owed} == {(event_type, job_id)}
        assert len({row.id for row in owed}) == 2
        assert all(row.id.startswith("evt_") for row in owed)

    @pytest.mark.parametrize(
        "state", [JobState.VALIDATING_FILES, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED]
    )
    def test_what_has_not_ended_is_not_told(self, database: Database, state: JobState) -> None:
        add_endpoint(database)
        rows.add_job_in(database, state)
        assert told(database) == []

    def test_the_payload_names_what_get_shows(self, database: Database) -> None:
        add_endpoint(database)
        job_id = rows.add_job_in(database, JobState.SUCCEEDED).row_id
        job = rows.job_of(database, job_id)
        content = payload_of(database)
        assert content["type"] == "fine_tuning.job.succeeded"
        assert content["timestamp"].endswith("Z")
        data = content["data"]
        assert (data["id"], data["status"], data["model_id"]) == (job_id, "succeeded", job.model_id)
        assert job.finished_at is not None
        assert data["finished_at"] == int(job.finished_at)
        assert data["links"]["model"] == f"/v1/models/{job.model_id}"
        assert data["error"] is None

    def test_a_long_error_makes_no_long_payload(self, database: Database) -> None:
        add_endpoint(database)
        claimed = rows.add_job_in(database, JobState.RUNNING)
        error = {"code": "x", "message": "m" * 100_000, "class": "user", "log": "l" * 100_000}
        with database.write() as session:
            attempts.fail(session, claimed, error)
        (row,) = deliveries_of(database)
        assert len(row.payload) < 4096
        assert json.loads(row.payload)["data"]["error"]["code"] == "x"

    def test_a_transaction_that_is_rolled_back_tells_nothing(self, database: Database) -> None:
        add_endpoint(database)
        job_id = rows.add_job(database)
        with pytest.raises(RuntimeError), database.write() as session:  # noqa: PT012
            control.request_cancel(session, job_id)
            raise RuntimeError("the process would die here")
        assert told(database) == []
        rows.cancel(database, job_id)
        assert told(database) == [("fine_tuning.job.cancelled", job_id)]
        rows.cancel(database, job_id)
        assert len(told(database)) == 1

    def test_an_overtaken_attempt_tells_nothing(self, database: Database) -> None:
        add_endpoint(database)
        claimed = rows.add_job_in(database, JobState.RUNNING)
        rows.lose(database, claimed)
        with pytest.raises(LeaseLostError):
            rows.publish(database, claimed)
        assert told(database) == []

    def test_the_last_lost_attempt_is_an_end(self, database: Database) -> None:
        add_endpoint(database)
        claimed = rows.add_job_in(database, JobState.RUNNING)
        rows.lose(database, claimed, max_attempts=1)
        assert told(database) == [("fine_tuning.job.failed", claimed.row_id)]
        assert payload_of(database)["data"]["error"]["code"] == "worker_lost"

    def test_racing_ends_tell_of_one(self, database: Database) -> None:
        add_endpoint(database)
        for _ in range(5):
            claimed = rows.add_job_in(database, JobState.RUNNING)
            barrier = threading.Barrier(3)

            def race(action: Any, *, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(10)
                try:
                    with database.write() as session:
                        action(session)
                except LeaseLostError:
                    return

            with ThreadPoolExecutor(3) as pool:
                for run in [
                    pool.submit(race, lambda s, c=claimed: attempts.fail(s, c, rows.CRASH)),
                    pool.submit(race, lambda s, c=claimed: attempts.fail(s, c, rows.CRASH)),
                    pool.submit(
                        race,
                        lambda s, c=claimed: attempts.publish(s, c, rows.build_model(s, c.row_id)),
                    ),
                ]:
                    run.result(60)
            state = rows.job_of(database, claimed.row_id).state
            mine = [event for event in told(database) if event[1] == claimed.row_id]
            assert mine == [(f"fine_tuning.job.{state}", claimed.row_id)]


class TestDatasets:
    def _claim(self, database: Database) -> Any:
        rows.add_dataset(database, DatasetState.PENDING)
        with database.write() as session:
            return datasets.claim_dataset(session, owner="host:1", ttl_s=60)

    def test_ready(self, database: Database) -> None:
        add_endpoint(database)
        claimed = self._claim(database)
        with database.write() as session:
            datasets.mark_ready(
                session,
                claimed,
                manifest_sha256="e" * 64,
                caches={},
                classes=["a", "b"],
                splits={"train": 3},
                report={"summary": {}},
            )
        assert told(database) == [("dataset.ready", claimed.row_id)]
        data = payload_of(database)["data"]
        assert (data["status"], data["splits"]) == ("ready", {"train": 3})
        assert data["links"]["report"] == f"/v1/datasets/{claimed.row_id}/report"

    @pytest.mark.parametrize("state", [DatasetState.INVALID, DatasetState.FAILED])
    def test_unusable_with_the_jobs_that_waited(
        self, database: Database, state: DatasetState
    ) -> None:
        add_endpoint(database)
        dataset_id = rows.add_dataset(database, DatasetState.PENDING)
        job_id = rows.add_job(database, dataset_id)
        with database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=60)
            assert claimed is not None
            datasets.mark_unusable(session, claimed, state=state, error=rows.CRASH)
        assert set(told(database)) == {
            (f"dataset.{state}", dataset_id),
            ("fine_tuning.job.failed", job_id),
        }

    def test_the_last_lost_attempt_is_an_end(self, database: Database) -> None:
        add_endpoint(database)
        claimed = self._claim(database)
        with database.write() as session:
            datasets.give_up_attempt(session, claimed, rows.CRASH, max_attempts=1)
        assert told(database) == [("dataset.failed", claimed.row_id)]


class TestEndpoints:
    def test_only_what_is_wanted_where_it_is_wanted(self, database: Database) -> None:
        wants = add_endpoint(database, event_types=["fine_tuning.job.cancelled"])
        add_endpoint(database, event_types=["fine_tuning.job.failed", "dataset.ready"])
        add_endpoint(database, project_id="another")
        deleted, disabled = add_endpoint(database), add_endpoint(database)
        with database.write() as session:
            endpoints.delete_endpoint(session, deleted.id, project_id="default")
            row = endpoints.get_endpoint(session, disabled.id, project_id="default", lock=True)
            endpoints.disable_endpoint(session, row, "user", "for a test")
        rows.cancel(database, rows.add_job(database))
        assert [row.endpoint_id for row in deliveries_of(database)] == [wants.id]

    def test_disabling_gives_up_what_waits_but_not_what_is_being_sent(
        self, database: Database
    ) -> None:
        endpoint = add_endpoint(database)
        sent, waits = add_event(database, endpoint), add_event(database, endpoint)
        assert claim(database) is not None
        with database.write() as session:
            row = endpoints.get_endpoint(session, endpoint.id, project_id="default", lock=True)
            endpoints.disable_endpoint(session, row, "user", "for a test")
        states = {row.id: row.state for row in deliveries_of(database)}
        assert sorted(states.values()) == [DeliveryState.FAILED, DeliveryState.SENDING]
        assert set(states) == {sent, waits}

    def test_what_was_written_while_it_was_being_disabled_is_swept(
        self, database: Database
    ) -> None:
        endpoint, healthy = add_endpoint(database), add_endpoint(database)
        late, fine = add_event(database, endpoint), add_event(database, healthy)
        change_endpoint(database, endpoint.id, disabled_at=1.0)
        with database.write() as session:
            assert abandon_waiting(session) == 1
        assert delivery_of(database, late).state == DeliveryState.FAILED
        assert delivery_of(database, fine).state == DeliveryState.PENDING

    def test_a_rotation_signs_with_both_for_a_day(self, database: Database) -> None:
        endpoint = add_endpoint(database)
        with database.write() as session:
            row = endpoints.get_endpoint(session, endpoint.id, project_id="default", lock=True)
            endpoints.rotate_secret(session, row)
        rotated = endpoint_of(database, endpoint.id)
        assert rotated.previous_secret == endpoint.secret != rotated.secret
        add_event(database, endpoint)
        outgoing = claim(database)
        assert outgoing is not None
        assert outgoing.secrets == (rotated.secret, endpoint.secret)
        assert rotated.previous_secret_until is not None
        assert 86_390 < rotated.previous_secret_until - outgoing.sent_at_s <= 86_400

        other = add_endpoint(database)
        change_endpoint(
            database,
            other.id,
            previous_secret="whsec_b2xk",
            previous_secret_until=outgoing.sent_at_s,
        )
        add_event(database, other)
        later = claim(database)
        assert later is not None
        assert later.secrets == (other.secret,)

    def test_a_job_ends_beside_a_change_of_its_endpoint(self, postgresql: Database) -> None:
        endpoint = add_endpoint(postgresql)
        job_id = rows.add_job(postgresql)
        with postgresql.write() as session:
            endpoints.get_endpoint(session, endpoint.id, project_id="default", lock=True)
            # In a transaction of its own, which a stronger lock would keep waiting.
            with ThreadPoolExecutor(1) as pool:
                pool.submit(rows.cancel, postgresql, job_id).result(10)
        assert told(postgresql) == [("fine_tuning.job.cancelled", job_id)]

    def test_there_is_a_limit(self, database: Database) -> None:
        for _ in range(endpoints.MAX_ENDPOINTS):
            add_endpoint(database)
        with pytest.raises(endpoints.TooManyEndpointsError):
            add_endpoint(database)
        add_endpoint(database, project_id="another")
