"""Sweeps: put right what the dead left behind, ring for what waits, delete what nobody needs.

Every worker sweeps at its interval, and any number may at once: each change is one conditional
write, or made under a lock (`core.platform.collection`), so that it happens once and is counted
once. What looks through everything is one worker's turn. A part that fails is noted and tried again
by the next sweep; the others run all the same.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from core.clock import monotonic_s, now_s
from core.platform.collection import rows
from core.platform.collection.blobs import Collection, collect_blobs
from core.platform.collection.log import record_sweep
from core.platform.collection.scratch import remove_abandoned_uploads
from core.platform.collection.turns import repeat_turn, take_turn
from core.platform.datasets import repository as datasets
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.doorbell import DELIVER_TASK, PREDICT_TASK, TRAIN_TASK, VALIDATE_TASK
from core.platform.jobs import attempts
from core.platform.predictions import attempts as predictions
from core.platform.webhooks import deliveries
from core.types import BatchPredictionState, DatasetState, JobState
from worker.runtime import Runtime
from worker.workdirs import remove_abandoned, remove_dead_workers

logger = logging.getLogger(__name__)

#: One ring makes a worker go on until nothing waits; more of them wake more workers.
_MAX_RINGS = 16
_RING_TURN = "ring"
_COLLECT_TURN = "collect"


@dataclass
class SweepResult:
    """What a sweep has done.

    Attributes:
        counts: what was done -> how often; what was looked for and not found is left out.
        faults: part that failed -> why.
        has_walked: whether it was this sweep's turn to look through the store.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    has_walked: bool = False


def sweep(runtime: Runtime) -> SweepResult:
    """Run one sweep, and write down what it did."""
    started_s = monotonic_s()
    result = SweepResult()
    with _part(result, "leases"):
        result.counts += _expire_leases(runtime)
    with _part(result, "webhooks"):
        result.counts += _resend_webhooks(runtime)
    with _part(result, "scratch"):
        result.counts += _clean_scratch(runtime)
    with _part(result, "rings"):
        result.counts += _ring(runtime)
    with _part(result, "partial_blobs"):
        result.counts += _remove_partial_blobs(runtime)
    with _part(result, "turn"):
        result.has_walked = _take_collect_turn(runtime)
    if result.has_walked:
        with _part(result, "rows"):
            result.counts += _forget_rows(runtime)
        with _part(result, "blobs"):
            _collect_blobs(runtime, result.counts)
    result.counts = +result.counts  # leaves out what did not happen
    _record(runtime, result, duration_s=monotonic_s() - started_s)
    return result


@contextmanager
def _part(result: SweepResult, name: str) -> Iterator[None]:
    """Keep what goes wrong in one part from the others."""
    try:
        yield
    except Exception as error:
        # Whatever it was, the other parts have nothing to do with it, and the next sweep tries.
        logger.exception("the part %s of the sweep failed", name)
        result.faults[name] = f"{type(error).__name__}: {error}"[:500]


def _expire_leases(runtime: Runtime) -> Counter[str]:
    """End the attempts that stopped renewing; what is to be tried again is rung for at once."""
    limit = runtime.settings.max_attempts
    with runtime.database.write() as session:
        lost_jobs = attempts.expire_attempts(session, max_attempts=limit)
        lost_datasets = datasets.expire_attempts(session, max_attempts=limit)
        lost_predictions = predictions.expire_attempts(session, max_attempts=limit)
    all_lost = {
        TRAIN_TASK: lost_jobs,
        VALIDATE_TASK: lost_datasets,
        PREDICT_TASK: lost_predictions,
    }
    for task, lost in all_lost.items():
        for row_id in lost:
            logger.warning("the lease of %s had run out", row_id)
        _ring_times(runtime, task, len(lost))
    return Counter(expired_leases=sum(len(lost) for lost in all_lost.values()))


def _resend_webhooks(runtime: Runtime) -> Counter[str]:
    """Send again what dead workers were sending; give up what waits for a closed endpoint."""
    with runtime.database.write() as session:
        lost = deliveries.expire_attempts(session)
        abandoned = deliveries.abandon_waiting(session)
    if lost:
        logger.warning("the lease of webhooks %s had run out", ", ".join(lost))
        runtime.doorbell.ring(DELIVER_TASK)
    return Counter(webhook_resends=len(lost), webhooks_given_up=abandoned)


def _ring(runtime: Runtime) -> Counter[str]:
    """Ring for what waits: the message that should have told of it may be lost."""
    if not runtime.settings.broker_url:
        return Counter()
    with runtime.database.write() as session:
        interval_s = runtime.settings.sweep_interval_s
        if not take_turn(session, _RING_TURN, interval_s=interval_s):
            return Counter()
        queued = select(func.count()).where(JobRow.state == JobState.QUEUED)
        pending = select(func.count()).where(DatasetRow.state == DatasetState.PENDING)
        unpredicted = select(func.count()).where(
            BatchPredictionRow.state == BatchPredictionState.PENDING
        )
        waiting = {
            TRAIN_TASK: session.scalars(queued).one(),
            VALIDATE_TASK: session.scalars(pending).one(),
            PREDICT_TASK: session.scalars(unpredicted).one(),
            DELIVER_TASK: int(deliveries.has_due(session)),  # one sends to many
        }
    rings: Counter[str] = Counter()
    for task, count in waiting.items():
        rings["rings"] += _ring_times(runtime, task, count)
    return rings


def _ring_times(runtime: Runtime, task: str, count: int) -> int:
    """Ring so many times, or until the broker takes no more; return how many it took.

    Each ring for a frozen broker lasts seconds, and a worker that shuts down waits for its sweep.
    """
    for rung in range(min(count, _MAX_RINGS)):
        if not runtime.doorbell.ring(task):
            return rung
    return min(count, _MAX_RINGS)


def _clean_scratch(runtime: Runtime) -> Counter[str]:
    """Remove the folders and uploads of processes of any host that have died."""
    scratch_dir = runtime.settings.scratch_dir
    removed = {
        "attempt_folders": remove_abandoned(scratch_dir),
        "worker_folders": remove_dead_workers(scratch_dir, own=runtime.folder),
        "abandoned_uploads": remove_abandoned_uploads(scratch_dir),
    }
    for paths in removed.values():
        for path in paths:
            logger.warning("removed %s, whose process has died", path)
    return Counter({kind: len(paths) for kind, paths in removed.items()})


def _take_collect_turn(runtime: Runtime) -> bool:
    with runtime.database.write() as session:
        interval_s = runtime.settings.collect_interval_s
        return take_turn(session, _COLLECT_TURN, interval_s=interval_s)


def _forget_rows(runtime: Runtime) -> Counter[str]:
    with runtime.database.write() as session:
        return Counter(
            idempotency_keys=rows.forget_idempotency_keys(session),
            old_sweeps=rows.forget_sweeps(session),
            deleted_models=rows.purge_models(session),
            deleted_datasets=rows.purge_datasets(session),
            deleted_batch_predictions=rows.purge_predictions(session),
            old_webhook_deliveries=rows.forget_webhook_deliveries(session),
            deleted_webhook_endpoints=rows.purge_webhook_endpoints(session),
        )


def _remove_partial_blobs(runtime: Runtime) -> Counter[str]:
    """Remove what killed writers left in the store, and in this host's copies of it.

    Those copies are why each worker does it for itself, at the interval of the walk.
    """
    done = runtime.folder / "partial-blobs-removed"
    if done.exists() and abs(now_s() - done.stat().st_mtime) < runtime.settings.collect_interval_s:
        return Counter()
    runtime.folder.mkdir(parents=True, exist_ok=True)
    done.touch()
    grace_s = runtime.settings.collect_grace_s
    return Counter(partial_blobs=runtime.store.remove_abandoned(older_than_s=grace_s))


def _collect_blobs(runtime: Runtime, counts: Counter[str]) -> None:
    """Delete what no row names; what was done before a fault is counted as well."""
    collection = Collection()
    try:
        grace_s = runtime.settings.collect_grace_s
        collect_blobs(runtime.database, runtime.store, collection, grace_s=grace_s)
        if not collection.is_complete:
            with runtime.database.write() as session:
                repeat_turn(session, _COLLECT_TURN)
    finally:
        counts.update(
            blobs_seen=collection.seen,
            bytes_seen=collection.seen_bytes,
            blobs=collection.deleted,
            bytes=collection.deleted_bytes,
            undeletable_blobs=collection.failed,
        )


def _record(runtime: Runtime, result: SweepResult, *, duration_s: float) -> None:
    """Say what was done in one line of the log and one row; nothing when nothing was."""
    if not (result.counts or result.faults or result.has_walked):
        return
    done = " ".join(f"{kind}={count}" for kind, count in sorted(result.counts.items()))
    logger.info("sweep duration_s=%.1f %s faults=%d", duration_s, done, len(result.faults))
    try:
        with runtime.database.write() as session:
            record_sweep(
                session,
                owner=runtime.owner,
                duration_s=duration_s,
                counts=result.counts,
                faults=result.faults,
            )
    except SQLAlchemyError as error:
        logger.warning("could not write the sweep down: %s", error)
