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
from core.platform.leases import Claim
from core.types import DatasetState
from tests.integration.platform.job_life import PICKS, PROJECTS, Life, some
from tests.integration.platform.job_oracle import (
    DEFAULT_LIMIT,
    HELD,
    MAX_ATTEMPTS,
    WORKING,
    Job,
)
from tests.integration.platform.job_wishes import LIMITS, Wishes, may_make_more
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    build_model,
    expire,
    let_lease_run_out,
)

WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 4.0])
STEPS = st.integers(0, 5)
WRITES = (
    *("heartbeat", "checkpoint", "checkpoint", "start over"),
    *("publish", "fail", "crash", "release", "stop", "fall silent"),
)


def has_queue(life: Life) -> bool:
    return bool(life.oracle.list_in(("queued",)))


def has_attempts(life: Life) -> bool:
    return life.oracle.find_next() is not None or any(life.oracle.iter_claims())


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
    @rule(workers=st.integers(1, 3))
    def claim(self, workers: int) -> None:
        for _ in range(workers):
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

    def pick_claim(self, pick: int) -> tuple[Claim, Job]:
        """One of the claims, rather one that holds its job; made now if none does and one can."""
        if not self.oracle.list_in(HELD):
            self.claim_next()
        claims = list(self.oracle.iter_claims())
        claims += [claimed for claimed in claims if self.oracle.holds(claimed)] * 4
        claimed = claims[pick % len(claims)]
        return claimed, self.oracle.jobs[claimed.row_id]

    def take_turns(self, turns: int) -> None:
        """Claim the job that is next and hand it back at once, over and over."""
        for _ in range(turns):
            claimed = self.claim_next()
            if claimed is None:
                return
            self.release(claimed)

    @precondition(may_make_more)
    @rule(project=st.sampled_from(PROJECTS), weight=WEIGHTS, limit=LIMITS)
    def crowd(self, project: str, weight: float, limit: int | None) -> None:
        """More of a project's jobs wait than may run, and workers come for all of them."""
        self.change_share(project, weight=weight, limit=limit)
        while len(self.oracle.list_in(("queued", *HELD), project)) < 3:
            self.submit(project=project, is_ready=True, is_paused=False, priority=0)
        for _ in range(4):
            self.claim_next()

    @precondition(may_make_more)
    @rule(idle=st.sampled_from(PROJECTS), alone=st.integers(0, 3), together=st.integers(2, 4))
    def share(self, idle: str, alone: int, together: int) -> None:
        """All jobs of one project are paused for some claims, and then take part again."""
        for project in PROJECTS:
            self.let_start(project)
        paused = self.oracle.list_in(("queued",), idle) if alone else []
        for job_id in paused:
            self.pause(job_id)
        self.take_turns(alone)
        for job_id in paused:
            self.resume(job_id)
        self.take_turns(together)

    def let_start(self, project: str) -> None:
        """See to it that the project has a job that may be claimed."""
        while not self.oracle.may_start(project):
            job_id = self.oracle.list_in(HELD, project)[0]
            self.lose(job_id)
        if not self.oracle.list_in(("queued",), project):
            self.submit(project=project, is_ready=True, is_paused=False, priority=0)

    @precondition(has_attempts)
    @rule(writes=some(st.tuples(PICKS, st.sampled_from(WRITES), STEPS)))
    def write_all(self, writes: list[tuple[int, str, int]]) -> None:
        for pick, write, step in writes:
            if has_attempts(self):
                self.write(pick, write, step)

    def write(self, pick: int, write: str, step: int) -> None:
        """An attempt, which may have been overtaken, tells how it is or how it has ended."""
        claimed, job = self.pick_claim(pick)
        match write:
            case "heartbeat":
                with self.granted_to(claimed, HELD) as session:
                    assert attempts.report_progress(session, claimed, ttl_s=TTL_S) == job.state
            case "checkpoint" | "start over":
                # One of the two is behind the other.
                for reached in (step, 5 - step):
                    self.reach(claimed, reached, starts_over=write == "start over")
            case "publish":
                with self.granted_to(claimed, WORKING) as session:
                    model = build_model(session, claimed.row_id)
                    attempts.publish(session, claimed, model)
                    job.state = "succeeded"
            case "fail":
                with self.granted_to(claimed, WORKING) as session:
                    attempts.fail(session, claimed, CRASH)
                    job.state = "failed"
            case "crash":
                with self.granted_to(claimed, WORKING) as session:
                    attempts.give_up_attempt(session, claimed, CRASH, max_attempts=MAX_ATTEMPTS)
                    job.charge()
            case "release":
                self.release(claimed)
            case "stop":
                with self.granted_to(claimed, ("cancelling",)) as session:
                    attempts.finish_cancel(session, claimed)
                    job.state = "cancelled"
            case "fall silent":
                self.lose(claimed.row_id)

    def reach(self, claimed: Claim, step: int, *, starts_over: bool) -> None:
        with self.granted_to(claimed, HELD) as session:
            is_newest = attempts.record_checkpoint(
                session, claimed, sha256=f"{step}" * 64, step=step, starts_over=starts_over
            )
            job = self.oracle.jobs[claimed.row_id]
            assert is_newest == job.reach(step, starts_over=starts_over)

    def release(self, claimed: Claim) -> None:
        with self.granted_to(claimed, WORKING) as session:
            attempts.release(session, claimed)
            self.oracle.jobs[claimed.row_id].hand_back()

    def lose(self, job_id: str) -> None:
        """A lease runs out, whoever holds it by now, and somebody sweeps."""
        let_lease_run_out(self.database, job_id)
        job = self.oracle.jobs[job_id]
        is_held = job.state in HELD
        assert expire(self.database, max_attempts=MAX_ATTEMPTS) == ([job_id] if is_held else [])
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
