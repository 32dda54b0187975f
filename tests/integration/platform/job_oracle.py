"""What jobs should look like, whatever is done to them: a model that knows no database.

It is written from docs/state_machine.md, and for the shares of projects from the definition of
stride scheduling, in exact fractions: virtual time stands still between claims, each claim moves it
to when the claimed job was due, and a project's next job is due 1/weight after its last one, but
never before now. Weights have to be powers of two: the service's numbers are exact then, too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from core.errors import ConflictError
from core.platform.jobs.control import (
    JobCancellingError,
    JobNotFailedError,
    JobNotWaitingError,
    JobTerminalError,
)
from core.platform.jobs.repository import DatasetUnusableError
from core.platform.leases import Claim

MAX_ATTEMPTS = 3
#: Most running jobs of a project that has no limit of its own.
DEFAULT_LIMIT = 2
ENDS = ("succeeded", "failed", "cancelled")
HELD = ("running", "pausing", "cancelling")
#: Held, and not about to be cancelled.
WORKING = ("running", "pausing")

Refusal = type[ConflictError] | None


@dataclass
class Job:
    """A job, as it should be; `number` tells the older from the younger."""

    number: int
    project: str
    dataset_id: str
    state: str
    priority: int
    retried_from: str | None = None
    attempt: int = 0
    failures: int = 0
    checkpoint: int | None = None
    ran_s: float = 0.0
    claims: list[Claim] = field(default_factory=list)

    def may_write(self, claimed: Claim, states: Iterable[str]) -> bool:
        """Whether this claim's attempt is the current one, in one of these states."""
        return claimed.attempt == self.attempt and self.state in states

    def hand_back(self) -> None:
        """Its attempt ends, and it does not."""
        self.state = {"running": "queued", "pausing": "paused"}[self.state]

    def charge(self) -> None:
        """Its attempt is lost."""
        self.failures += 1
        if self.failures == MAX_ATTEMPTS:
            self.state = "failed"
        else:
            self.hand_back()

    def reach(self, step: int, *, starts_over: bool) -> bool:
        """Its attempt has a checkpoint; whether that is the one to go on from."""
        if not starts_over and self.checkpoint is not None and step < self.checkpoint:
            return False
        self.checkpoint = step
        return True

    def _refuse(self) -> Refusal:
        if self.state in ENDS:
            return JobTerminalError
        return JobCancellingError if self.state == "cancelling" else None

    def cancel(self) -> Refusal:
        """Its user cancels it."""
        if self.state in ("succeeded", "failed"):
            return JobTerminalError
        self.state = "cancelling" if self.state in HELD else "cancelled"
        return None

    def pause(self) -> Refusal:
        """Its user pauses it."""
        refusal = self._refuse()
        if refusal is None:
            self.state = "pausing" if self.state in HELD else "paused"
        return refusal

    def resume(self, *, is_ready: bool) -> Refusal:
        """Its user resumes it; `is_ready` tells of its dataset."""
        refusal = self._refuse()
        if self.state == "paused":
            self.state = "queued" if is_ready else "validating_files"
        elif self.state == "pausing":
            self.state = "running"
        return refusal

    def refuse_retry(self, *, is_unusable: bool) -> Refusal:
        """Why its user may not have it tried again, or None."""
        if self.state != "failed":
            return JobNotFailedError
        return DatasetUnusableError if is_unusable else None

    def prioritise(self, priority: int) -> Refusal:
        """Its user gives it another priority."""
        if self.state in ENDS:
            return JobTerminalError
        if self.state in HELD:
            return JobNotWaitingError
        self.priority = priority
        return None

    def end_validation(self, *, usable: bool) -> None:
        """The validation of its dataset ends."""
        if not usable and self.state in ("validating_files", "paused"):
            self.state = "failed"
        elif self.state == "validating_files":
            self.state = "queued"


@dataclass
class Share:
    """A project: how much is due to it, and when its last job was."""

    weight: Fraction
    limit: int | None = None
    last: Fraction | None = None


@dataclass
class Oracle:
    """All jobs and projects."""

    shares: dict[str, Share]
    jobs: dict[str, Job] = field(default_factory=dict)
    now: Fraction = Fraction(0)

    def list_in(self, states: Iterable[str], project: str | None = None) -> list[str]:
        """The ids of the jobs in these states, of one project or of all."""
        return [
            job_id
            for job_id, job in self.jobs.items()
            if job.state in states and project in (None, job.project)
        ]

    def may_start(self, project: str) -> bool:
        """Whether the project has fewer jobs running than it may."""
        own = self.shares[project].limit
        limit = DEFAULT_LIMIT if own is None else own
        return limit == 0 or len(self.list_in(HELD, project)) < limit

    def find_due(self, project: str) -> Fraction:
        """When the project's next job is due, in virtual time."""
        share = self.shares[project]
        return self.now if share.last is None else max(self.now, share.last + 1 / share.weight)

    def find_next(self) -> str | None:
        """The id of the job that the next claim must get."""
        ranked = []
        for project, share in self.shares.items():
            queue = [(-self.jobs[i].priority, self.jobs[i].number, i) for i in self._queue(project)]
            if queue and self.may_start(project):
                # Of two that are due at once, the one that has waited longer, or has had none yet.
                last = Fraction(-1) if share.last is None else share.last
                ranked.append((self.find_due(project), last, project, min(queue)[-1]))
        return min(ranked)[-1] if ranked else None

    def _queue(self, project: str) -> list[str]:
        return self.list_in(("queued",), project)

    def start(self, claimed: Claim) -> None:
        """Its claim has begun a job's next attempt."""
        job = self.jobs[claimed.row_id]
        self.now = self.shares[job.project].last = self.find_due(job.project)
        job.state, job.attempt = "running", job.attempt + 1
        job.claims.append(claimed)

    def iter_claims(self) -> Iterator[Claim]:
        """The last two claims of every job: one that may hold it, and one that must not."""
        for job in self.jobs.values():
            yield from job.claims[-2:]

    def holds(self, claimed: Claim, states: Iterable[str] = HELD) -> bool:
        """Whether the claim's attempt may write to its job."""
        return self.jobs[claimed.row_id].may_write(claimed, states)
