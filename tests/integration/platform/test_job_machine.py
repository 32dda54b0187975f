"""Random lives of jobs against the real repository, with a small model (`job_oracle`) as the judge.

Users, workers, validations, sweeps and crashes do their things one at a time, in any order. Before
each step the model says what must come of it, and after each one the rows, models and logs must be
as the model says:

* *claims*: which job the next one gets, by the projects' weights, limits and idle times, and within
  a project by priority and age; or that it gets none. Each begins the attempt after the last.
* *attempts*: only the newest one writes, only while it holds the job, and only what the job's state
  allows; all others are refused. A checkpoint goes back for nobody but an attempt that begins anew.
* *failures*: crashes and lost leases are counted and end the job at the limit; releases are not.
* *users*: cancel, pause, resume, retry and another priority are granted or refused as the job's
  state has it; a paused job stays paused when its dataset is ready; the other project finds no job.
* *ends*: a job ends once, for good, with one event and, if it succeeds, one model. A job that
  nobody holds has no lease, and the time it ran never gets less.

The lives are the same in every run: what fails once fails again.
"""

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from sqlalchemy import event

from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetState
from tests.integration.platform.job_life import PICKS, PROJECTS, Life
from tests.integration.platform.job_oracle import (
    DEFAULT_LIMIT,
    HELD,
    MAX_ATTEMPTS,
    WORKING,
)
from tests.integration.platform.job_wishes import Wishes, may_make_more
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    expire,
    let_lease_run_out,
    publish,
)

#: Each a step, and whether the attempt began anew.
CHECKPOINTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([False, False, True])), min_size=1, max_size=3
)


def has_queue(life: Life) -> bool:
    return bool(life.oracle.list_in(("queued",)))


def has_claims(life: Life) -> bool:
    return any(life.oracle.iter_claims())


class Jobs(Wishes):
    """Users, workers, sweeps and crashes, one step at a time."""

    @rule(usable=st.sampled_from([True, True, False]))
    def end_validation(self, usable: bool) -> None:
        project, oldest = next(iter(self.pending.items()))
        with self.database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=TTL_S)
            assert claimed is not None
            assert claimed.row_id == oldest
            if usable:
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
                datasets.mark_unusable(session, claimed, state=DatasetState.INVALID, error=CRASH)
                self.unusable.add(oldest)
        for job in self.oracle.jobs.values():
            if job.dataset_id == oldest:
                job.end_validation(usable=usable)
        del self.pending[project]
        self.pending[project] = self.add_dataset(DatasetState.PENDING, project)

    @precondition(has_queue)
    @rule()
    def claim(self) -> None:
        self.claim_next()

    def claim_next(self) -> Claim | None:
        expected = self.oracle.find_next()
        with self.database.write() as session:
            claimed = claiming.claim_job(
                session, owner="host:1", ttl_s=TTL_S, max_running_jobs=DEFAULT_LIMIT
            )
        assert (claimed and claimed.row_id) == expected
        if claimed is not None:
            self.oracle.start(claimed)
            assert claimed.attempt == self.oracle.jobs[claimed.row_id].attempt
        return claimed

    def take_turns(self, turns: int) -> None:
        """Claim the job that is next and hand it back at once, over and over."""
        for _ in range(turns):
            claimed = self.claim_next()
            if claimed is None:
                return
            self.let_release(claimed)

    @precondition(may_make_more)
    @rule(idle=st.sampled_from(PROJECTS), alone=st.integers(0, 4), together=st.integers(2, 6))
    def share(self, idle: str, alone: int, together: int) -> None:
        """All jobs of one project are paused for some claims, and then take part again."""
        for project in PROJECTS:
            self.let_start(project)
        paused = self.oracle.list_in(("queued",), idle) if alone else []
        for job_id in paused:
            self.ask_pause(job_id)
        self.take_turns(alone)
        for job_id in paused:
            self.ask_resume(job_id)
        self.take_turns(together)

    def let_start(self, project: str) -> None:
        """See to it that the project has a job that may be claimed."""
        if not self.oracle.may_start(project):
            weight = float(self.oracle.shares[project].weight)
            self.change_share(project=project, weight=weight, limit=0)
        if not self.oracle.list_in(("queued",), project):
            self.submit(project=project, is_ready=True, is_paused=False, priority=0)

    @precondition(has_claims)
    @rule(pick=PICKS)
    def heartbeat(self, pick: int) -> None:
        claimed, job = self.pick_claim(pick)
        with self.granted_to(claimed, HELD) as session:
            assert attempts.report_progress(session, claimed, ttl_s=TTL_S) == job.state

    @precondition(has_claims)
    @rule(pick=PICKS, checkpoints=CHECKPOINTS)
    def checkpoint(self, pick: int, checkpoints: list[tuple[int, bool]]) -> None:
        claimed, job = self.pick_claim(pick)
        for step, starts_over in checkpoints:
            with self.granted_to(claimed, HELD) as session:
                is_newest = attempts.record_checkpoint(
                    session, claimed, sha256=f"{step}" * 64, step=step, starts_over=starts_over
                )
                assert is_newest == job.reach(step, starts_over=starts_over)

    @precondition(has_claims)
    @rule(pick=PICKS)
    def publish(self, pick: int) -> None:
        claimed, job = self.pick_claim(pick)
        if self.oracle.holds(claimed, WORKING):
            publish(self.database, claimed)
            job.state = "succeeded"
        else:
            with pytest.raises(LeaseLostError):
                publish(self.database, claimed)

    @precondition(has_claims)
    @rule(pick=PICKS)
    def fail(self, pick: int) -> None:
        claimed, job = self.pick_claim(pick)
        with self.granted_to(claimed, WORKING) as session:
            attempts.fail(session, claimed, CRASH)
            job.state = "failed"

    @precondition(has_claims)
    @rule(pick=PICKS)
    def crash(self, pick: int) -> None:
        claimed, job = self.pick_claim(pick)
        with self.granted_to(claimed, WORKING) as session:
            attempts.give_up_attempt(session, claimed, CRASH, max_attempts=MAX_ATTEMPTS)
            job.charge()

    @precondition(has_claims)
    @rule(pick=PICKS)
    def release(self, pick: int) -> None:
        self.let_release(self.pick_claim(pick)[0])

    def let_release(self, claimed: Claim) -> None:
        with self.granted_to(claimed, WORKING) as session:
            attempts.release(session, claimed)
            self.oracle.jobs[claimed.row_id].hand_back()

    @precondition(has_claims)
    @rule(pick=PICKS)
    def stop_trainer(self, pick: int) -> None:
        claimed, job = self.pick_claim(pick)
        with self.granted_to(claimed, ("cancelling",)) as session:
            attempts.finish_cancel(session, claimed)
            job.state = "cancelled"

    @precondition(has_claims)
    @rule(pick=PICKS)
    def lose(self, pick: int) -> None:
        """The lease runs out, whoever holds it by now, and somebody sweeps."""
        claimed, job = self.pick_claim(pick)
        let_lease_run_out(self.database, claimed.row_id)
        is_held = job.state in HELD
        lost = expire(self.database, max_attempts=MAX_ATTEMPTS)
        assert lost == ([claimed.row_id] if is_held else [])
        if job.state == "cancelling":
            job.state = "cancelled"
        elif is_held:
            job.charge()


def live(database: Database, *, lives: int) -> None:
    Jobs.database = database
    try:
        run_state_machine_as_test(
            Jobs,
            settings=settings(
                max_examples=lives,
                stateful_step_count=40,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        database.dispose()


# Only a failure takes long: it is made small before it is told.
@pytest.mark.slow
@pytest.mark.timeout(900)
class TestRandomLives:
    def test_on_sqlite(self, sqlite_url: str) -> None:
        database = Database(sqlite_url)
        # No power is cut here, and waiting for the disk would be most of the time.
        event.listen(
            database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF")
        )
        live(database, lives=30)

    def test_on_postgresql(self, postgresql_url: str) -> None:
        database = Database(postgresql_url)

        @event.listens_for(database.engine, "connect")
        def do_not_wait_for_the_disk(raw: psycopg.Connection, _record: object) -> None:
            raw.execute("SET synchronous_commit = off")
            raw.commit()

        live(database, lives=8)
