"""Pausing and resuming in every state, and while the job changes hands."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from core.errors import NotFoundError
from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming, control, repository
from core.platform.jobs.control import JobCancellingError, JobTerminalError
from core.platform.jobs.repository import DatasetUnusableError
from core.platform.jobs.transitions import enter
from core.platform.leases import Claim, LeaseLostError
from core.platform.state_machine import ForbiddenTransitionError
from core.types import DatasetState, JobState
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_dataset,
    add_job,
    add_job_in,
    build_model,
    cancel,
    claim,
    columns_of,
    dataset_of,
    job_of,
    lose,
    models_of,
    pause,
    publish,
    resume,
    tell_events,
)


def release(database: Database, claimed: Claim) -> None:
    with database.write() as session:
        attempts.release(session, claimed)


class TestPause:
    @pytest.mark.parametrize(
        ("state", "expected"),
        [
            ("validating_files", "paused"),
            ("queued", "paused"),
            ("running", "pausing"),
            ("pausing", "pausing"),
            ("paused", "paused"),
        ],
    )
    def test_is_repeatable(self, database: Database, state: str, expected: str) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        assert pause(database, job_id) == expected
        once, told = columns_of(job_of(database, job_id)), tell_events(database, job_id)
        assert pause(database, job_id) == expected
        assert columns_of(job_of(database, job_id)) == once
        assert tell_events(database, job_id) == told

    @pytest.mark.parametrize("wish", [pause, resume])
    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_an_ended_job_refuses(
        self, database: Database, state: str, wish: Callable[[Database, str], str]
    ) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        before = columns_of(job_of(database, job_id))
        with pytest.raises(JobTerminalError, match=state):
            wish(database, job_id)
        assert columns_of(job_of(database, job_id)) == before

    @pytest.mark.parametrize("wish", [pause, resume])
    def test_a_cancellation_cannot_be_turned_into_it(
        self, database: Database, wish: Callable[[Database, str], str]
    ) -> None:
        job_id = add_job_in(database, JobState.CANCELLING).row_id
        with pytest.raises(JobCancellingError, match="cannot be undone"):
            wish(database, job_id)
        assert job_of(database, job_id).state == "cancelling"

    @pytest.mark.parametrize("wish", [pause, resume])
    def test_an_unknown_job_is_not_found(
        self, database: Database, wish: Callable[[Database, str], str]
    ) -> None:
        with pytest.raises(NotFoundError):
            wish(database, "ftjob_none")

    def test_the_heartbeat_tells_the_attempt_which_hands_back_uncharged(
        self, database: Database
    ) -> None:
        job_id = add_job(database)
        claimed = claim(database)
        pause(database, job_id)
        with database.write() as session:
            assert attempts.report_progress(session, claimed, ttl_s=TTL_S) == "pausing"
            attempts.record_checkpoint(session, claimed, sha256="e" * 64, step=9)
        release(database, claimed)
        job = job_of(database, job_id)
        assert (job.state, job.failures, job.checkpoint_step) == ("paused", 0, 9)
        assert (job.lease_owner, job.lease_expires_at, job.finished_at) == (None, None, None)
        assert tell_events(database, job_id)[-2:] == ["job.pausing", "job.paused"]

    def test_nobody_claims_a_paused_job(self, database: Database) -> None:
        add_job_in(database, JobState.PAUSED)
        with database.write() as session:
            assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is None

    def test_a_worker_that_dies_while_pausing_costs_an_attempt_and_leaves_it_paused(
        self, database: Database
    ) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        lose(database, claimed)
        job = job_of(database, claimed.row_id)
        assert (job.state, job.failures) == ("paused", 1)
        assert tell_events(database, job.id)[-2:] == ["attempt.lost", "job.paused"]
        with pytest.raises(LeaseLostError):
            release(database, claimed)

    def test_the_last_attempt_lost_while_pausing_fails_the_job(self, database: Database) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        lose(database, claimed, max_attempts=1)
        job = job_of(database, claimed.row_id)
        assert (job.state, job.error["code"]) == ("failed", "worker_lost")

    def test_a_job_that_was_done_before_it_stopped_succeeds(self, database: Database) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        publish(database, claimed)
        assert job_of(database, claimed.row_id).state == "succeeded"
        assert [model.job_id for model in models_of(database)] == [claimed.row_id]

    def test_cancel_comes_before_pause(self, database: Database) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        assert cancel(database, claimed.row_id) == "cancelling"
        with pytest.raises(LeaseLostError):
            release(database, claimed)
        with database.write() as session:
            attempts.finish_cancel(session, claimed)
        assert job_of(database, claimed.row_id).state == "cancelled"


class TestResume:
    @pytest.mark.parametrize("state", ["validating_files", "queued", "running"])
    def test_of_a_job_that_goes_on_anyway_changes_nothing(
        self, database: Database, state: str
    ) -> None:
        job_id = add_job_in(database, JobState(state)).row_id
        before = columns_of(job_of(database, job_id))
        assert resume(database, job_id) == state
        assert columns_of(job_of(database, job_id)) == before
        assert "job.resumed" not in tell_events(database, job_id)

    def test_goes_on_from_the_checkpoint_with_a_new_attempt(self, database: Database) -> None:
        job_id = add_job(database)
        first = claim(database)
        with database.write() as session:
            attempts.record_checkpoint(session, first, sha256="e" * 64, step=9)
        pause(database, job_id)
        release(database, first)
        assert resume(database, job_id) == "queued"
        second = claim(database)
        job = job_of(database, job_id)
        assert (second.row_id, second.attempt, job.state) == (job_id, 2, "running")
        assert (job.checkpoint_sha256, job.checkpoint_step, job.failures) == ("e" * 64, 9, 0)
        with pytest.raises(LeaseLostError):
            publish(database, first)
        publish(database, second)

    def test_keeps_its_place_by_age(self, database: Database) -> None:
        older, newer = add_job(database), add_job(database)
        pause(database, older)
        resume(database, older)
        assert [claim(database).row_id for _ in range(2)] == [older, newer]

    def test_takes_a_pause_back_that_was_not_followed_yet(self, database: Database) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        assert resume(database, claimed.row_id) == "running"
        publish(database, claimed)
        assert job_of(database, claimed.row_id).state == "succeeded"

    def test_an_attempt_that_follows_a_pause_taken_back_queues_the_job(
        self, database: Database
    ) -> None:
        claimed = add_job_in(database, JobState.PAUSING)
        resume(database, claimed.row_id)
        release(database, claimed)
        job = job_of(database, claimed.row_id)
        assert (job.state, job.failures) == ("queued", 0)


def end_validation(session: Session, claimed: Claim, state: DatasetState) -> None:
    if state is DatasetState.READY:
        datasets.mark_ready(
            session,
            claimed,
            manifest_sha256="1" * 64,
            caches={},
            classes=["a", "b"],
            splits={},
            report={},
        )
    else:
        datasets.mark_unusable(session, claimed, state=state, error=CRASH)


class TestBeforeItsDatasetIsReady:
    @pytest.fixture
    def paused(self, database: Database) -> str:
        job_id = add_job(database, add_dataset(database, DatasetState.PENDING))
        assert pause(database, job_id) == "paused"
        return job_id

    def validate(self, database: Database, state: DatasetState) -> None:
        with database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=TTL_S)
            assert claimed is not None
            end_validation(session, claimed, state)

    def test_it_waits_for_it_again(self, database: Database, paused: str) -> None:
        assert resume(database, paused) == "validating_files"
        self.validate(database, DatasetState.READY)
        assert job_of(database, paused).state == "queued"

    def test_it_stays_paused_when_the_dataset_becomes_ready(
        self, database: Database, paused: str
    ) -> None:
        self.validate(database, DatasetState.READY)
        assert job_of(database, paused).state == "paused"
        assert resume(database, paused) == "queued"

    @pytest.mark.parametrize("state", [DatasetState.INVALID, DatasetState.FAILED])
    def test_it_fails_with_its_dataset(
        self, database: Database, paused: str, state: DatasetState
    ) -> None:
        self.validate(database, state)
        job = job_of(database, paused)
        assert (job.state, job.error["code"]) == ("failed", "dataset_not_usable")

    def test_a_worker_of_the_release_before_leaves_it_to_the_resumption_to_refuse(
        self, database: Database, paused: str
    ) -> None:
        """That release ends a validation without a look at paused jobs."""
        with database.write() as session:
            dataset_id = repository.get_job(session, paused).dataset_id
            datasets.get_dataset(session, dataset_id).state = DatasetState.INVALID.value
        with pytest.raises(DatasetUnusableError):
            resume(database, paused)
        assert cancel(database, paused) == "cancelled"

    @pytest.mark.parametrize("state", [DatasetState.READY, DatasetState.INVALID])
    def test_a_resumption_is_not_lost_between_hands(
        self, postgresql: Database, state: DatasetState
    ) -> None:
        """The validation ends between the resumption's look at the dataset and its commit.

        SQLite has one writer at a time; there is no such moment.
        """
        job_id = add_job(postgresql, add_dataset(postgresql, DatasetState.PENDING))
        pause(postgresql, job_id)
        with postgresql.write() as session:
            validating = datasets.claim_dataset(session, owner="host:1", ttl_s=TTL_S)
            assert validating is not None

        def end() -> None:
            with postgresql.write() as session:
                end_validation(session, validating, state)

        with ThreadPoolExecutor(1) as pool:
            endings: list[Future[None]] = []

            def interfere(_conn: Any, _cursor: Any, statement: str, *_args: object) -> None:
                if "FROM datasets" in statement and not endings:
                    endings.append(pool.submit(end))
                    # It is held back by the job's lock, until the resumption has committed.
                    wait(endings, timeout=1.0)

            with postgresql.write() as session:
                event.listen(session.connection(), "after_cursor_execute", interfere)
                answer = control.request_resume(session, job_id).state
            endings[0].result()
        assert answer == "validating_files"
        expected = "queued" if state is DatasetState.READY else "failed"
        assert job_of(postgresql, job_id).state == expected
        assert dataset_of(postgresql, job_of(postgresql, job_id).dataset_id).state == state


class TestRaces:
    """Two at once, again and again: one outcome, and the row agrees with what both were told."""

    ROUNDS = 6

    def race(self, *acts: Callable[[], str]) -> list[str]:
        barrier = threading.Barrier(len(acts))

        def act_together(act: Callable[[], str]) -> str:
            barrier.wait()
            try:
                return act()
            except (JobTerminalError, JobCancellingError, LeaseLostError):
                return "refused"

        with ThreadPoolExecutor(len(acts)) as pool:
            return list(pool.map(act_together, acts))

    def test_pause_and_publish(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job(database)
            claimed = claim(database)

            def end(claimed: Claim = claimed) -> str:
                with database.write() as session:
                    attempts.publish(session, claimed, build_model(session, claimed.row_id))
                return "succeeded"

            asked, ended = self.race(lambda j=job_id: pause(database, j), end)
            assert ended == job_of(database, job_id).state == "succeeded"
            # It came first and was overtaken, or came too late.
            assert asked in ("pausing", "refused")
            assert [m.job_id for m in models_of(database)].count(job_id) == 1

    def test_pause_and_release(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job(database)
            claimed = claim(database)

            def hand_back(claimed: Claim = claimed) -> str:
                release(database, claimed)
                return "released"

            asked, handed = self.race(lambda j=job_id: pause(database, j), hand_back)
            # Whoever was first, nobody holds the job, and nobody may claim it.
            assert (asked in ("pausing", "paused"), handed) == (True, "released")
            assert job_of(database, job_id).state == "paused"

    def test_pause_and_claim(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job(database)

            def try_claim() -> str:
                with database.write() as session:
                    found = claiming.claim_job(session, owner="host:1", ttl_s=TTL_S)
                return "none" if found is None else found.row_id

            asked, found = self.race(lambda j=job_id: pause(database, j), try_claim)
            assert asked == job_of(database, job_id).state
            assert asked == ("paused" if found == "none" else "pausing")

    def test_cancel_and_pause(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job(database)
            claimed = claim(database)
            cancelled, paused = self.race(
                lambda j=job_id: cancel(database, j), lambda j=job_id: pause(database, j)
            )
            assert cancelled == job_of(database, job_id).state == "cancelling"
            assert paused in ("pausing", "refused")
            with database.write() as session:
                attempts.finish_cancel(session, claimed)

    def test_cancel_and_the_end_of_a_pause(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job(database)
            claimed = claim(database)
            pause(database, job_id)

            def hand_back(claimed: Claim = claimed) -> str:
                release(database, claimed)
                return "paused"

            cancelled, handed = self.race(lambda j=job_id: cancel(database, j), hand_back)
            # Paused, and then cancelled at once; or cancelling, and not the attempt's to pause.
            expected = {"paused": "cancelled", "refused": "cancelling"}[handed]
            assert cancelled == job_of(database, job_id).state == expected
            assert tell_events(database, job_id).count("job.cancelled") == (handed == "paused")

    def test_two_resumptions(self, database: Database) -> None:
        for _ in range(self.ROUNDS):
            job_id = add_job_in(database, JobState.PAUSED).row_id
            answers = self.race(*[lambda j=job_id: resume(database, j)] * 2)
            assert answers == ["queued", "queued"]
            assert tell_events(database, job_id).count("job.resumed") == 1
            cancel(database, job_id)


def test_an_edge_that_is_not_in_the_table_is_a_bug(database: Database) -> None:
    job_id = add_job_in(database, JobState.SUCCEEDED).row_id
    with pytest.raises(ForbiddenTransitionError), database.write() as session:
        enter(session, repository.lock_job(session, job_id), JobState.QUEUED)
    assert job_of(database, job_id).state == "succeeded"


def test_a_checkpoint_never_goes_back_unless_the_attempt_began_anew(database: Database) -> None:
    job_id = add_job(database)
    claimed = claim(database)

    def record(step: int, **options: bool) -> bool:
        with database.write() as session:
            return attempts.record_checkpoint(
                session, claimed, sha256=f"{step}" * 64, step=step, **options
            )

    assert [record(5), record(4), record(5), record(7)] == [True, False, True, True]
    assert job_of(database, job_id).checkpoint_sha256 == "7" * 64
    assert record(2, starts_over=True)
    job = job_of(database, job_id)
    assert (job.checkpoint_sha256, job.checkpoint_step) == ("2" * 64, 2)
