"""What becomes of attempts that end without an end: lost, crashed, handed back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

import core.clock
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming, events
from core.platform.leases import LeaseLostError
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_job,
    claim,
    expire,
    job_of,
    let_lease_run_out,
    lose,
)


def database_time_s(database: Database) -> float:
    with database.read() as session:
        return float(session.scalars(select(db_now())).one())


class TestExpiry:
    def test_a_lost_attempt_returns_the_job_to_the_queue(self, database: Database) -> None:
        job_id = add_job(database)
        lose(database, claim(database))
        job = job_of(database, job_id)
        assert (job.state, job.attempt, job.failures) == ("queued", 1, 1)
        assert (job.lease_owner, job.lease_expires_at, job.error) == (None, None, None)
        with database.read() as session:
            last = events.list_events(session, job_id, after=0, limit=1, descending=True)
        assert [(e.type, e.attempt) for e in last] == [("attempt.lost", 1)]

    def test_a_live_lease_is_left_alone(self, database: Database) -> None:
        job_id = add_job(database)
        claim(database)
        assert expire(database) == []
        assert job_of(database, job_id).state == "running"

    def test_the_third_loss_fails_the_job(self, database: Database) -> None:
        job_id = add_job(database)
        for attempt in (1, 2, 3):
            claimed = claim(database)
            assert claimed.attempt == attempt
            lose(database, claimed)
        job = job_of(database, job_id)
        assert (job.state, job.failures) == ("failed", 3)
        assert job.error is not None
        assert (job.error["code"], job.error["attempts"]) == ("worker_lost", 3)
        assert job.error["class"] == "system"
        assert job.finished_at is not None
        with database.write() as session:
            assert claiming.claim_job(session, owner="host:1", ttl_s=TTL_S) is None

    def test_the_checkpoint_survives_the_loss(self, database: Database) -> None:
        job_id = add_job(database)
        claimed = claim(database)
        with database.write() as session:
            attempts.record_checkpoint(session, claimed, sha256="e" * 64, step=7)
        lose(database, claimed)
        claim(database)
        job = job_of(database, job_id)
        assert (job.checkpoint_sha256, job.checkpoint_step) == ("e" * 64, 7)

    def test_sweeps_at_the_same_time_charge_once(self, database: Database) -> None:
        job_id = add_job(database)
        claim(database)
        let_lease_run_out(database, job_id)
        barrier = threading.Barrier(4)

        def sweep(_n: int) -> list[str]:
            barrier.wait()
            return expire(database)

        with ThreadPoolExecutor(4) as pool:
            touched = [row_id for ids in pool.map(sweep, range(4)) for row_id in ids]
        assert touched == [job_id]
        assert job_of(database, job_id).failures == 1

    def test_a_renewal_in_time_beats_the_sweep(self, database: Database) -> None:
        job_id = add_job(database)
        claimed = claim(database)
        let_lease_run_out(database, job_id)
        with database.write() as session:
            assert attempts.report_progress(session, claimed, ttl_s=TTL_S) == "running"
        assert expire(database) == []


class TestCrash:
    def test_a_crash_is_charged_and_tried_again(self, database: Database) -> None:
        job_id = add_job(database)
        for attempt, state in ((1, "queued"), (2, "queued"), (3, "failed")):
            claimed = claim(database)
            assert claimed.attempt == attempt
            with database.write() as session:
                new = attempts.give_up_attempt(session, claimed, CRASH, max_attempts=3)
            job = job_of(database, job_id)
            assert new == job.state == state
            assert (job.failures, job.lease_owner) == (attempt, None)
        assert job.error == {**CRASH, "attempts": 3}

    def test_losses_and_crashes_share_one_limit(self, database: Database) -> None:
        job_id = add_job(database)
        lose(database, claim(database))
        claimed = claim(database)
        with database.write() as session:
            attempts.give_up_attempt(session, claimed, CRASH, max_attempts=3)
        lose(database, claim(database))
        assert job_of(database, job_id).state == "failed"

    def test_a_failure_that_repeats_itself_ends_the_job_at_once(self, database: Database) -> None:
        job_id = add_job(database)
        claimed = claim(database)
        with database.write() as session:
            attempts.fail(session, claimed, CRASH)
        job = job_of(database, job_id)
        assert (job.state, job.error, job.failures) == ("failed", CRASH, 0)
        assert (job.lease_owner, job.lease_expires_at) == (None, None)


class TestRelease:
    def test_a_release_is_not_charged(self, database: Database) -> None:
        job_id = add_job(database)
        for attempt in range(1, 6):  # more often than attempts are allowed
            claimed = claim(database)
            assert claimed.attempt == attempt
            with database.write() as session:
                attempts.release(session, claimed)
        job = job_of(database, job_id)
        assert (job.state, job.failures, job.attempt) == ("queued", 0, 5)
        assert (job.lease_owner, job.lease_expires_at) == (None, None)

    def test_after_a_release_the_attempt_has_no_rights(self, database: Database) -> None:
        add_job(database)
        claimed = claim(database)
        with database.write() as session:
            attempts.release(session, claimed)
        with pytest.raises(LeaseLostError), database.write() as session:
            attempts.report_progress(session, claimed, ttl_s=TTL_S)


class TestClock:
    """Leases are compared on the database's clock: a worker's own may say what it likes."""

    @pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
    def test_a_wrong_process_clock_neither_steals_nor_keeps(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, jump_s: float
    ) -> None:
        job_id = add_job(database)
        before_s = database_time_s(database)
        real = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + jump_s)
            patch.setattr(core.clock, "now_s", lambda: real() + jump_s)
            claimed = claim(database)
            assert expire(database) == []
            let_lease_run_out(database, job_id)
            with database.write() as session:
                attempts.report_progress(session, claimed, ttl_s=TTL_S)
            assert expire(database) == []
        after_s = database_time_s(database)
        lease = job_of(database, job_id).lease_expires_at
        assert lease is not None
        assert before_s - 0.01 <= lease - TTL_S <= after_s + 0.01

    def test_the_clock_moves_within_a_transaction(self, database: Database) -> None:
        """Else a lease that is renewed late in a long transaction would be born old."""
        with database.read() as session:
            first = session.scalar(select(db_now()))
            time.sleep(0.05)
            second = session.scalar(select(db_now()))
        assert first is not None
        assert second is not None
        assert second - first >= 0.045

    def test_the_clock_counts_unix_seconds_with_fractions(self, database: Database) -> None:
        before_s = time.time()
        readings = {database_time_s(database) % 1 for _ in range(5)}
        assert before_s - 1 <= database_time_s(database) <= time.time() + 1
        assert len(readings) > 1
