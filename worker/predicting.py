"""One attempt at a batch prediction: claim, start the predictor, supervise it, keep its lines."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.platform.collection.naming import ensure_stored
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.doorbell import PREDICT_TASK
from core.platform.leases import Claim, LeaseLostError
from core.platform.predictions import attempts, repository
from worker.attempt import Steps, see_through
from worker.ending import Ending, Outcome
from worker.runtime import Runtime
from worker.supervisor import Supervisor, Write

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.jsonl"


def predict_next(runtime: Runtime) -> bool:
    """Claim one pending prediction and see this attempt to its end; False when none waits."""
    claimed_s = monotonic_s()
    ttl_s = runtime.settings.lease_ttl_s
    with runtime.database.write() as session:
        claim = attempts.claim_prediction(session, owner=runtime.owner, ttl_s=ttl_s)
    if claim is None:
        return False
    logger.info("attempt %d of %s starts", claim.attempt, claim.row_id)
    try:
        PredictionAttempt(runtime, claim, claimed_s=claimed_s).run()
    except LeaseLostError as error:
        logger.warning("%s", error)
    return True


class PredictionAttempt:
    """One try of this worker at one batch prediction."""

    def __init__(self, runtime: Runtime, claim: Claim, *, claimed_s: float) -> None:
        """Take the claim over; its lease counts from the monotonic time `claimed_s`."""
        self._runtime = runtime
        self._claim = claim
        self._claimed_s = claimed_s
        self._row: BatchPredictionRow | None = None

    def run(self) -> None:
        """Work on the prediction until it ends, is handed back or is lost.

        Raises:
            LeaseLostError: another attempt, or the end of the prediction, has overtaken this one.
        """
        steps = Steps(
            renew=self._renew,
            on_message=self._on_message,
            build_request=self._build_request,
            conclude=lambda outcome, supervisor, workdir: self._conclude(
                outcome, supervisor, workdir / RESULTS_FILE
            ),
            break_off=lambda supervisor, fault: self._end(supervisor, self._build_crash(fault)),
            find_failure=self._find_overrun,
        )
        see_through(
            "worker.predictor", self._runtime, self._claim, steps, claimed_s=self._claimed_s
        )

    def _build_request(self, inputs: Path) -> dict[str, Any]:
        """Return what the predictor is told; the files that it reads get names in a folder."""
        settings, store = self._runtime.settings, self._runtime.store
        with self._runtime.database.read() as session:
            row = self._row = repository.get_prediction(session, self._claim.row_id)
        config = store.fetch(row.config_sha256, into=inputs)
        return {
            "adapter": str(store.fetch(row.adapter_sha256, into=inputs)),
            "config": str(config),
            **self._fetch_images(row, json.loads(config.read_bytes())["preprocessing"], inputs),
            "images": row.images,
            "parameters": row.parameters,
            "weights_dir": str(settings.weights_dir.resolve()) if settings.weights_dir else None,
            "device": settings.device,
            "precision": settings.inference_precision,
            "threads": settings.threads,
            "decode_threads": settings.inference_decode_threads,
            "max_batch": settings.inference_max_batch,
            "max_archive_files": settings.max_archive_files,
            "max_image_bytes": settings.max_image_bytes,
            "max_image_pixels": settings.max_image_pixels,
        }

    def _fetch_images(
        self, row: BatchPredictionRow, preprocessing: dict[str, Any], inputs: Path
    ) -> dict[str, Any]:
        """Fetch the decoded images where they fit the model, otherwise the archive."""
        store = self._runtime.store
        manifest, cache = None, None
        if row.manifest_sha256 is not None:
            manifest = store.fetch(row.manifest_sha256, into=inputs)
            version = json.loads(manifest.read_bytes())["preprocess_version"]
            sha256 = row.caches.get(str(preprocessing["image_px"]))
            # The first release knew one way and did not name it.
            if sha256 is not None and version == preprocessing.get("version", 1):
                cache = store.fetch(str(sha256), into=inputs)
        archive = None if cache else store.fetch(row.archive_sha256, into=inputs)
        return {
            "manifest": None if manifest is None else str(manifest),
            "split": row.split,
            "cache": None if cache is None else str(cache),
            "archive": None if archive is None else str(archive),
        }

    def _find_overrun(self) -> dict[str, Any] | None:
        """Return the error of a prediction that has run for too long; None while it may go on."""
        limit_s = self._runtime.settings.max_job_s
        if not limit_s or self._row is None:
            return None
        ran_s = self._row.ran_s + monotonic_s() - self._claimed_s
        if ran_s <= limit_s:
            return None
        return {
            "code": "time_limit_exceeded",
            "message": f"the batch prediction has run for {ran_s:.0f} s and may run for "
            f"{limit_s:.0f} s (IDAT_MAX_JOB_S); send its images in several parts",
            "class": "user",
            "ran_s": round(ran_s, 1),
            "limit_s": limit_s,
        }

    def _renew(self, session: Session, progress: dict[str, Any] | None) -> str:
        ttl_s = self._runtime.settings.lease_ttl_s
        return attempts.report_progress(session, self._claim, ttl_s=ttl_s, progress=progress)

    def _on_message(self, message: dict[str, Any]) -> list[Write]:
        logger.warning("the predictor sent an unknown message %r", message["type"])
        return []

    def _conclude(self, outcome: Outcome, supervisor: Supervisor, results: Path) -> None:
        claim = self._claim
        logger.info("attempt %d of %s: %s", claim.attempt, claim.row_id, outcome.ending.value)
        match outcome.ending:
            case Ending.DONE:
                counts = outcome.message["counts"]
                blob = supervisor.renew_while(lambda: self._runtime.store.put_file(results))
                self._end(supervisor, partial(self._publish, blob.sha256, blob.size_bytes, counts))
            case Ending.FAILED:
                error = {k: v for k, v in outcome.message.items() if k != "type"}
                self._end(supervisor, lambda session: attempts.fail(session, claim, error))
            case Ending.STOPPED:
                self._end(supervisor, lambda session: attempts.release(session, claim))
                self._runtime.doorbell.ring(PREDICT_TASK)  # for another worker
            case Ending.CRASHED:
                self._end(supervisor, self._build_crash(outcome.message))
                self._runtime.doorbell.ring(PREDICT_TASK)
            case Ending.CANCELLED:
                supervisor.write_last(self._finish_cancel)
            case Ending.LOST:
                return

    def _publish(
        self, sha256: str, size_bytes: int, counts: dict[str, int], session: Session
    ) -> None:
        ensure_stored(session, self._runtime.store, sha256)
        attempts.publish(
            session, self._claim, results_sha256=sha256, results_bytes=size_bytes, counts=counts
        )

    def _end(self, supervisor: Supervisor, write: Write) -> None:
        """Make the last write; a cancel that came before it is how the prediction ends instead."""
        supervisor.write_last(write, if_lost=self._finish_cancel)

    def _finish_cancel(self, session: Session) -> None:
        attempts.finish_cancel(session, self._claim)

    def _build_crash(self, error: dict[str, Any]) -> Write:
        limit = self._runtime.settings.max_attempts

        def write(session: Session) -> None:
            attempts.give_up_attempt(session, self._claim, error, max_attempts=limit)

        return write
