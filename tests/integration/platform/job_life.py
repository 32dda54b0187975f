"""What a random life of jobs is made of: an empty database, a model beside it, and the comparison.

The rules of the life, what may be done in it, are in `job_wishes` and `test_job_machine`.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from typing import ClassVar, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from core.platform.db.base import Base
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, JobEventRow, JobRow, ModelRow
from core.platform.jobs.transitions import hold
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetId, DatasetState
from tests.integration.platform.job_oracle import ENDS, HELD, Job, Oracle, Refusal, Share
from tests.integration.platform.rows import add_dataset

T = TypeVar("T")

PROJECTS = ("alpha", "beta")
#: Which of those that there are, counted round: what is drawn depends on no state.
PICKS = st.integers(0, 59)


def some(strategy: st.SearchStrategy[T]) -> st.SearchStrategy[list[T]]:
    """A few of them for one step: to look at everything costs more than what they do."""
    return st.lists(strategy, min_size=1, max_size=4)


class Life(RuleBasedStateMachine):
    """Two projects on an empty database.

    Attributes:
        database: the same for all lives, so that statements are compiled once.
        oracle: the model.
        ready: each project's dataset that can be trained on.
        pending: each project's dataset that is to be validated, the oldest first.
        unusable: datasets that were found to be so.
        logs: every job's events, each its type and attempt.
    """

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
        self.oracle = Oracle({name: Share(Fraction(1)) for name in PROJECTS})
        self._made = 0
        self.ready = {name: self.add_dataset(DatasetState.READY, name) for name in PROJECTS}
        self.pending = {name: self.add_dataset(DatasetState.PENDING, name) for name in PROJECTS}
        self.unusable: set[str] = set()
        self.logs: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._last_event_id = 0

    def date(self, session: Session, table: type[JobRow] | type[DatasetRow], row_id: str) -> int:
        """Make a row younger than all before it, however coarse the database's clock is."""
        self._made += 1
        session.execute(update(table).where(table.id == row_id).values(created_at=self._made))
        return self._made

    def add_dataset(self, state: DatasetState, project: str) -> DatasetId:
        dataset_id = add_dataset(self.database, state, project=project)
        with self.database.write() as session:
            self.date(session, DatasetRow, dataset_id)
        return dataset_id

    def pick_job(self, pick: int) -> tuple[str, Job]:
        """One of the jobs."""
        jobs = list(self.oracle.jobs.items())
        return jobs[pick % len(jobs)]

    @contextlib.contextmanager
    def granted_to(self, claimed: Claim, states: tuple[str, ...]) -> Iterator[Session]:
        """A write of an attempt: it goes through exactly if it holds the job in these states."""
        is_granted = self.oracle.holds(claimed, states)
        outcome = contextlib.nullcontext() if is_granted else pytest.raises(LeaseLostError)
        with outcome, self.database.write() as session:
            yield session

    @contextlib.contextmanager
    def refused_with(self, refusal: Refusal) -> Iterator[Session]:
        """A wish of a user: refused with exactly this error, or granted."""
        outcome = contextlib.nullcontext() if refusal is None else pytest.raises(refusal)
        with outcome, self.database.write() as session:
            yield session

    @invariant()
    def everything_is_as_expected(self) -> None:
        jobs = self.oracle.jobs
        with self.database.read() as session:
            rows = {row.id: row for row in session.scalars(select(JobRow))}
            models = [(model.job_id, model.id) for model in session.scalars(select(ModelRow))]
            news = select(JobEventRow).where(JobEventRow.id > self._last_event_id)
            for line in session.scalars(news.order_by(JobEventRow.id)):
                self.logs[line.job_id].append((line.type, line.attempt))
                self._last_event_id = line.id
        assert rows.keys() == jobs.keys()
        for job_id, job in jobs.items():
            check_row(rows[job_id], job)
            check_log(self.logs[job_id], job)
        published = [(row.id, row.model_id) for row in rows.values() if row.state == "succeeded"]
        assert sorted(models) == sorted(published)

    @invariant()
    def only_the_holder_can_write(self) -> None:
        able = []
        with self.database.write() as session:
            for claimed in self.oracle.iter_claims():
                with contextlib.suppress(LeaseLostError):
                    hold(session, claimed)
                    able.append(claimed)
        holders = [job.claims[-1] for job in self.oracle.jobs.values() if job.state in HELD]
        assert able == holders


def check_row(row: JobRow, job: Job) -> None:
    """Compare a job with its row."""
    found = (row.state, row.attempt, row.failures, row.priority, row.checkpoint_step)
    assert found == (job.state, job.attempt, job.failures, job.priority, job.checkpoint)
    assert (row.project_id, row.retried_from) == (job.project, job.retried_from)
    digest = None if job.checkpoint is None else f"{job.checkpoint}" * 64
    assert row.checkpoint_sha256 == digest
    is_held = job.state in HELD
    assert (row.lease_owner is not None, row.claimed_at is not None) == (is_held, is_held)
    assert (row.started_at is not None) == (job.attempt > 0)
    assert (row.finished_at is not None) == (job.state in ENDS)
    assert (row.error is not None) == (job.state == "failed")
    assert (row.model_id is not None) == (job.state == "succeeded")
    assert row.ran_s >= job.ran_s
    job.ran_s = row.ran_s


def check_log(log: list[tuple[str, int]], job: Job) -> None:
    """Hold a job's events to the order in which they may come."""
    assert [attempt for name, attempt in log if name == "attempt.started"] == list(
        range(1, job.attempt + 1)
    )
    current = 0
    for name, attempt in log:
        current = attempt if name == "attempt.started" else current
        assert attempt in (0, current), f"attempt {attempt} wrote {name} during {current}"
    ends = [place for place, (name, _) in enumerate(log) if name.removeprefix("job.") in ENDS]
    if job.state in ENDS:
        assert log[-1][0] == f"job.{job.state}"
        assert ends == [len(log) - 1]
    else:
        assert ends == []
