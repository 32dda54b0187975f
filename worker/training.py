"""One attempt at a job: claim, start the trainer, supervise it, publish what it made."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from core.catalog.figures import EVALUATION_FILE, FIGURES_DIR
from core.clock import monotonic_s
from core.errors import AppError, StorageFullError, UnavailableError
from core.platform.collection.naming import ensure_stored
from core.platform.collection.references import list_model_digests
from core.platform.datasets import repository as datasets
from core.platform.db.tables import JobRow, ModelRow
from core.platform.doorbell import TRAIN_TASK
from core.platform.jobs import attempts, events, repository
from core.platform.leases import Claim, LeaseLostError
from core.platform.storage.errors import BlobCorruptError
from core.types import new_model_id
from worker.attempt import Steps, see_through
from worker.claims import claim_next_job
from worker.ending import Ending, Outcome
from worker.runtime import Runtime
from worker.side_work import SideWork
from worker.supervisor import Supervisor, Write
from worker.time_limit import find_time_limit

logger = logging.getLogger(__name__)

#: The time that the store has for deleting the checkpoints of a job that has ended.
_DELETE_S = 5.0


def train_next(runtime: Runtime, slot: int) -> bool:
    """Claim one queued job and see this attempt to its end.

    Args:
        runtime: this process's runtime.
        slot: the slot that this process holds.

    Returns:
        False when no job waits that may start here now.
    """
    claimed_s = monotonic_s()
    with claim_next_job(runtime, slot) as claim:
        if claim is None:
            return False
        logger.info("attempt %d of %s starts", claim.attempt, claim.row_id)
        try:
            TrainingAttempt(runtime, claim, claimed_s=claimed_s).run()
        except LeaseLostError as error:
            logger.warning("%s", error)
    return True


class TrainingAttempt:
    """One try of this worker at one job."""

    def __init__(self, runtime: Runtime, claim: Claim, *, claimed_s: float) -> None:
        """Take the claim over.

        Args:
            runtime: this process's runtime.
            claim: the claim.
            claimed_s: monotonic time just before the claim, from which its lease counts.
        """
        self._runtime = runtime
        self._claim = claim
        self._claimed_s = claimed_s
        self._job: JobRow | None = None
        self._checkpoints: list[str] = []
        self._superseded: list[str] = []
        #: that of the newest checkpoint, recorded or offered
        self._checkpoint_step = 0
        #: tells slow work that was left behind that the checkpoints are no longer its business
        self._has_ended = False

    def run(self) -> None:
        """Work on the job until it ends, is handed back or is lost.

        Raises:
            LeaseLostError: another attempt, or the end of the job, has overtaken this one.
        """
        steps = Steps(
            renew=self._renew,
            on_message=self._on_message,
            build_request=self._build_request,
            conclude=self._conclude,
            break_off=lambda supervisor, fault: self._end(supervisor, self._build_crash(fault)),
            find_failure=self._find_overrun,
            leave_behind=self._note_end,
        )
        see_through("worker.trainer", self._runtime, self._claim, steps, claimed_s=self._claimed_s)

    def _note_end(self) -> None:
        self._has_ended = True

    def _build_request(self, inputs: Path) -> dict[str, Any]:
        """Return what the trainer is told; the files that it reads get names in a folder of it."""
        settings, store = self._runtime.settings, self._runtime.store

        def fetch(sha256: str) -> str:
            return str(store.fetch(sha256, into=inputs))

        job = self._get_job()
        with self._runtime.database.read() as session:
            dataset = repository.get_dataset_of(session, job)
        assert dataset.manifest_sha256 is not None, "a queued job's dataset is ready"
        checkpoint = self._fetch_checkpoint(job.checkpoint_sha256, inputs)
        self._checkpoint_step = job.checkpoint_step or 0
        return {
            "job_id": job.id,
            "name": job.name,
            "created_at": int(job.created_at),
            "spec": job.spec,
            "dataset": {
                "id": dataset.id,
                "archive": fetch(dataset.archive_sha256),
                "manifest": fetch(dataset.manifest_sha256),
                "caches": {px: fetch(str(sha)) for px, sha in dataset.caches.items()},
            },
            "checkpoint": checkpoint,
            "checkpoint_step": job.checkpoint_step,
            "checkpoint_interval_s": settings.checkpoint_interval_s,
            "weights_dir": str(settings.weights_dir.resolve()) if settings.weights_dir else None,
            "device": settings.device,
            "threads": settings.threads,
            "max_archive_files": settings.max_archive_files,
            "max_image_bytes": settings.max_image_bytes,
            "max_image_pixels": settings.max_image_pixels,
        }

    def _find_overrun(self) -> dict[str, Any] | None:
        """Return the error of a job that has run for too long; None as long as it may go on."""
        if self._job is None:
            return None  # not read yet
        limit = find_time_limit(self._job, self._runtime.settings)
        return None if limit is None else limit.find_overrun(monotonic_s() - self._claimed_s)

    def _get_job(self) -> JobRow:
        """Return the job as it was when this attempt began.

        Read once: a database that is away when the trainer has ended must not cost the attempt.
        """
        if self._job is None:
            with self._runtime.database.read() as session:
                self._job = repository.get_job(session, self._claim.row_id)
        return self._job

    def _fetch_checkpoint(self, sha256: str | None, inputs: Path) -> str | None:
        """Return the path of the checkpoint to go on from, or None to start over."""
        store = self._runtime.store
        if sha256 is None or not store.exists(sha256):
            return None
        try:
            path = str(store.fetch(sha256, into=inputs))
        except BlobCorruptError as error:
            logger.warning("%s starts over: %s", self._claim.row_id, error)
            # The same step will make the same bytes, which must not find these in their place.
            store.delete(sha256)
            return None
        self._checkpoints.append(sha256)
        return path

    def _renew(self, session: Session, progress: dict[str, Any] | None) -> str:
        ttl_s = self._runtime.settings.lease_ttl_s
        state = attempts.report_progress(session, self._claim, ttl_s=ttl_s, progress=progress)
        if len(self._checkpoints) > 1:
            self._drop_old_checkpoints(session)
        return state

    def _on_message(self, message: dict[str, Any]) -> list[Write]:
        job_id, attempt = self._claim.row_id, self._claim.attempt
        match message["type"]:
            case "epoch":
                metrics = message["metrics"]
                return [
                    lambda session: events.record_epoch(
                        session, job_id, int(metrics["epoch"]), metrics
                    )
                ]
            case "log":
                return [
                    lambda session: events.add_event(
                        session,
                        job_id,
                        message["message"],
                        level=message.get("level", "info"),
                        attempt=attempt,
                        data=message.get("data", {}),
                    )
                ]
            case "cache":
                return [self._store_cache(Path(message["path"]), int(message["image_px"]))]
            case "checkpoint":
                return [self._store_checkpoint(Path(message["path"]), int(message["step"]))]
            case other:
                logger.warning("the trainer sent an unknown message %r", other)
                return []

    def _store_cache(self, path: Path, image_px: int) -> Write:
        store, job_id = self._runtime.store, self._claim.row_id
        sha256 = store.put_file(path).sha256

        def write(session: Session) -> None:
            ensure_stored(session, store, sha256)
            datasets.add_cache(session, job_id=job_id, image_px=image_px, sha256=sha256)

        return write

    def _store_checkpoint(self, path: Path, step: int) -> Write:
        try:
            sha256 = self._runtime.store.put_file(path).sha256
        except (UnavailableError, StorageFullError) as error:
            # The training is worth more than this checkpoint; the one before it still serves.
            return self._warn(f"the checkpoint of step {step} could not be stored: {error}")
        finally:
            path.unlink()
        self._delete_superseded()
        # The trainer counts on from a checkpoint that it was given; one that it could not use
        # (made on other hardware, or gone) must not keep the new ones out.
        starts_over = step < self._checkpoint_step
        self._checkpoint_step = step

        def write(session: Session) -> None:
            # Not looked for again, as what models and datasets name is: a store that stalls would
            # hold up the lease, and a job whose checkpoint is missing starts over.
            is_newest = attempts.record_checkpoint(
                session, self._claim, sha256=sha256, step=step, starts_over=starts_over
            )
            if is_newest and sha256 not in self._checkpoints:
                self._checkpoints.append(sha256)

        return write

    def _warn(self, message: str) -> Write:
        job_id, attempt = self._claim.row_id, self._claim.attempt
        logger.warning("%s: %s", job_id, message)
        return lambda session: events.add_event(
            session, job_id, message, level="warning", attempt=attempt
        )

    def _drop_old_checkpoints(self, session: Session) -> None:
        """Mark the checkpoints before the one that the row names for deletion.

        Called at the start of a transaction, behind its fence: what the row names then is
        committed, and an overtaken attempt never gets here. The store is not asked here: it may
        hang, and the lease with it.
        """
        current = repository.get_job(session, self._claim.row_id).checkpoint_sha256
        if current not in self._checkpoints:
            return
        keep_from = self._checkpoints.index(current)
        self._superseded += self._checkpoints[:keep_from]
        del self._checkpoints[:keep_from]

    def _delete_superseded(self) -> None:
        if self._has_ended:
            return
        superseded, self._superseded = self._superseded, []
        self._delete(superseded)

    def _delete(self, digests: list[str]) -> None:
        """Delete checkpoints; what the store does not delete now is left to the sweeps."""
        for sha256 in digests:
            try:
                self._runtime.store.delete(sha256)
            except (AppError, OSError) as error:
                logger.warning("the checkpoint %s stays for now: %s", sha256, error)
                return  # a store that is away is away for the others, too

    def _conclude(self, outcome: Outcome, supervisor: Supervisor, workdir: Path) -> None:
        claim = self._claim
        logger.info("attempt %d of %s: %s", claim.attempt, claim.row_id, outcome.ending.value)
        match outcome.ending:
            case Ending.DONE:
                done = outcome.message
                model = supervisor.renew_while(lambda: self._store_model(done, workdir / "out"))
                self._end(supervisor, partial(self._publish, model))
            case Ending.FAILED:
                error = {k: v for k, v in outcome.message.items() if k != "type"}
                self._end(supervisor, lambda session: attempts.fail(session, claim, error))
            case Ending.STOPPED:
                self._end(supervisor, lambda session: attempts.release(session, claim))
                self._runtime.doorbell.ring(TRAIN_TASK)  # for another worker
                return  # the checkpoints stay: the next attempt goes on from them
            case Ending.CRASHED:
                self._end(supervisor, self._build_crash(outcome.message))
                self._runtime.doorbell.ring(TRAIN_TASK)
                return
            case Ending.CANCELLED:
                supervisor.write_last(self._finish_cancel)
            case Ending.LOST:
                return
        # Neither the next job nor a shutdown waits for a store that does not answer.
        digests = [*self._superseded, *self._checkpoints]
        SideWork(lambda: self._delete(digests)).wait(_DELETE_S)

    def _publish(self, model: ModelRow, session: Session) -> None:
        ensure_stored(session, self._runtime.store, *list_model_digests(model))
        attempts.publish(session, self._claim, model)

    def _end(self, supervisor: Supervisor, write: Write) -> None:
        """Make the last write; a cancel that came before it is how the job ends instead."""
        supervisor.write_last(write, if_lost=self._finish_cancel)

    def _finish_cancel(self, session: Session) -> None:
        attempts.finish_cancel(session, self._claim)

    def _build_crash(self, error: dict[str, Any]) -> Write:
        limit = self._runtime.settings.max_attempts

        def write(session: Session) -> None:
            attempts.give_up_attempt(session, self._claim, error, max_attempts=limit)

        return write

    def _store_model(self, done: dict[str, Any], out: Path) -> ModelRow:
        """Store the exported files; the row that names them is written when the job ends."""
        store = self._runtime.store
        adapter = store.put_file(out / "adapter.safetensors")
        config = json.loads((out / "config.json").read_text())
        job = self._get_job()
        return ModelRow(
            id=new_model_id(),
            project_id=job.project_id,
            name=job.name,
            job_id=job.id,
            dataset_id=job.dataset_id,
            backbone=config["backbone"]["name"],
            adapter_sha256=adapter.sha256,
            adapter_bytes=adapter.size_bytes,
            config_sha256=store.put_file(out / "config.json").sha256,
            card_sha256=store.put_file(out / "README.md").sha256,
            classes=config["classes"],
            metrics=done["metrics"],
            evaluation_sha256=store.put_file(out / EVALUATION_FILE).sha256,
            figures=self._store_figures(out / FIGURES_DIR),
        )

    def _store_figures(self, folder: Path) -> dict[str, object] | None:
        """Store the figures that were asked for; return what the model's row says of them."""
        figures: dict[str, object] = {}
        for path in sorted(folder.glob("*.json")):
            document, png = json.loads(path.read_text()), path.with_suffix(".png")
            figures[path.stem] = {
                "status": document["status"],
                "reason": document.get("reason"),
                "json_sha256": self._runtime.store.put_file(path).sha256,
                "png_sha256": self._runtime.store.put_file(png).sha256 if png.exists() else None,
            }
        return figures or None
