"""One run: from a job to its row."""

import platform
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import timm
import torch

from benchmarks.miniature.jobs import Job
from benchmarks.miniature.methods import get_method
from benchmarks.miniature.probe import fit_probe
from benchmarks.miniature.rows import Row
from benchmarks.miniature.suite import Size, build_task
from benchmarks.tasks import U8, Task
from core.catalog.methods import MethodType
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_precision
from core.ml.data.preprocess import resize_image
from core.ml.training.evaluate import Evaluation
from core.ml.training.loop import DivergedError, train
from core.ml.training.observer import SilentObserver
from core.ml.training.plan import build_plan
from core.ml.training.resident import ResidentData, ResidentSplit, build_split


class _Observer(SilentObserver):
    """Stops a training run when the benchmark is stopped."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def should_stop(self) -> bool:
        return self._should_stop()


def measure(job: Job, *, cifar: Path | None, should_stop: Callable[[], bool]) -> Row:
    """Run a job and return its row.

    Accuracies are shares in 0..1, `best_epoch` counts from 1. A run that diverged has no accuracy
    and says so in `error`.

    Raises:
        TrainingStoppedError: `should_stop` said so.
    """
    started_s = time.process_time()
    settings = job.settings
    # Every task has a test split; a selection row draws one image of it and does not look at it.
    counts = Size(settings.train, settings.val, max(settings.test, 1), epochs=0, batch_size=0)
    task = build_task(job.task, job.seed, counts, cifar)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if get_method(job.method).placement is None:
        # Not the shared network, which training has cast to its own precision.
        figures = fit_probe(load_backbone(settings.student), task, device)
    else:
        figures = _train(job, task, device, should_stop)
    return {
        **job.to_json(),
        **figures,
        "data_sha256": task.sha256(),
        "device": device.type,
        "precision": resolve_precision("auto", device).value,
        "versions": _versions(),
        "cpu_s": round(time.process_time() - started_s, 2),
    }


def _train(
    job: Job, task: Task, device: torch.device, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    settings, method = job.settings, get_method(job.method)
    assert settings.hidden_dim is not None
    assert settings.learning_rate is not None
    assert settings.weight_decay is not None
    student = _load(settings.student)
    teacher = None if settings.teacher is None else _load(settings.teacher)
    options: dict[str, Any] = {}
    if method.loss is not None:
        options = {"loss": method.loss, "loss_weight": settings.loss_weight}
    if settings.temperature is not None:
        options["temperature"] = settings.temperature
    if settings.scale is not None:
        options["scale"] = settings.scale
    plan = build_plan(
        method=MethodType.ADAPTER if teacher is None else MethodType.IDAT,
        kind=method.kind,
        hidden_dim=settings.hidden_dim,
        num_classes=len(task.classes),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        precision=resolve_precision("auto", device),
        seed=job.seed,
        **options,
    )
    data = ResidentData(
        train=_split(task, "train", student, teacher, device),
        val=_split(task, "val", student, teacher, device),
        test=_split(task, "test", student, teacher, device) if settings.test else None,
        fingerprint=task.name,
    )
    try:
        result = train(
            plan,
            data,
            student=student,
            teacher=teacher,
            device=device,
            observer=_Observer(should_stop),
        )
    except DivergedError as error:
        return {"error": error.message}
    return {
        **_figures("val", result.val),
        **_figures("test", result.test),
        **_figures("teacher_val", result.teacher_val),
        **_figures("teacher_test", result.teacher_test),
        "best_epoch": result.best_epoch + 1,
        "val_history": [epoch.val_accuracy for epoch in result.history],
    }


def _figures(name: str, evaluation: Evaluation | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    return {name: evaluation.accuracy, f"{name}_loss": evaluation.loss}


@lru_cache(maxsize=2)
def _load(name: str) -> LoadedBackbone:
    """Return a frozen network; equal names give one object, as a pair of equals wants it."""
    return load_backbone(name)


def _split(
    task: Task,
    split: str,
    student: LoadedBackbone,
    teacher: LoadedBackbone | None,
    device: torch.device,
) -> ResidentSplit:
    images = resize_images(task.images[split], student.image_px)
    others: U8 | None = None
    if teacher is not None:
        same = teacher.image_px == student.image_px
        others = images if same else resize_images(task.images[split], teacher.image_px)
    return build_split(images, task.labels[split], device=device, teacher_images=others)


def resize_images(images: U8, image_px: int) -> U8:
    """Return the images at a network's size, resized like everywhere in the service."""
    return np.stack([resize_image(image, image_px) for image in images])


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }
