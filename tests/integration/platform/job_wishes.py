"""What users may do in a random life of jobs; the rest of its rules are in `test_job_machine`."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from core.errors import NotFoundError
from core.platform.db.tables import JobRow
from core.platform.jobs import control
from core.platform.projects.repository import change_project
from tests.integration.platform.job_life import PICKS, PROJECTS, Life, some
from tests.integration.platform.job_oracle import ENDS, Job
from tests.integration.platform.rows import add_job

#: Few at a time, so that each lives through much; and in all, so that a look at them is quick.
MAX_OPEN = 6
MAX_JOBS = 12
NAMES = st.sampled_from(PROJECTS)
PRIORITIES = st.sampled_from([-100, 0, 100])
LIMITS = st.sampled_from([None, 0, 1, 2])

WISHES: dict[str, Callable[..., object]] = {
    "cancel": lambda session, job_id, _, **of: control.request_cancel(session, job_id, **of),
    "pause": lambda session, job_id, _, **of: control.request_pause(session, job_id, **of),
    "resume": lambda session, job_id, _, **of: control.request_resume(session, job_id, **of),
    "retry": lambda session, job_id, _, **of: control.retry_job(session, job_id, **of),
    "prioritise": control.change_priority,
}


def may_make_more(life: Life) -> bool:
    return len(life.oracle.jobs) < MAX_JOBS


def has_room(life: Life) -> bool:
    count = len(life.oracle.jobs)
    return may_make_more(life) and count - len(life.oracle.list_in(ENDS)) < MAX_OPEN


class Wishes(Life):
    """Users of both projects, and of the wrong one."""

    @initialize(
        priorities=st.tuples(PRIORITIES, PRIORITIES, PRIORITIES), paused=NAMES, limit=LIMITS
    )
    def begin_with_a_queue(
        self, priorities: tuple[int, int, int], paused: str, limit: int | None
    ) -> None:
        self.change_share("alpha", weight=1.0, limit=limit)
        self.change_share("beta", weight=2.0, limit=None)
        for project, priority in zip(("alpha", "alpha", "beta"), priorities, strict=True):
            self.submit(project=project, is_ready=True, is_paused=False, priority=priority)
        for name in PROJECTS:
            self.submit(project=name, is_ready=False, is_paused=name == paused, priority=0)

    @precondition(has_room)
    @rule(project=NAMES, is_ready=st.booleans(), is_paused=st.booleans(), priority=PRIORITIES)
    def submit(self, project: str, is_ready: bool, is_paused: bool, priority: int) -> None:
        dataset_id = (self.ready if is_ready else self.pending)[project]
        job_id = add_job(self.database, dataset_id, priority=priority, project=project)
        with self.database.write() as session:
            number = self.date(session, JobRow, job_id)
        state = "queued" if is_ready else "validating_files"
        self.oracle.jobs[job_id] = Job(number, project, dataset_id, state, priority)
        if is_paused:
            self.pause(job_id)

    def change_share(self, project: str, *, weight: float, limit: int | None) -> None:
        with self.database.write() as session:
            change_project(session, project, {"weight": weight, "max_running_jobs": limit})
        share = self.oracle.shares[project]
        share.weight, share.limit = Fraction(weight), limit

    @rule(wishes=some(st.tuples(PICKS, st.sampled_from(sorted(WISHES)), PRIORITIES)))
    def ask_for(self, wishes: list[tuple[int, str, int]]) -> None:
        for pick, wish, priority in wishes:
            self.ask(pick, wish, priority)

    def ask(self, pick: int, wish: str, priority: int) -> None:
        """Ask something of a job: first by the wrong project, for which there is no such job."""
        job_id, job = self.pick_job(pick)
        (other,) = set(PROJECTS) - {job.project}
        with pytest.raises(NotFoundError), self.database.write() as session:
            WISHES[wish](session, job_id, priority, project=other)
        match wish:
            case "cancel":
                with self.refused_with(job.cancel()) as session:
                    control.request_cancel(session, job_id)
            case "pause":
                self.pause(job_id)
            case "resume":
                self.resume(job_id)
            case "prioritise":
                with self.refused_with(job.prioritise(priority)) as session:
                    control.change_priority(session, job_id, priority)
            case "retry":
                self.retry(job_id)

    def pause(self, job_id: str) -> None:
        with self.refused_with(self.oracle.jobs[job_id].pause()) as session:
            control.request_pause(session, job_id)

    def resume(self, job_id: str) -> None:
        job = self.oracle.jobs[job_id]
        is_ready = job.dataset_id not in self.pending.values()
        with self.refused_with(job.resume(is_ready=is_ready)) as session:
            control.request_resume(session, job_id)

    def retry(self, job_id: str) -> None:
        job = self.oracle.jobs[job_id]
        refusal = job.refuse_retry(is_unusable=job.dataset_id in self.unusable)
        if refusal is None and not may_make_more(self):
            return
        with self.refused_with(refusal) as session:
            again = control.retry_job(session, job_id).id
            number = self.date(session, JobRow, again)
        if refusal is None:
            self.oracle.jobs[again] = Job(
                number, job.project, job.dataset_id, "queued", job.priority, retried_from=job_id
            )
