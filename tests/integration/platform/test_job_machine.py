"""Random lives of jobs against the real repository, with a small model as the judge.

Whatever is done to a job, and in whatever order: it ends once, it publishes at most one model, only
the attempt that holds it can write to it, nobody claims it while it is paused, its checkpoint never
goes back, and no other project can touch it. Claims share the workers between two projects, by
weight and within their limits.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event
from sqlalchemy.orm import Session

from core.errors import ConflictError, NotFoundError
from core.platform.datasets import repository as datasets
from core.platform.db.base import Base
from core.platform.db.engine import Database
from core.platform.jobs import attempts, claiming, control, repository
from core.platform.jobs.control import (
    JobCancellingError,
    JobNotFailedError,
    JobNotWaitingError,
    JobTerminalError,
)
from core.platform.jobs.transitions import hold
from core.platform.leases import Claim, LeaseLostError
from core.platform.projects.repository import change_project
from core.types import DatasetId, DatasetState
from tests.integration.platform.rows import (
    CRASH,
    TTL_S,
    add_dataset,
    add_job,
    expire,
    job_of,
    let_lease_run_out,
    models_of,
    publish,
    tell_events,
)

MAX_ATTEMPTS = 3
#: Few, so that each lives through much.
MAX_JOBS = 4
WEIGHTS = {"alpha": 1.0, "beta": 2.0}
PROJECTS = st.sampled_from(sorted(WEIGHTS))
ENDS = ("succeeded", "failed", "cancelled")
HELD = ("running", "pausing", "cancelling")
PRIORITIES = st.sampled_from([-100, 0, 100])


@dataclass
class Expected:
    """What a job should look like."""

    state: str
    dataset_id: DatasetId
    project: str
    priority: int = 0
    retried_from: str | None = None
    attempt: int = 0
    failures: int = 0
    checkpoint: int | None = None
    claimed: list[Claim] = field(default_factory=list)

    def hand_back(self) -> None:
        self.state = {"running": "queued", "pausing": "paused"}[self.state]

    def charge(self) -> None:
        self.failures += 1
        if self.failures == MAX_ATTEMPTS:
            self.state = "failed"
        else:
            self.hand_back()


class Jobs(RuleBasedStateMachine):
    """Users, workers, sweeps and crashes, one step at a time."""

    open_database: ClassVar[Callable[[Path], Database]]
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.database = type(self).open_database(Path(self.folder.name))
        self.ready = {name: add_dataset(self.database, project=name) for name in WEIGHTS}
        self.pending = {name: self.add_pending(name) for name in WEIGHTS}
        #: most jobs of a project at once, 0 for any number; and when its last claim was due
        self.limits = dict.fromkeys(WEIGHTS, 0)
        self.last_due: dict[str, Fraction] = {}
        for name, weight in WEIGHTS.items():
            with self.database.write() as session:
                change_project(session, name, {"weight": weight})
        self.unusable: set[DatasetId] = set()
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        self.database.dispose()
        self.folder.cleanup()

    @contextlib.contextmanager
    def attempt(self, claimed: Claim, *states: str) -> Iterator[Session]:
        """A write of an attempt: it must go through exactly if it holds the job in these states."""
        context = (
            contextlib.nullcontext()
            if self.holds(claimed, *states)
            else pytest.raises(LeaseLostError)
        )
        with context, self.database.write() as session:
            yield session

    def holds(self, claimed: Claim, *states: str) -> bool:
        job = self.expected[claimed.row_id]
        return job.attempt == claimed.attempt and job.state in states

    @contextlib.contextmanager
    def refused_with(self, error: type[ConflictError] | None) -> Iterator[Session]:
        """A wish of a user: refused with exactly this error, or granted."""
        context = contextlib.nullcontext() if error is None else pytest.raises(error)
        with context, self.database.write() as session:
            yield session

    def add_pending(self, project: str) -> DatasetId:
        return add_dataset(self.database, DatasetState.PENDING, project=project)

    def count_running(self, project: str) -> int:
        jobs = self.expected.values()
        return sum(job.project == project and job.state in HELD for job in jobs)

    def find_due(self, project: str) -> Fraction:
        """When a project's next claim is due, in the virtual time of all projects."""
        now = max(self.last_due.values(), default=Fraction(0))
        last = self.last_due.get(project)
        return now if last is None else max(now, last + Fraction(1) / Fraction(WEIGHTS[project]))

    def draw_job(self, data: st.DataObject) -> tuple[str, Expected]:
        job_id = data.draw(st.sampled_from(list(self.expected)))
        return job_id, self.expected[job_id]

    @initialize(first=PRIORITIES, second=PRIORITIES, third=PROJECTS, limit=st.integers(0, 1))
    def begin_with_a_queue(self, first: int, second: int, third: str, limit: int) -> None:
        self.limit(project="alpha", limit=limit)
        self.submit(project="alpha", is_ready=True, priority=first)
        self.submit(project="alpha", is_ready=True, priority=second)
        self.submit(project=third, is_ready=True, priority=0)

    @precondition(lambda self: len(self.expected) < MAX_JOBS)
    @rule(project=PROJECTS, is_ready=st.booleans(), priority=PRIORITIES)
    def submit(self, project: str, is_ready: bool, priority: int) -> None:
        dataset_id = (self.ready if is_ready else self.pending)[project]
        state = "queued" if is_ready else "validating_files"
        job_id = add_job(self.database, dataset_id, priority=priority, project=project)
        self.expected[job_id] = Expected(state, dataset_id, project, priority)

    @rule(project=PROJECTS, limit=st.integers(0, 2))
    def limit(self, project: str, limit: int) -> None:
        with self.database.write() as session:
            change_project(session, project, {"max_running_jobs": limit})
        self.limits[project] = limit

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def trespass(self, data: st.DataObject) -> None:
        """Whatever somebody of the other project asks: there is no such job."""
        job_id, job = self.draw_job(data)
        other = {"alpha": "beta", "beta": "alpha"}[job.project]
        wishes: list[Callable[[Session], object]] = [
            lambda session: control.request_cancel(session, job_id, project=other),
            lambda session: control.request_pause(session, job_id, project=other),
            lambda session: control.request_resume(session, job_id, project=other),
            lambda session: control.retry_job(session, job_id, project=other),
            lambda session: control.change_priority(session, job_id, 7, project=other),
        ]
        wish = data.draw(st.sampled_from(wishes))
        with pytest.raises(NotFoundError), self.database.write() as session:
            wish(session)

    @rule(usable=st.booleans())
    def end_validation(self, usable: bool) -> None:
        with self.database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=TTL_S)
            assert claimed is not None
            pending = DatasetId(claimed.row_id)
            (project,) = [name for name, found in self.pending.items() if found == pending]
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
                self.unusable.add(pending)
        for job in self.expected.values():
            if job.dataset_id != pending:
                continue
            if job.state == "validating_files":
                job.state = "queued" if usable else "failed"
            elif job.state == "paused" and not usable:
                job.state = "failed"
        self.pending[project] = self.add_pending(project)

    @rule(target=claims)
    def claim(self) -> Claim:
        waiting = [
            job_of(self.database, job_id)
            for job_id, expected in self.expected.items()
            if expected.state == "queued" and self.may_start(expected.project)
        ]
        last = {name: self.last_due.get(name, Fraction(-1)) for name in WEIGHTS}
        order = {name: (self.find_due(name), last[name], name) for name in WEIGHTS}
        with self.database.write() as session:
            claimed = claiming.claim_job(session, owner="host:1", ttl_s=TTL_S)
        if not waiting:
            assert claimed is None
            return multiple()
        assert claimed is not None
        first = min(
            waiting,
            key=lambda job: (order[job.project_id], -job.priority, job.created_at, job.id),
        )
        assert claimed.row_id == first.id
        job = self.expected[claimed.row_id]
        self.last_due[job.project] = order[job.project][0]
        job.state, job.attempt = "running", job.attempt + 1
        assert claimed.attempt == job.attempt
        job.claimed.append(claimed)
        return claimed

    def may_start(self, project: str) -> bool:
        return not self.limits[project] or self.count_running(project) < self.limits[project]

    @rule(claimed=claims)
    def heartbeat(self, claimed: Claim) -> None:
        with self.attempt(claimed, *HELD) as session:
            state = attempts.report_progress(session, claimed, ttl_s=TTL_S)
            assert state == self.expected[claimed.row_id].state

    @rule(claimed=claims, step=st.integers(0, 5))
    def checkpoint(self, claimed: Claim, step: int) -> None:
        job = self.expected[claimed.row_id]
        held = self.holds(claimed, *HELD)
        with self.attempt(claimed, *HELD) as session:
            is_newest = attempts.record_checkpoint(
                session, claimed, sha256=f"{step}" * 64, step=step
            )
            assert is_newest == (job.checkpoint is None or step >= job.checkpoint)
        if held:
            job.checkpoint = max(step, job.checkpoint or 0)

    @rule(claimed=claims)
    def publish(self, claimed: Claim) -> None:
        if self.holds(claimed, "running", "pausing"):
            publish(self.database, claimed)
            self.expected[claimed.row_id].state = "succeeded"
        else:
            with pytest.raises(LeaseLostError):
                publish(self.database, claimed)

    @rule(claimed=claims)
    def fail(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running", "pausing")
        with self.attempt(claimed, "running", "pausing") as session:
            attempts.fail(session, claimed, CRASH)
        if held:
            self.expected[claimed.row_id].state = "failed"

    @rule(claimed=claims)
    def crash(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running", "pausing")
        with self.attempt(claimed, "running", "pausing") as session:
            attempts.give_up_attempt(session, claimed, CRASH, max_attempts=MAX_ATTEMPTS)
        if held:
            self.expected[claimed.row_id].charge()

    @rule(claimed=claims)
    def release(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running", "pausing")
        with self.attempt(claimed, "running", "pausing") as session:
            attempts.release(session, claimed)
        if held:
            self.expected[claimed.row_id].hand_back()

    @rule(claimed=claims)
    def stop_trainer(self, claimed: Claim) -> None:
        held = self.holds(claimed, "cancelling")
        with self.attempt(claimed, "cancelling") as session:
            attempts.finish_cancel(session, claimed)
        if held:
            self.expected[claimed.row_id].state = "cancelled"

    @rule(claimed=claims)
    def lose(self, claimed: Claim) -> None:
        """The lease runs out, whoever holds it by now, and somebody sweeps."""
        let_lease_run_out(self.database, claimed.row_id)
        job = self.expected[claimed.row_id]
        held = job.state in HELD
        lost = expire(self.database, max_attempts=MAX_ATTEMPTS)
        assert lost == ([claimed.row_id] if held else [])
        if job.state in ("running", "pausing"):
            job.charge()
        elif job.state == "cancelling":
            job.state = "cancelled"

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        refusal = JobTerminalError if job.state in ("succeeded", "failed") else None
        with self.refused_with(refusal) as session:
            control.request_cancel(session, job_id)
        if job.state in ("validating_files", "queued", "paused"):
            job.state = "cancelled"
        elif job.state in ("running", "pausing"):
            job.state = "cancelling"

    def refusal_of(self, job: Expected) -> type[ConflictError] | None:
        if job.state in ENDS:
            return JobTerminalError
        return JobCancellingError if job.state == "cancelling" else None

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        with self.refused_with(self.refusal_of(job)) as session:
            control.request_pause(session, job_id)
        if job.state in ("validating_files", "queued"):
            job.state = "paused"
        elif job.state == "running":
            job.state = "pausing"

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        assert not (job.state == "paused" and job.dataset_id in self.unusable)
        with self.refused_with(self.refusal_of(job)) as session:
            control.request_resume(session, job_id)
        if job.state == "paused":
            job.state = "validating_files" if job.dataset_id in self.pending.values() else "queued"
        elif job.state == "pausing":
            job.state = "running"

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id, job = self.draw_job(data)
        if len(self.expected) == MAX_JOBS and job.state == "failed":
            return
        refusal: type[ConflictError] | None = None
        if job.state != "failed":
            refusal = JobNotFailedError
        elif job.dataset_id in self.unusable:
            refusal = repository.DatasetUnusableError
        with self.refused_with(refusal) as session:
            again = control.retry_job(session, job_id)
        if refusal is None:
            assert again.id != job_id
            self.expected[again.id] = Expected(
                "queued", job.dataset_id, job.project, job.priority, job_id
            )

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), priority=PRIORITIES)
    def prioritise(self, data: st.DataObject, priority: int) -> None:
        job_id, job = self.draw_job(data)
        refusal: type[ConflictError] | None = None
        if job.state in ENDS:
            refusal = JobTerminalError
        elif job.state in HELD:
            refusal = JobNotWaitingError
        with self.refused_with(refusal) as session:
            control.change_priority(session, job_id, priority)
        if refusal is None:
            job.priority = priority

    @invariant()
    def every_job_is_as_expected(self) -> None:
        with self.database.read() as session:
            jobs = {job_id: repository.get_job(session, job_id) for job_id in self.expected}
        for job_id, expected in self.expected.items():
            job = jobs[job_id]
            found = (job.state, job.attempt, job.failures, job.priority, job.retried_from)
            assert found == (
                expected.state,
                expected.attempt,
                expected.failures,
                expected.priority,
                expected.retried_from,
            )
            assert job.failures <= MAX_ATTEMPTS
            assert job.checkpoint_step == expected.checkpoint
            assert (job.checkpoint_sha256 is None) == (job.checkpoint_step is None)
            assert (job.finished_at is not None) == (job.state in ENDS)
            assert (job.error is not None) == (job.state == "failed")
            assert (job.lease_owner is not None) == (job.state in HELD)
            assert (job.claimed_at is not None) == (job.state in HELD)
            assert job.project_id == expected.project
            assert job.ran_s >= 0.0
            numbers = [claimed.attempt for claimed in expected.claimed]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def only_the_holder_can_write(self) -> None:
        able = []
        with self.database.write() as session:
            for expected in self.expected.values():
                for claimed in expected.claimed:
                    with contextlib.suppress(LeaseLostError):
                        hold(session, claimed)
                        able.append(claimed)
        jobs = self.expected.values()
        assert able == [job.claimed[-1] for job in jobs if job.state in HELD]

    @invariant()
    def every_success_has_its_one_model(self) -> None:
        published = sorted(model.job_id for model in models_of(self.database))
        succeeded = sorted(j for j, job in self.expected.items() if job.state == "succeeded")
        assert published == succeeded

    @invariant()
    def every_end_is_told_once(self) -> None:
        for job_id, job in self.expected.items():
            told = tell_events(self.database, job_id)
            ends = [t for t in told if t.removeprefix("job.") in ENDS]
            assert ends == ([f"job.{job.state}"] if job.state in ENDS else [])


def live(open_database: Callable[[Path], Database], *, lives: int) -> None:
    Jobs.open_database = staticmethod(open_database)
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=lives,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_random_lives(migrated_sqlite: Path) -> None:
    def copy(folder: Path) -> Database:
        path = folder / "idat.db"
        shutil.copyfile(migrated_sqlite, path)
        database = Database(f"sqlite:///{path}")
        # No power is cut here, and waiting for the disk would be most of the time.
        event.listen(
            database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF")
        )
        return database

    live(copy, lives=40)


def test_random_lives_on_postgresql(postgresql_url: str) -> None:
    def empty(_folder: Path) -> Database:
        database = Database(postgresql_url)
        with database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        return database

    live(empty, lives=5)
