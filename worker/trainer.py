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
from core.ml.training.campaign import CampaignResult, run_campaign
from core.ml.training.checkpoint import CheckpointMismatchError
from core.ml.training.determinism import make_deterministic
from core.ml.training.loop import TrainingStoppedError, TrainResult
from worker.artifacts import write_artifacts
from worker.build import Training, build_training
from worker.child import PROGRESS_INTERVAL_S, listen_for_stop, read_request, send, send_failure
from worker.reporter import Reporter

#: Into how many parts a batch is divided that a device has no room for.
_MICRO_BATCHES = 4
_LIBRARIES = ("torch", "timm", "numpy", "pillow", "safetensors")


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
    result = train_within_memory(training, reporter, checkpoints)
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


def train_within_memory(
    training: Training, reporter: Reporter, checkpoints: Path
) -> CampaignResult:
    """Train; where the device has too little memory, once more with parts of each batch.

    Raises:
        OutOfMemoryError: in small parts too.
    """
    micro_batch = max(1, training.campaign.plan.batch_size // _MICRO_BATCHES)
    try:
        return _train(training, reporter, checkpoints)
    except torch.OutOfMemoryError as error:
        first = str(error).partition("\n")[0]
    # Here, where no traceback holds the failed step's tensors any more.
    if training.device.type == "cuda":
        torch.cuda.empty_cache()
    reporter.on_note(
        f"too little memory for batches of {training.campaign.plan.batch_size}; going on from the "
        f"last checkpoint with {micro_batch} images at once, their gradients added up",
        {"micro_batch": micro_batch, "error": first},
    )
    return _train(training, reporter, checkpoints, micro_batch=micro_batch)


def _train(
    training: Training, reporter: Reporter, checkpoints: Path, *, micro_batch: int | None = None
) -> CampaignResult:
    def run() -> CampaignResult:
        return run_campaign(
            training.campaign,
            training.data,
            student=training.student,
            teacher=training.teacher,
            device=training.device,
            observer=reporter,
            checkpoint_dir=checkpoints,
            micro_batch=micro_batch,
        )

    try:
        return run()
    except CheckpointMismatchError:
        # For one, the precision `auto` means something else on this machine than on the last one.
        shutil.rmtree(checkpoints)
        message = "the checkpoint was made on other hardware or by another release; starting over"
        send({"type": "log", "level": "warning", "message": message})
    return run()


class _DecodeProgress:
    """Sends how far the making of an image cache is, at most twice a second."""

    def __init__(self) -> None:
        self._sent_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        if monotonic_s() - self._sent_s >= PROGRESS_INTERVAL_S:
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
        preprocess_version=training.preprocess_version,
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


def describe_memory() -> dict[str, Any]:
    """Return what a GPU's memory holds, in bytes; empty without one."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return {"free_bytes": free, "total_bytes": total, "peak_allocated_bytes": peak}


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
            "the device has too little free memory for this job, in parts of a batch too; take a "
            f"smaller pair ({str(error).partition(chr(10))[0]})"
        )
        send_failure("out_of_memory", message, user=False, data=describe_memory())
    return 0


if __name__ == "__main__":
    sys.exit(main())
