"""The state of everything in a few numbers, cheap enough to be asked for every few seconds."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, JobRow, SweepRow
from core.types import BatchPredictionState, DatasetState, JobState


@dataclass(frozen=True)
class Overview:
    """Numbers of one moment, of all projects together.

    Attributes:
        jobs: state → jobs.
        datasets: state → datasets that are not deleted.
        batch_predictions: state → batch predictions that are not deleted.
        oldest_queued_s: age of the job that has waited longest, 0 where none waits.
        leases: kind of row → leases that hold now.
    """

    jobs: Mapping[str, int]
    datasets: Mapping[str, int]
    batch_predictions: Mapping[str, int]
    oldest_queued_s: float
    leases: Mapping[str, int]


def read_overview(session: Session) -> Overview:
    """Return the numbers of now; by indexes, whatever has piled up."""
    jobs = select(JobRow.state, func.count()).group_by(JobRow.state)
    datasets = select(DatasetRow.state, func.count()).group_by(DatasetRow.state)
    row = BatchPredictionRow
    predictions = select(row.state, func.count()).where(row.deleted_at.is_(None))
    oldest = select(db_now() - func.min(JobRow.created_at))
    oldest = oldest.where(JobRow.state == JobState.QUEUED.value)
    leases = {
        name: select(func.count()).select_from(table).where(table.lease_expires_at > db_now())
        for name, table in (("job", JobRow), ("dataset", DatasetRow), ("batch_prediction", row))
    }
    return Overview(
        jobs=_count(session, jobs, JobState),
        datasets=_count(session, datasets.where(DatasetRow.deleted_at.is_(None)), DatasetState),
        batch_predictions=_count(session, predictions.group_by(row.state), BatchPredictionState),
        oldest_queued_s=max(0.0, session.scalar(oldest) or 0.0),
        leases={name: session.scalar(count) or 0 for name, count in leases.items()},
    )


def _count(
    session: Session, statement: Select[str, int], states: type[StrEnum]
) -> Mapping[str, int]:
    """Return the rows by state; a state without any counts 0."""
    found = {row[0]: row[1] for row in session.execute(statement)}
    return {state.value: found.get(state.value, 0) for state in states}


@dataclass(frozen=True)
class Sweeps:
    """What some sweeps did together.

    Attributes:
        last: number of the latest one, where the next reading begins.
        sweeps: how many there were.
        counts: what was done → how often.
        faults: parts of sweeps that failed.
        store: blobs and bytes in the store, as the latest walk through it found; None without one.
    """

    last: int
    sweeps: int
    counts: Mapping[str, int]
    faults: int
    store: tuple[int, int] | None


def find_last_sweep(session: Session) -> int:
    """Return the number of the latest sweep, 0 before the first."""
    return session.scalar(select(func.max(SweepRow.id))) or 0


def sum_sweeps(session: Session, *, after: int) -> Sweeps:
    """Return what the sweeps after the one numbered `after` did."""
    rows = select(SweepRow.id, SweepRow.counts, SweepRow.faults).where(SweepRow.id > after)
    totals: Counter[str] = Counter()
    sweeps = faults = 0
    store = None
    for number, counts, failed in session.execute(rows.order_by(SweepRow.id)):
        after = number
        sweeps += 1
        faults += len(failed)
        done = Counter(counts)
        seen = (done.pop("blobs_seen", 0), done.pop("bytes_seen", 0))
        store = seen if any(seen) else store
        totals += done
    return Sweeps(after, sweeps, dict(totals), faults, store)
