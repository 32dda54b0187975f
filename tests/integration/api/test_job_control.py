"""Pausing, resuming, retrying jobs, their priorities and places in the queue, over HTTP."""

from typing import Any

import pytest
from sqlalchemy import event, update

from core.platform.db.clock import db_now
from core.platform.db.tables import JobRow
from core.platform.doorbell import TRAIN_TASK
from core.platform.jobs import attempts, claiming
from core.platform.leases import Claim
from core.types import DatasetState
from tests.integration.api.rig import Rig

_JOBS = "/v1/fine_tuning/jobs"
_ERROR = {"code": "diverged", "message": "the loss is not finite", "class": "user"}


@pytest.fixture
def dataset_id(rig: Rig) -> str:
    """A dataset that is ready."""
    dataset_id = rig.upload(name="flowers")
    rig.finish_validation()
    return dataset_id


@pytest.fixture
def rung(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the doorbell was rung for."""
    rung: list[str] = []
    monkeypatch.setattr(rig.app.state.services.doorbell, "ring", rung.append)
    return rung


def submit(rig: Rig, dataset_id: str, **changes: Any) -> str:
    wanted = {"dataset_id": dataset_id, "method": {"pair": "starter"}, **changes}
    answer = rig.client.post(_JOBS, json=wanted)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def claim(rig: Rig) -> Claim:
    with rig.database.write() as session:
        claimed = claiming.claim_job(session, owner="test", ttl_s=60)
    assert claimed is not None
    return claimed


def fail(rig: Rig, claimed: Claim) -> None:
    with rig.database.write() as session:
        attempts.fail(session, claimed, _ERROR)


def post(rig: Rig, job_id: str, action: str, **options: Any) -> tuple[int, dict[str, Any]]:
    answer = rig.client.post(f"{_JOBS}/{job_id}/{action}", **options)
    return answer.status_code, answer.json()


class TestPauseAndResume:
    def test_a_queued_job_and_again(self, rig: Rig, dataset_id: str, rung: list[str]) -> None:
        job_id = submit(rig, dataset_id)
        for _ in range(2):
            status, job = post(rig, job_id, "pause")
            assert (status, job["status"]) == (200, "paused")
            assert job["progress"]["queue_position"] is None
        rung.clear()
        for _ in range(2):
            status, job = post(rig, job_id, "resume")
            assert (status, job["status"]) == (200, "queued")
            assert job["progress"]["queue_position"] == 0
        assert set(rung) == {TRAIN_TASK}
        listed = rig.client.get(f"{_JOBS}/{job_id}/events").json()["data"]
        assert [e["type"] for e in listed] == ["job.created", "job.paused", "job.resumed"]

    def test_a_running_job_is_asked_to_stop_and_can_be_left_alone(
        self, rig: Rig, dataset_id: str, rung: list[str]
    ) -> None:
        job_id = submit(rig, dataset_id)
        claim(rig)
        rung.clear()
        assert post(rig, job_id, "pause")[1]["status"] == "pausing"
        assert [j["id"] for j in rig.client.get(f"{_JOBS}?status=pausing").json()["data"]] == [
            job_id
        ]
        assert post(rig, job_id, "resume")[1]["status"] == "running"
        assert rung == []

    def test_a_job_whose_dataset_is_not_ready_waits_for_it_again(self, rig: Rig) -> None:
        job_id = submit(rig, rig.upload())
        assert post(rig, job_id, "pause")[1]["status"] == "paused"
        assert post(rig, job_id, "resume")[1]["status"] == "validating_files"
        rig.finish_validation()
        assert rig.client.get(f"{_JOBS}/{job_id}").json()["status"] == "queued"

    def test_a_paused_and_a_pausing_job_can_be_cancelled(self, rig: Rig, dataset_id: str) -> None:
        paused, pausing = submit(rig, dataset_id, priority=-1), submit(rig, dataset_id)
        claim(rig)
        assert post(rig, paused, "pause")[1]["status"] == "paused"
        assert post(rig, pausing, "pause")[1]["status"] == "pausing"
        assert post(rig, paused, "cancel")[1]["status"] == "cancelled"
        assert post(rig, pausing, "cancel")[1]["status"] == "cancelling"
        for action in ("pause", "resume"):
            status, problem = post(rig, pausing, action)
            assert (status, problem["code"]) == (409, "job_cancelling")

    @pytest.mark.parametrize("action", ["pause", "resume"])
    def test_an_ended_job_is_409_and_says_what_to_do(
        self, rig: Rig, dataset_id: str, action: str
    ) -> None:
        failed, cancelled = submit(rig, dataset_id), submit(rig, dataset_id)
        fail(rig, claim(rig))
        post(rig, cancelled, "cancel")
        for job_id, way_out in ((failed, "/retry"), (cancelled, f"POST {_JOBS}")):
            status, problem = post(rig, job_id, action)
            assert (status, problem["code"]) == (409, "job_terminal")
            assert way_out in problem["detail"]

    @pytest.mark.parametrize("action", ["pause", "resume", "retry"])
    def test_an_unknown_job_is_404(self, rig: Rig, action: str) -> None:
        status, problem = post(rig, "ftjob_none", action)
        assert (status, problem["code"]) == (404, "job_not_found")


class TestRetry:
    @pytest.fixture
    def failed(self, rig: Rig, dataset_id: str) -> str:
        job_id = submit(
            rig,
            dataset_id,
            name="roses",
            seed=3,
            priority=4,
            metadata={"who": "me"},
            hyperparameters={"epochs": 7},
        )
        fail(rig, claim(rig))
        return job_id

    def test_makes_a_new_job_of_a_failed_one(self, rig: Rig, failed: str, rung: list[str]) -> None:
        before = rig.client.get(f"{_JOBS}/{failed}").json()
        answer = rig.client.post(f"{_JOBS}/{failed}/retry")
        job = answer.json()
        assert (answer.status_code, job["status"]) == (201, "queued")
        assert answer.headers["Location"] == f"{_JOBS}/{job['id']}"
        same = ("name", "spec", "metadata", "dataset_id", "priority", "trainable_parameters")
        assert {name: job[name] for name in same} == {name: before[name] for name in same}
        assert (job["retried_from"], before["retried_from"]) == (failed, None)
        assert rig.client.get(answer.headers["Location"]).json() == job
        assert rig.client.get(f"{_JOBS}/{failed}").json() == before
        assert rung == [TRAIN_TASK]

    def test_with_a_key_makes_one(self, rig: Rig, failed: str) -> None:
        headers = {"Idempotency-Key": "again"}
        first = rig.client.post(f"{_JOBS}/{failed}/retry", headers=headers)
        second = rig.client.post(f"{_JOBS}/{failed}/retry", headers=headers)
        assert (first.status_code, second.status_code) == (201, 201)
        assert first.json() == second.json()
        assert second.headers["Idempotent-Replayed"] == "true"
        assert rig.count_rows()["jobs"] == 2
        fail(rig, claim(rig))
        other = rig.client.post(f"{_JOBS}/{first.json()['id']}/retry", headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        without = rig.client.post(f"{_JOBS}/{failed}/retry")
        assert without.json()["id"] not in (failed, first.json()["id"])

    def test_of_a_job_that_did_not_fail_is_409(self, rig: Rig, dataset_id: str) -> None:
        job_id = submit(rig, dataset_id)
        status, problem = post(rig, job_id, "retry")
        assert (status, problem["code"]) == (409, "job_not_failed")
        post(rig, job_id, "cancel")
        status, problem = post(rig, job_id, "retry")
        assert (status, problem["code"]) == (409, "job_not_failed")
        assert f"POST {_JOBS}" in problem["detail"]
        assert rig.count_rows()["jobs"] == 1

    def test_on_a_dataset_that_was_the_reason_is_409(self, rig: Rig) -> None:
        job_id = submit(rig, rig.upload())
        rig.finish_validation(state=DatasetState.INVALID)
        status, problem = post(rig, job_id, "retry")
        assert (status, problem["code"]) == (409, "dataset_not_usable")


class TestPriority:
    def test_orders_the_queue_and_can_be_changed(self, rig: Rig, dataset_id: str) -> None:
        low, high = submit(rig, dataset_id), submit(rig, dataset_id, priority=10)

        def positions() -> list[int]:
            jobs = [rig.client.get(f"{_JOBS}/{job_id}").json() for job_id in (low, high)]
            return [job["progress"]["queue_position"] for job in jobs]

        assert positions() == [1, 0]
        answer = rig.client.patch(f"{_JOBS}/{low}", json={"priority": 100})
        assert (answer.status_code, answer.json()["priority"]) == (200, 100)
        assert answer.json()["progress"]["queue_position"] == 0
        assert positions() == [0, 1]
        assert claim(rig).row_id == low

    def test_is_zero_unless_asked_for_and_no_part_of_the_spec(
        self, rig: Rig, dataset_id: str
    ) -> None:
        job = rig.client.get(f"{_JOBS}/{submit(rig, dataset_id)}").json()
        assert job["priority"] == 0
        assert "priority" not in job["spec"]

    @pytest.mark.parametrize("wrong", [101, -101, 1.5, "1", None, True])
    def test_what_is_no_priority_is_422(self, rig: Rig, dataset_id: str, wrong: Any) -> None:
        job_id = submit(rig, dataset_id)
        body = {"dataset_id": dataset_id, "method": {"pair": "starter"}, "priority": wrong}
        for answer in (
            rig.client.patch(f"{_JOBS}/{job_id}", json={"priority": wrong}),
            rig.client.post(_JOBS, json=body),
        ):
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"] == "/priority"

    @pytest.mark.parametrize("body", [{}, {"priority": 1, "name": "x"}, {"status": "queued"}, []])
    def test_nothing_else_can_be_changed(
        self, rig: Rig, dataset_id: str, body: dict[str, Any]
    ) -> None:
        answer = rig.client.patch(f"{_JOBS}/{submit(rig, dataset_id)}", json=body)
        assert answer.status_code == 422

    def test_of_a_job_that_does_not_wait_is_409(self, rig: Rig, dataset_id: str) -> None:
        job_id = submit(rig, dataset_id)
        claimed = claim(rig)
        for code, way_out in (("job_not_waiting", "/pause"), ("job_terminal", "already failed")):
            answer = rig.client.patch(f"{_JOBS}/{job_id}", json={"priority": 1})
            assert (answer.status_code, answer.json()["code"]) == (409, code)
            assert way_out in answer.json()["detail"]
            if code == "job_not_waiting":
                fail(rig, claimed)

    def test_of_an_unknown_job_is_404_and_without_json_415(self, rig: Rig) -> None:
        answer = rig.client.patch(f"{_JOBS}/ftjob_none", json={"priority": 1})
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        assert rig.client.patch(f"{_JOBS}/ftjob_none", content=b"1").status_code == 415


class TestEstimatedStart:
    def test_is_told_for_queued_jobs_only(self, rig: Rig, dataset_id: str) -> None:
        running, waiting = submit(rig, dataset_id), submit(rig, dataset_id)
        assert rig.client.get(f"{_JOBS}/{waiting}").json()["progress"]["estimated_start"] is None
        claim(rig)
        with rig.database.write() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == running)
                .values(progress={"eta_s": 1000.0}, started_at=db_now() - 500)
            )
        last = submit(rig, dataset_id)
        jobs = {job["id"]: job["progress"] for job in rig.client.get(_JOBS).json()["data"]}
        assert jobs[running]["estimated_start"] is None
        # The one that runs needs another 1000 seconds, and is expected to take 1500 in all.
        finish = jobs[running]["estimated_finish"]
        assert jobs[waiting]["estimated_start"] == pytest.approx(finish, abs=3)
        assert jobs[last]["estimated_start"] == pytest.approx(finish + 1500, abs=3)

    def test_a_list_takes_as_many_statements_for_many_jobs_as_for_few(
        self, rig: Rig, dataset_id: str
    ) -> None:
        submit(rig, dataset_id)
        claim(rig)
        other = rig.upload()
        rig.finish_validation()
        for _ in range(6):
            submit(rig, dataset_id)
            submit(rig, other)
        statements: list[str] = []

        def note(_conn: Any, _cursor: Any, statement: str, *_more: Any) -> None:
            statements.append(statement)

        event.listen(rig.database.engine, "before_cursor_execute", note)
        counts = []
        for limit in (2, 13):
            statements.clear()
            listed = rig.client.get(f"{_JOBS}?limit={limit}").json()["data"]
            assert len(listed) == limit
            counts.append(len(statements))
        assert counts[0] == counts[1] < 10
