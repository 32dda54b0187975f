"""One attempt at a dataset: claim, start the intake process, supervise it, keep what it made."""

import json
import logging
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.catalog.pairs import DEFAULT_IMAGE_PX
from core.clock import monotonic_s
from core.platform.datasets import repository
from core.platform.doorbell import TRAIN_TASK
from core.platform.leases import Claim, LeaseLostError
from core.types import DatasetState
from worker.runtime import Runtime
from worker.supervisor import Ending, Limits, Outcome, Supervisor, Write
from worker.workdirs import hold_workdir

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
        claim, settings = self._claim, self._runtime.settings
        with hold_workdir(settings.scratch_dir, claim.row_id, claim.attempt) as workdir:
            try:
                supervisor = Supervisor(
                    "worker.intake",
                    workdir,
                    database=self._runtime.database,
                    renew=self._renew,
                    renewed_s=self._claimed_s,
                    limits=Limits(
                        heartbeat_s=settings.heartbeat_s,
                        fence_s=settings.lease_ttl_s * 2 / 3,
                        progress_timeout_s=settings.progress_timeout_s,
                    ),
                    is_draining=lambda: self._runtime.is_draining,
                    on_message=self._on_message,
                )
                outcome = supervisor.run(self._build_request())
                logger.info(
                    "attempt %d of %s: %s", claim.attempt, claim.row_id, outcome.ending.value
                )
                self._conclude(outcome, workdir / "out")
            except (OSError, ValueError, KeyError) as error:
                # A fault of ours, here in the supervisor: it costs the attempt, not the worker.
                logger.exception("attempt %d of %s broke", claim.attempt, claim.row_id)
                self._give_up({"code": "attempt_broke", "message": repr(error), "class": "system"})

    def _build_request(self) -> dict[str, Any]:
        settings = self._runtime.settings
        with self._runtime.database.read() as session:
            dataset = repository.get_dataset(session, self._claim.row_id)
        return {
            "archive_path": str(self._runtime.store.fetch(dataset.archive_sha256)),
            "seed": dataset.seed,
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

    def _conclude(self, outcome: Outcome, out: Path) -> None:
        match outcome.ending:
            case Ending.DONE:
                self._keep(out)
            case Ending.FAILED:
                self._reject(outcome.message, out / "report.json")
            case Ending.STOPPED:
                with self._runtime.database.write() as session:
                    repository.release(session, self._claim)
            case Ending.CRASHED:
                self._give_up(outcome.message)
            case Ending.CANCELLED | Ending.LOST:
                return

    def _keep(self, out: Path) -> None:
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
        with self._runtime.database.write() as session:
            repository.mark_ready(
                session,
                self._claim,
                manifest_sha256=manifest_sha256,
                caches=caches,
                classes=manifest["classes"],
                splits=splits,
                report=report,
            )
        self._runtime.doorbell.ring(TRAIN_TASK)  # the jobs that waited for it are queued now

    def _reject(self, failure: dict[str, Any], report_path: Path) -> None:
        """End as `invalid` and free the archive: it can serve nobody any more."""
        error = {k: v for k, v in failure.items() if k != "type"}
        is_users = error.get("class") == "user"
        state = DatasetState.INVALID if is_users else DatasetState.FAILED
        report = json.loads(report_path.read_text()) if report_path.exists() else None
        with self._runtime.database.write() as session:
            repository.mark_unusable(session, self._claim, state=state, error=error, report=report)
            sha256 = repository.get_dataset(session, self._claim.row_id).archive_sha256
            shared = repository.is_archive_referenced(
                session, sha256, except_for=self._claim.row_id
            )
        if is_users and not shared:
            self._runtime.store.delete(sha256)

    def _give_up(self, error: dict[str, Any]) -> None:
        limit = self._runtime.settings.max_attempts
        with self._runtime.database.write() as session:
            repository.give_up_attempt(session, self._claim, error, max_attempts=limit)
