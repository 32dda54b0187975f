"""What a run has reached so far, and its way into a checkpoint and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core.ml.training.checkpoint import Snapshot
from core.ml.training.evaluate import Evaluation
from core.ml.training.step import LOSS_NAMES, Trainee

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class EpochMetrics:
    """The figures of one finished epoch.

    Attributes:
        epoch: from 0.
        lr: its learning rate.
        train_loss: the whole loss, mean over the images of the epoch.
        ce_student: the student's cross-entropy, likewise.
        ce_teacher: the teacher's; None without a teacher.
        distillation: the distillation loss before its weight; None without a teacher.
        val_accuracy: of the student on the validation split, 0 to 1; None without one.
        val_loss: the student's cross-entropy there.
        teacher_val_accuracy: of the teacher.
        teacher_val_loss: of the teacher.
        images_per_s: training speed, evaluation left out.
    """

    epoch: int
    lr: float
    train_loss: float
    ce_student: float
    ce_teacher: float | None
    distillation: float | None
    val_accuracy: float | None
    val_loss: float | None
    teacher_val_accuracy: float | None
    teacher_val_loss: float | None
    images_per_s: float

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class BestEpoch:
    """The epoch that will be exported.

    Attributes:
        epoch: from 0.
        val: the student's figures on the validation split; None without one.
        teacher_val: the teacher's.
        weights: adapters and heads by `role.name`, as they were after it.
    """

    epoch: int
    val: Evaluation | None
    teacher_val: Evaluation | None
    weights: dict[str, Tensor]


@dataclass(eq=False)
class RunState:
    """Everything that a resumed run must have back.

    Attributes:
        trainees: the models that learn, student first.
        optimizer: AdamW over all of them.
        loss_sums: float64 (5,), the sums over this epoch's images of `LOSS_NAMES`, and how many
            images.
        bridges: what the distillation term learns; trained and kept like the rest, not exported.
        step: steps taken.
        epochs_done: epochs trained and evaluated.
        best: the best epoch so far.
        history: the figures of every finished epoch.
    """

    trainees: Sequence[Trainee]
    optimizer: torch.optim.Optimizer
    loss_sums: Tensor
    bridges: Mapping[str, nn.Parameter] = field(default_factory=dict)
    step: int = 0
    epochs_done: int = 0
    best: BestEpoch | None = None
    history: list[EpochMetrics] = field(default_factory=list)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return every trainable tensor as `role.name`, or `distillation.name`."""
        parameters = {
            f"{trainee.role}.{name}": parameter
            for trainee in self.trainees
            for name, parameter in trainee.model.trainable_parameters().items()
        }
        return parameters | {f"distillation.{name}": p for name, p in self.bridges.items()}

    def copy_weights(self) -> dict[str, Tensor]:
        """Return copies of every trainable tensor as `role.name`."""
        return {name: p.detach().clone() for name, p in self.parameters().items()}

    def snapshot(self) -> Snapshot:
        """Return everything as tensors and plain values."""
        parameters = self.parameters()
        tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in parameters.items()}
        for name, parameter in parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{moment}"] = value
        tensors["loss_sums"] = self.loss_sums
        values: dict[str, object] = {
            "epochs_done": self.epochs_done,
            "history": [metrics.to_json() for metrics in self.history],
        }
        if self.best is not None:
            tensors |= {f"best.{name}": value for name, value in self.best.weights.items()}
            values["best"] = {
                "epoch": self.best.epoch,
                "val": self.best.val and dataclasses.asdict(self.best.val),
                "teacher_val": self.best.teacher_val and dataclasses.asdict(self.best.teacher_val),
            }
        return Snapshot(step=self.step, tensors=tensors, values=values)

    def restore(self, snapshot: Snapshot) -> None:
        """Take everything back; the inverse of `snapshot`."""
        tensors, values = snapshot.tensors, snapshot.values
        parameters = self.parameters()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weights.{name}"])
                keys = {moment: f"optimizer.{name}.{moment}" for moment in _MOMENTS}
                if keys["step"] in tensors:
                    self.optimizer.state[parameter] = {
                        moment: tensors[key].to(parameter.device) for moment, key in keys.items()
                    }
            self.loss_sums.copy_(tensors["loss_sums"])
        self.step = snapshot.step
        self.epochs_done = values["epochs_done"]
        self.history = [EpochMetrics(**metrics) for metrics in values["history"]]
        best = values.get("best")
        self.best = best and BestEpoch(
            epoch=best["epoch"],
            val=best["val"] and Evaluation(**best["val"]),
            teacher_val=best["teacher_val"] and Evaluation(**best["teacher_val"]),
            weights={
                name: tensors[f"best.{name}"].to(parameter.device)
                for name, parameter in parameters.items()
            },
        )

    def add_losses(self, losses: Tensor, images: int) -> None:
        """Add one step's mean losses (4,) without waiting for the device."""
        self.loss_sums[: len(LOSS_NAMES)].add_(losses, alpha=images)
        self.loss_sums[len(LOSS_NAMES)].add_(images)


def build_loss_sums(device: torch.device) -> Tensor:
    """Return the zeros that an epoch starts from."""
    return torch.zeros(len(LOSS_NAMES) + 1, dtype=torch.float64, device=device)
