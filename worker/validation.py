"""One attempt at a dataset: claim, start the intake process, supervise it, keep what it made."""

import json
import logging
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.catalog.pairs import DEFAULT_IMAGE_PX
from core.clock import monotonic_s
from core.platform.collection.naming import ensure_stored
from core.platform.datasets import repository
from core.platform.doorbell import TRAIN_TASK, VALIDATE_TASK
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetState
from worker.attempt import Steps, see_through
from worker.ending import Ending, Outcome
from worker.runtime import Runtime
from worker.supervisor import Supervisor, Write

logger = logging.getLogger(__name__)


def validate_next(runtime: Runtime) -> bool:
    """Claim one pending dataset and see this attempt to its end; return False when none waits."""
    claimed_s = monotonic_s()
    ttl_s = runtime.settings.lease_ttl_s
    with runtime.database.write() as session:
        claim = repository.claim_dataset(session, owner=runtime.owner, ttl_s=ttl_s)
    if claim is None:
        return False
    try:
        ValidationAttempt(runtime, claim, claimed_s=claimed_s).run()
    except LeaseLostError as error:
        logger.warning("%s", error)
    return True


class ValidationAttempt:
    """One try of this worker at one dataset."""

    def __init__(self, runtime: Runtime, claim: Claim, *, claimed_s: float) -> None:
        """Take the claim over; its lease counts from the monotonic time `claimed_s`."""
        self._runtime = runtime
        self._claim = claim
        self._claimed_s = claimed_s

    def run(self) -> None:
        """Validate the dataset until it ends, is handed back or is lost.

        Raises:
            LeaseLostError: another attempt has overtaken this one.
        """
        steps = Steps(
            renew=self._renew,
            on_message=self._on_message,
            build_request=self._build_request,
            conclude=lambda outcome, supervisor, workdir: self._conclude(
                outcome, supervisor, workdir / "out"
            ),
            break_off=lambda supervisor, fault: supervisor.write_last(self._build_crash(fault)),
        )
        see_through("worker.intake", self._runtime, self._claim, steps, claimed_s=self._claimed_s)

    def _build_request(self, inputs: Path) -> dict[str, Any]:
        """Return what the intake is told; the archive gets a name in a folder of it."""
        settings = self._runtime.settings
        with self._runtime.database.read() as session:
            dataset = repository.get_dataset(session, self._claim.row_id)
        return {
            "archive_path": str(self._runtime.store.fetch(dataset.archive_sha256, into=inputs)),
            "seed": dataset.seed,
            "tolerance": dataset.tolerance,
            "image_px": [DEFAULT_IMAGE_PX],
            "max_archive_files": settings.max_archive_files,
            "max_image_pixels": settings.max_image_pixels,
            "max_image_bytes": settings.max_image_bytes,
        }

    def _renew(self, session: Session, progress: dict[str, Any] | None) -> str:
        ttl_s = self._runtime.settings.lease_ttl_s
        return repository.report_progress(session, self._claim, ttl_s=ttl_s, progress=progress)

    def _on_message(self, message: dict[str, Any]) -> list[Write]:
        logger.warning("the intake sent an unknown message %r", message["type"])
        return []

    def _conclude(self, outcome: Outcome, supervisor: Supervisor, out: Path) -> None:
        claim = self._claim
        logger.info("attempt %d of %s: %s", claim.attempt, claim.row_id, outcome.ending.value)
        match outcome.ending:
            case Ending.DONE:
                supervisor.write_last(supervisor.renew_while(lambda: self._store_dataset(out)))
                self._runtime.doorbell.ring(TRAIN_TASK)  # the jobs that waited are queued now
            case Ending.FAILED:
                self._reject(outcome.message, supervisor, out / "report.json")
            case Ending.STOPPED:
                supervisor.write_last(lambda session: repository.release(session, self._claim))
                self._runtime.doorbell.ring(VALIDATE_TASK)  # for another worker
            case Ending.CRASHED:
                supervisor.write_last(self._build_crash(outcome.message))
                self._runtime.doorbell.ring(VALIDATE_TASK)
            case Ending.CANCELLED | Ending.LOST:
                return

    def _store_dataset(self, out: Path) -> Write:
        """Store what the intake made, and return the write that makes it a dataset."""
        store = self._runtime.store
        manifest = json.loads((out / "manifest.json").read_text())
        report = json.loads((out / "report.json").read_text())
        caches = {
            path.stem.removeprefix("images_"): store.put_file(path).sha256
            for path in sorted(out.glob("images_*.npy"))
        }
        manifest_sha256 = store.put_file(out / "manifest.json").sha256
        splits: dict[str, int] = {}
        for item in manifest["items"]:
            splits[item["split"]] = splits.get(item["split"], 0) + 1

        def write(session: Session) -> None:
            ensure_stored(session, store, manifest_sha256, *caches.values())
            repository.mark_ready(
                session,
                self._claim,
                manifest_sha256=manifest_sha256,
                caches=caches,
                classes=manifest["classes"],
                splits=splits,
                report=report,
            )

        return write

    def _reject(self, failure: dict[str, Any], supervisor: Supervisor, report_path: Path) -> None:
        """End as `invalid` or `failed`; a sweep frees the archive of an invalid one."""
        error = {k: v for k, v in failure.items() if k != "type"}
        is_users = error.get("class") == "user"
        state = DatasetState.INVALID if is_users else DatasetState.FAILED
        report = json.loads(report_path.read_text()) if report_path.exists() else None

        def write(session: Session) -> None:
            repository.mark_unusable(session, self._claim, state=state, error=error, report=report)

        supervisor.write_last(write)

    def _build_crash(self, error: dict[str, Any]) -> Write:
        limit = self._runtime.settings.max_attempts

        def write(session: Session) -> None:
            repository.give_up_attempt(session, self._claim, error, max_attempts=limit)

        return write
