"""What can be fitted on one list and measured on another; and the kind that trains adapters."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.images import ImageStore
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.watch import Console, RunWatcher, StopSignal
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.load import LoadedBackbone
from core.ml.training.checkpoint import CheckpointMismatchError
from core.ml.training.evaluate import Evaluation, evaluate
from core.ml.training.loop import train
from core.ml.training.plan import TrainPlan
from core.ml.training.resident import ResidentData, ResidentSplit, build_split

U8 = NDArray[np.uint8]
_PART = 1024
_SPARE_GPU_SHARE = 0.8


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, measured on the list that was named for it.

    Attributes:
        accuracy: the student's, 0 to 1.
        teacher_accuracy: the teacher's; None without one.
    """

    accuracy: float
    teacher_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished training run.

    Attributes:
        models: `student` and, for iDAT, `teacher`; with the weights of `best_epoch`.
        best_epoch: from 0: the most accurate on the measured list, the last where none was named.
        best: the student there; None where no list was named.
        history: every epoch on the measured list; empty where none was named.
        epochs: how many were run.
        collapsed_epoch: from 0, by which the student had stopped learning; None if it learnt.
    """

    models: Mapping[str, torch.nn.Module]
    best_epoch: int
    best: Evaluation | None
    history: tuple[EpochFigures, ...]
    epochs: int
    collapsed_epoch: int | None = None


class Learner(Protocol):
    """Fits one method to one dataset."""

    def fingerprint(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> str:
        """Return what names a fit and everything that decides it."""
        ...

    def fit(
        self, plan: TrainPlan, trained: ListName, measured: ListName | None, *, label: str
    ) -> Fit:
        """Train on one list and measure every epoch on another.

        Raises:
            DivergedError: the loss or a weight is no finite number any more.
            TrainingStoppedError: that was asked for.
        """
        ...

    def measure(self, fit: Fit, name: ListName) -> dict[str, Evaluation]:
        """Measure the models of a fit, by role, on a list.

        Raises:
            TrainingStoppedError: that was asked for.
        """
        ...

    def forget(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> None:
        """Remove what was kept to resume a fit."""
        ...


@dataclass(frozen=True, eq=False)
class Workplace:
    """What every fit on one dataset shares.

    Attributes:
        dataset: the data.
        store: decodes its images.
        device: where to compute.
        folder: for checkpoints.
        checkpoint_every_s: least time between two.
        stop: when to leave.
        console: where progress is shown.
    """

    dataset: Dataset
    store: ImageStore
    device: torch.device
    folder: Path
    checkpoint_every_s: float
    stop: StopSignal
    console: Console

    @cached_property
    def _arrays(self) -> dict[tuple[ListName, int], U8]:
        return {}

    def images(self, name: ListName, image_px: int) -> U8:
        """Return the images of a list; one array however often they are asked for."""
        key = (name, image_px)
        if key not in self._arrays:
            self._arrays[key] = self.store.load(self.dataset, name, image_px)
        return self._arrays[key]


class AdapterLearner:
    """Trains the adapters and heads of a student and, for iDAT, a teacher."""

    def __init__(
        self, place: Workplace, *, student: LoadedBackbone, teacher: LoadedBackbone | None
    ) -> None:
        """Take the frozen networks; the same object twice where both are the same network."""
        self._place = place
        self._backbones = {"student": student}
        if teacher is not None:
            self._backbones["teacher"] = teacher

    def fingerprint(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> str:
        """Return what names a fit and everything that decides it."""
        weights = [backbone.weights_sha256 for backbone in self._backbones.values()]
        return plan.fingerprint(self._name_data(trained, measured), *weights)

    def fit(
        self, plan: TrainPlan, trained: ListName, measured: ListName | None, *, label: str
    ) -> Fit:
        """Train from the newest checkpoint, if there is one."""
        place = self._place
        data = ResidentData(
            train=self._split(trained),
            val=None if measured is None else self._split(measured),
            test=None,  # measured apart, in parts that fit on any device
            fingerprint=self._name_data(trained, measured),
        )
        folder = self._folder(plan, trained, measured)

        def run() -> Fit:
            result = train(
                plan,
                data,
                student=self._backbones["student"],
                teacher=self._backbones.get("teacher"),
                device=place.device,
                observer=RunWatcher(
                    label,
                    place.stop,
                    place.console.show,
                    checkpoint_every_s=place.checkpoint_every_s,
                ),
                checkpoint_dir=folder,
            )
            models: dict[str, torch.nn.Module] = {"student": result.student}
            if result.teacher is not None:
                models["teacher"] = result.teacher
            return Fit(
                models=models,
                best_epoch=result.best_epoch,
                best=result.val,
                history=tuple(
                    EpochFigures(metrics.val_accuracy, metrics.teacher_val_accuracy)
                    for metrics in result.history
                    if metrics.val_accuracy is not None
                ),
                epochs=len(result.history),
                collapsed_epoch=result.collapsed_epoch,
            )

        try:
            return run()
        except CheckpointMismatchError:
            place.console.say(f"  {label}: its checkpoint is of another release; starting over")
            shutil.rmtree(folder)
            return run()

    def measure(self, fit: Fit, name: ListName) -> dict[str, Evaluation]:
        """Measure the models part by part: a test list may be larger than the device's memory."""
        place = self._place
        labels = place.dataset.lists[name].labels()
        parts: dict[str, list[Evaluation]] = {role: [] for role in fit.models}
        for start in range(0, len(labels), _PART):
            place.stop.check()
            place.console.show(f"  testing: {start} of {len(labels)} images")
            chunk = slice(start, start + _PART)
            wanted = torch.tensor(labels[chunk], device=place.device)
            for role, model in fit.models.items():
                assert isinstance(model, AdaptedModel)
                images = place.images(name, model.backbone.image_px)[chunk]
                on_device = torch.tensor(images, device=place.device)
                parts[role].append(evaluate(model, on_device, wanted))
        return {role: add_evaluations(found) for role, found in parts.items()}

    def forget(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> None:
        """Remove the checkpoints of a fit."""
        shutil.rmtree(self._folder(plan, trained, measured), ignore_errors=True)

    def _folder(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> Path:
        return self._place.folder / self.fingerprint(plan, trained, measured)[:32]

    def _name_data(self, trained: ListName, measured: ListName | None) -> str:
        return f"{self._place.dataset.digest}/{trained.value}/{measured and measured.value}"

    def _split(self, name: ListName) -> ResidentSplit:
        place = self._place
        student = place.images(name, self._backbones["student"].image_px)
        teacher = None
        if "teacher" in self._backbones:
            teacher = place.images(name, self._backbones["teacher"].image_px)
        self._check_memory(name, student.nbytes)
        labels = place.dataset.lists[name].labels()
        return build_split(student, labels, device=place.device, teacher_images=teacher)

    def _check_memory(self, name: ListName, needed: int) -> None:
        if self._place.device.type != "cuda":
            return
        free, _ = torch.cuda.mem_get_info(self._place.device)
        if needed > free * _SPARE_GPU_SHARE:
            raise InvalidError(
                f"the images of {self._place.dataset.shown(name)} take {needed / 1e9:.1f} GB, "
                f"the device has {free / 1e9:.1f} GB free; the mode 'strict' needs none of it for "
                "the test list, and --device cpu reads it from the disk"
            )


def add_evaluations(parts: list[Evaluation]) -> Evaluation:
    """Return the figures of a whole list from those of its parts."""
    images = sum(part.images for part in parts)
    return Evaluation(
        images=images,
        correct=sum(part.correct for part in parts),
        loss=sum(part.loss * part.images for part in parts) / images,
    )
