"""The trainer process: `python -m worker.trainer <workdir>`. Knows no database and no broker.

Reads the supervisor's request, trains, and leaves the exported model in `<workdir>/out`. Besides
the messages of `worker.child` it sends

    log         a line for the job's events
    cache       an image cache that other jobs can use
    checkpoint  a resumable state, safely on disk
    epoch       the figures of a finished epoch
"""

import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from core.clock import monotonic_s
from core.errors import AppError, InvalidError
from core.ml.data.manifest import load_manifest
from core.ml.export.bundle import save_bundle
from core.ml.export.card import build_card
from core.ml.training.campaign import CampaignResult, Stage, run_campaign
from core.ml.training.checkpoint import CheckpointMismatchError
from core.ml.training.determinism import make_deterministic
from core.ml.training.loop import TrainingStoppedError, TrainResult
from core.ml.training.run_state import EpochMetrics
from worker.artifacts import write_artifacts
from worker.build import Training, build_training
from worker.child import listen_for_stop, read_request, send, send_failure

_PROGRESS_INTERVAL_S = 0.5
_LIBRARIES = ("torch", "timm", "numpy", "pillow", "safetensors")


class Reporter:
    """Watches a campaign for the supervisor (`core.ml.training.campaign.CampaignObserver`)."""

    def __init__(
        self, *, outbox: Path, stop: threading.Event, checkpoint_interval_s: float
    ) -> None:
        """Start the clocks.

        Args:
            outbox: where checkpoints lie until the supervisor has stored them.
            stop: set when the supervisor asks to hand the job back.
            checkpoint_interval_s: least time between two checkpoints; 0 makes one after every step.
        """
        self._outbox = outbox
        self._stop = stop
        self._checkpoint_interval_s = checkpoint_interval_s
        self._started_s = monotonic_s()
        self._first_step: int | None = None
        self._checkpoint_s = self._started_s
        self._progress_s = 0.0
        self._stage: Stage | None = None
        self._last_epoch: dict[str, Any] = {}
        self._last_step: dict[str, Any] = {}
        outbox.mkdir(exist_ok=True)

    def on_stage(self, stage: Stage) -> None:
        """Say in the log which run begins, where there are several."""
        is_first = self._stage is None
        self._stage = stage
        self._last_epoch = {}
        if not (is_first and stage.is_main):
            send({"type": "log", "message": f"{stage.name} begins", "data": {"run": stage.name}})

    def on_note(self, message: str, data: dict[str, Any]) -> None:
        """Pass a sentence on to the job's log."""
        send({"type": "log", "message": message, "data": data})

    def on_step(self, step: int, total_steps: int) -> None:
        """Send progress, at most twice a second."""
        now_s = monotonic_s()
        if self._first_step is None:
            self._first_step, self._started_s = step, now_s
        if now_s - self._progress_s < _PROGRESS_INTERVAL_S and step < total_steps:
            return
        self._progress_s = now_s
        done = step - self._first_step
        eta_s = (now_s - self._started_s) / done * (total_steps - step) if done else None
        assert self._stage is not None, "a run begins before its steps"
        step_of_run = step - self._stage.steps_before
        epoch = (step_of_run - 1) // self._stage.steps_per_epoch + 1
        self._last_step = {
            "run": self._stage.name,
            # The epoch that is being worked on, from 1, as people count.
            "epoch": min(epoch, self._stage.total_epochs),
            "total_epochs": self._stage.total_epochs,
            "step": step,
            "total_steps": total_steps,
            "percent": round(100 * step / total_steps, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }
        self._send_progress("training")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Send the figures of an epoch of the main run, and show them with the next progress."""
        figures = {**metrics.to_json(), "epoch": metrics.epoch + 1}
        shown = ("train_loss", "val_accuracy", "teacher_val_accuracy")
        self._last_epoch = {name: figures[name] for name in shown}
        if self._stage is not None and self._stage.is_main:
            send({"type": "epoch", "metrics": figures})

    def on_export(self) -> None:
        """Send that training is over; where it stood stays in the job's progress for good."""
        self._send_progress("exporting")

    def _send_progress(self, phase: str) -> None:
        send({"type": "progress", "phase": phase, **self._last_step, **self._last_epoch})

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Offer a checkpoint to the supervisor, which removes it from the outbox."""
        self._checkpoint_s = monotonic_s()
        # A second name for the file: the run's own folder keeps only the newest two.
        offered = self._outbox / path.name
        offered.unlink(missing_ok=True)
        os.link(path, offered)
        send({"type": "checkpoint", "path": str(offered), "step": step})

    def should_checkpoint(self) -> bool:
        """Say whether the interval has passed."""
        return monotonic_s() - self._checkpoint_s >= self._checkpoint_interval_s

    def should_stop(self) -> bool:
        """Say whether the supervisor asked to hand the job back."""
        return self._stop.is_set()


def run(request: dict[str, Any], workdir: Path, stop: threading.Event) -> None:
    """Train the requested job and send how it ended.

    Raises:
        AppError: for a reason that another attempt would meet again.
        TrainingStoppedError: the supervisor asked; the checkpoint is offered.
    """
    send({"type": "progress", "phase": "preparing"})
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    training = build_training(request, workdir, on_decoded=_DecodeProgress())
    for cache in training.made_caches:
        send({"type": "cache", "path": str(cache.path), "image_px": cache.image_px})
    make_deterministic(training.device)
    checkpoints = workdir / "checkpoints"
    _restore_checkpoint(request, checkpoints)
    precision = training.campaign.plan.precision.value
    reporter = Reporter(
        outbox=workdir / "outbox",
        stop=stop,
        checkpoint_interval_s=request["checkpoint_interval_s"],
    )
    reporter.on_note(
        f"training on {training.device} in {precision}",
        {"device": str(training.device), "precision": precision},
    )
    try:
        result = _train(training, reporter, checkpoints)
    except CheckpointMismatchError:
        # For one, the precision `auto` means something else on this machine than on the last one.
        shutil.rmtree(checkpoints)
        message = "the checkpoint was made on other hardware or by another release; starting over"
        send({"type": "log", "level": "warning", "message": message})
        result = _train(training, reporter, checkpoints)
    write_artifacts(
        workdir / "out",
        training=training,
        result=result.main,
        baseline=result.baseline,
        manifest=load_manifest(Path(request["dataset"]["manifest"])),
        figures=request["spec"].get("figures", []),
        seed=result.plan.seed,
    )
    reporter.on_export()
    metrics = _export(request, training, result, workdir / "out")
    send({"type": "done", "metrics": metrics})


def _train(training: Training, reporter: Reporter, checkpoints: Path) -> CampaignResult:
    return run_campaign(
        training.campaign,
        training.data,
        student=training.student,
        teacher=training.teacher,
        device=training.device,
        observer=reporter,
        checkpoint_dir=checkpoints,
    )


class _DecodeProgress:
    """Sends how far the making of an image cache is, at most twice a second."""

    def __init__(self) -> None:
        self._sent_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        if monotonic_s() - self._sent_s >= _PROGRESS_INTERVAL_S:
            self._sent_s = monotonic_s()
            send({"type": "progress", "phase": "preparing", "images": done, "of": total})


def _restore_checkpoint(request: dict[str, Any], folder: Path) -> None:
    """Put the checkpoint of the attempt before where the run looks for it."""
    folder.mkdir(exist_ok=True)
    if request["checkpoint"] is None:
        return
    step = request["checkpoint_step"]
    shutil.copyfile(request["checkpoint"], folder / f"checkpoint-{step:09d}.safetensors")
    send({"type": "log", "message": f"resuming after step {step}", "data": {"step": step}})


def _export(
    request: dict[str, Any], training: Training, result: CampaignResult, out: Path
) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    metrics = build_metrics(result.main) | dict(result.summary)
    teacher = training.teacher
    bundle = save_bundle(
        out,
        result.main.student,
        classes=list(training.classes),
        recipe=result.plan.to_json(),
        metrics=metrics,
        versions=library_versions(),
        teacher=None
        if teacher is None
        else {"name": teacher.name, "weights_sha256": teacher.weights_sha256},
    )
    (out / "README.md").write_text(build_card(request["name"], bundle.config))
    return metrics


def build_metrics(result: TrainResult) -> dict[str, Any]:
    """Return the figures that are published with a model.

    Accuracies are shares from 0 to 1; epochs count from 1, as everywhere outside of the ML code.
    """
    splits = {
        "val": result.val,
        "teacher_val": result.teacher_val,
        "test": result.test,
        "teacher_test": result.teacher_test,
    }
    metrics: dict[str, Any] = {"best_epoch": result.best_epoch + 1, "steps": result.steps}
    for name, evaluation in splits.items():
        metrics[f"{name}_accuracy"] = evaluation and evaluation.accuracy
        metrics[f"{name}_loss"] = evaluation and evaluation.loss
    metrics["test_images"] = result.test and result.test.images
    metrics["trainable_parameters"] = {
        role: sum(parameter.numel() for parameter in model.trainable_parameters().values())
        for role, model in (("student", result.student), ("teacher", result.teacher))
        if model is not None
    }
    return metrics


def library_versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **versions}


def main() -> int:
    """Run the request of the working folder named on the command line."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    workdir = Path(sys.argv[1])
    stop = listen_for_stop()
    try:
        run(read_request(workdir), workdir, stop)
    except TrainingStoppedError:
        send({"type": "stopped"})
    except AppError as error:
        send_failure(error.code, error.message, user=isinstance(error, InvalidError))
    except torch.OutOfMemoryError as error:
        message = (
            "the GPU has too little free memory for this job; lower hyperparameters.batch_size or "
            f"take a smaller pair ({error})"
        )
        send_failure("out_of_memory", message, user=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
