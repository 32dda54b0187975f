"""Rows of projects: made with a project's first job, changed by the operator."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.errors import InvalidError
from core.platform.db.tables import JobRow, ProjectRow
from core.platform.jobs.states import HELD
from core.types import PROJECT_PATTERN, JobState

DEFAULT_WEIGHT = 1.0
#: A weight beyond these would be a limit in disguise.
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MAX_LIMIT = 1_000_000

_HELD = tuple(sorted(state.value for state in HELD))
_QUEUED = JobState.QUEUED.value
_VALIDATING = JobState.VALIDATING_FILES.value


@dataclass(frozen=True)
class ProjectLoad:
    """A project, and what it has under way.

    Attributes:
        name: which.
        weight: its share of the workers, relative to other projects'.
        max_running_jobs: its own limit; None if it has the setting's, 0 for no limit.
        running: jobs that hold a slot of a worker, those that are being stopped included.
        queued: jobs that wait for a worker.
        waiting_for_dataset: jobs that wait for the validation of their dataset.
    """

    name: str
    weight: float
    max_running_jobs: int | None
    running: int
    queued: int
    waiting_for_dataset: int


def ensure_project(session: Session, name: str) -> None:
    """Make the row of a project that has none yet."""
    if session.get(ProjectRow, name) is not None:
        return
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    insert: Any = postgresql.insert if is_postgresql else sqlite.insert
    # Two first jobs at once both find nothing; one row comes of it.
    session.execute(insert(ProjectRow).values(id=name).on_conflict_do_nothing())


def lock_project(session: Session, name: str) -> None:
    """Hold the project's row, which there is, for the rest of the transaction.

    What is counted after it stays so, as long as everybody who adds to it asks for this first.
    """
    session.get_one(ProjectRow, name, with_for_update=True, populate_existing=True)


def get_load(session: Session, name: str) -> ProjectLoad:
    """Return a project as it stands; one without a row has the defaults and no jobs."""
    (load,) = _count_loads(session, [session.get(ProjectRow, name) or _build_default(name)])
    return load


def list_loads(session: Session) -> list[ProjectLoad]:
    """Return every project that has had a job or a setting of its own, by name."""
    return _count_loads(session, session.scalars(select(ProjectRow).order_by(ProjectRow.id)).all())


def change_project(session: Session, name: str, changes: dict[str, float | int | None]) -> None:
    """Give a project another weight or limit; it is made if there is none of that name.

    Args:
        session: a write transaction.
        name: which.
        changes: `weight` and `max_running_jobs`, or one of them; None for the setting's limit.

    Raises:
        InvalidError: the name, the weight or the limit is impossible.
    """
    if not re.fullmatch(PROJECT_PATTERN, name):
        raise InvalidError(
            f"{name!r} is no name of a project: 1 to 40 small letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    weight, limit = changes.get("weight", DEFAULT_WEIGHT), changes.get("max_running_jobs")
    if weight is None or not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidError(f"a weight is {MIN_WEIGHT} to {MAX_WEIGHT:.0f}, not {weight}")
    if limit is not None and not 0 <= limit <= MAX_LIMIT:
        raise InvalidError(f"a limit is 0, for none, to {MAX_LIMIT}, not {limit}")
    ensure_project(session, name)
    project = session.get_one(ProjectRow, name, with_for_update=True, populate_existing=True)
    for attribute, value in changes.items():
        setattr(project, attribute, value)
    session.flush()


def _build_default(name: str) -> ProjectRow:
    return ProjectRow(id=name, weight=DEFAULT_WEIGHT)


def _count_loads(session: Session, projects: Sequence[ProjectRow]) -> list[ProjectLoad]:
    states = (*_HELD, _QUEUED, _VALIDATING)
    names = [project.id for project in projects]
    query = (
        select(JobRow.project_id, JobRow.state, func.count())
        .where(JobRow.project_id.in_(names), JobRow.state.in_(states))
        .group_by(JobRow.project_id, JobRow.state)
    )
    counts = {(name, state): count for name, state, count in session.execute(query)}
    return [
        ProjectLoad(
            name=project.id,
            weight=project.weight,
            max_running_jobs=project.max_running_jobs,
            running=sum(counts.get((project.id, state), 0) for state in _HELD),
            queued=counts.get((project.id, _QUEUED), 0),
            waiting_for_dataset=counts.get((project.id, _VALIDATING), 0),
        )
        for project in projects
    ]
