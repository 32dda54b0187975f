"""Random lives of jobs against the real repository, with a small model as the judge.

Whatever is done to a job, and in whatever order: it ends once, it publishes at most one model, and
only the attempt that holds it can write to it.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.jobs import control, events, repository
from core.platform.jobs.control import JobTerminalError
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetState
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
)

MAX_ATTEMPTS = 3
#: Few, so that each lives through much.
MAX_JOBS = 3
ENDS = ("succeeded", "failed", "cancelled")


@dataclass
class Expected:
    """What a job should look like."""

    state: str
    attempt: int = 0
    failures: int = 0
    claimed: list[Claim] = field(default_factory=list)

    def charge(self) -> None:
        self.failures += 1
        self.state = "failed" if self.failures == MAX_ATTEMPTS else "queued"


class Jobs(RuleBasedStateMachine):
    """Users, workers, sweeps and crashes, one step at a time."""

    template: ClassVar[Path]
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        path = Path(self.folder.name) / "idat.db"
        shutil.copyfile(self.template, path)
        self.database = Database(f"sqlite:///{path}")
        self.ready = add_dataset(self.database)
        self.pending = add_dataset(self.database, DatasetState.PENDING)
        self.expected: dict[str, Expected] = {}

    def teardown(self) -> None:
        self.database.dispose()
        self.folder.cleanup()

    @contextlib.contextmanager
    def attempt(self, claimed: Claim, *states: str) -> Iterator[Session]:
        """A write of an attempt: it must go through exactly if it holds the job in these states."""
        job = self.expected[claimed.row_id]
        may = job.attempt == claimed.attempt and job.state in states
        context = contextlib.nullcontext() if may else pytest.raises(LeaseLostError)
        with context, self.database.write() as session:
            yield session

    def holds(self, claimed: Claim, state: str) -> bool:
        job = self.expected[claimed.row_id]
        return job.attempt == claimed.attempt and job.state == state

    @precondition(lambda self: len(self.expected) < MAX_JOBS)
    @rule()
    def submit(self) -> None:
        self.expected[add_job(self.database, self.ready)] = Expected("queued")

    @precondition(lambda self: len(self.expected) < MAX_JOBS)
    @rule()
    def submit_on_a_dataset_that_is_not_ready(self) -> None:
        self.expected[add_job(self.database, self.pending)] = Expected("validating_files")

    @rule(usable=st.booleans())
    def end_validation(self, usable: bool) -> None:
        with self.database.write() as session:
            claimed = datasets.claim_dataset(session, owner="host:1", ttl_s=TTL_S)
            assert claimed is not None
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
        for job in self.expected.values():
            if job.state == "validating_files":
                job.state = "queued" if usable else "failed"
        self.pending = add_dataset(self.database, DatasetState.PENDING)

    @precondition(lambda self: any(job.state == "queued" for job in self.expected.values()))
    @rule(target=claims)
    def claim(self) -> Claim:
        with self.database.write() as session:
            claimed = repository.claim_job(session, owner="host:1", ttl_s=TTL_S)
        waiting = [job_id for job_id, job in self.expected.items() if job.state == "queued"]
        assert claimed is not None
        assert claimed.row_id in waiting
        job = self.expected[claimed.row_id]
        job.state, job.attempt = "running", job.attempt + 1
        assert claimed.attempt == job.attempt
        job.claimed.append(claimed)
        return claimed

    @rule(claimed=claims)
    def heartbeat(self, claimed: Claim) -> None:
        with self.attempt(claimed, "running", "cancelling") as session:
            state = repository.report_progress(session, claimed, ttl_s=TTL_S)
            assert state == self.expected[claimed.row_id].state

    @rule(claimed=claims)
    def publish(self, claimed: Claim) -> None:
        if self.holds(claimed, "running"):
            publish(self.database, claimed)
            self.expected[claimed.row_id].state = "succeeded"
        else:
            with pytest.raises(LeaseLostError):
                publish(self.database, claimed)

    @rule(claimed=claims)
    def fail(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running")
        with self.attempt(claimed, "running") as session:
            repository.fail(session, claimed, CRASH)
        if held:
            self.expected[claimed.row_id].state = "failed"

    @rule(claimed=claims)
    def crash(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running")
        with self.attempt(claimed, "running") as session:
            repository.give_up_attempt(session, claimed, CRASH, max_attempts=MAX_ATTEMPTS)
        if held:
            self.expected[claimed.row_id].charge()

    @rule(claimed=claims)
    def release(self, claimed: Claim) -> None:
        held = self.holds(claimed, "running")
        with self.attempt(claimed, "running") as session:
            repository.release(session, claimed)
        if held:
            self.expected[claimed.row_id].state = "queued"

    @rule(claimed=claims)
    def stop_trainer(self, claimed: Claim) -> None:
        held = self.holds(claimed, "cancelling")
        with self.attempt(claimed, "cancelling") as session:
            repository.finish_cancel(session, claimed)
        if held:
            self.expected[claimed.row_id].state = "cancelled"

    @rule(claimed=claims)
    def lose(self, claimed: Claim) -> None:
        """The lease runs out, whoever holds it by now, and somebody sweeps."""
        let_lease_run_out(self.database, claimed.row_id)
        job = self.expected[claimed.row_id]
        held = job.state in ("running", "cancelling")
        lost = expire(self.database, max_attempts=MAX_ATTEMPTS)
        assert lost == ([claimed.row_id] if held else [])
        if job.state == "running":
            job.charge()
        elif job.state == "cancelling":
            job.state = "cancelled"

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.expected)))
        job = self.expected[job_id]
        refuses = job.state in ("succeeded", "failed")
        with (
            pytest.raises(JobTerminalError) if refuses else contextlib.nullcontext(),
            self.database.write() as session,
        ):
            control.request_cancel(session, job_id)
        if job.state in ("validating_files", "queued"):
            job.state = "cancelled"
        elif job.state == "running":
            job.state = "cancelling"

    @invariant()
    def every_job_is_as_expected(self) -> None:
        for job_id, expected in self.expected.items():
            job = job_of(self.database, job_id)
            found = (job.state, job.attempt, job.failures)
            assert found == (expected.state, expected.attempt, expected.failures)
            assert (job.finished_at is not None) == (job.state in ENDS)
            assert (job.error is not None) == (job.state == "failed")
            numbers = [claimed.attempt for claimed in expected.claimed]
            assert numbers == list(range(1, len(numbers) + 1))

    @invariant()
    def no_overtaken_attempt_can_write(self) -> None:
        for expected in self.expected.values():
            for claimed in expected.claimed:
                if claimed.attempt < expected.attempt:
                    with self.attempt(claimed) as session:
                        repository.record_checkpoint(session, claimed, sha256="e" * 64, step=1)

    @invariant()
    def every_success_has_its_one_model(self) -> None:
        published = sorted(model.job_id for model in models_of(self.database))
        succeeded = sorted(j for j, job in self.expected.items() if job.state == "succeeded")
        assert published == succeeded

    @invariant()
    def every_end_is_told_once(self) -> None:
        for job_id, job in self.expected.items():
            with self.database.read() as session:
                told = [e.type for e in events.list_events(session, job_id, after=0, limit=1000)]
            ends = [t for t in told if t.removeprefix("job.") in ENDS]
            assert ends == ([f"job.{job.state}"] if job.state in ENDS else [])


def test_random_lives(migrated_sqlite: Path) -> None:
    Jobs.template = migrated_sqlite
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
