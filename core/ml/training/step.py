"""One training step: both forwards, one loss, one backward, one optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.drop_path import sample_drop_path
from core.ml.backbones.normalise import normalise_images
from core.ml.losses.registry import build_distillation_loss
from core.ml.training.plan import TrainPlan
from core.ml.training.resident import ResidentSplit
from core.ml.training.seeds import build_generator

#: What a step reports, in this order; the teacher's two are 0 without a teacher.
LOSS_NAMES = ("loss", "ce_student", "ce_teacher", "distillation")


@dataclass(frozen=True, eq=False)
class Trainee:
    """One of the two models of a run.

    Attributes:
        role: `student` or `teacher`.
        model: what learns.
    """

    role: str
    model: AdaptedModel

    def logits(self, images: Tensor, plan: TrainPlan, *, epoch: int, step: int) -> Tensor:
        """Return logits (batch, classes) of uint8 images, with this step's stochastic depth."""
        backbone = self.model.backbone
        keep = None
        if plan.drop_path > 0:
            generator = build_generator(plan.seed, f"drop_path/{self.role}", epoch=epoch, step=step)
            keep = sample_drop_path(
                plan.drop_path, len(backbone.blocks), images.shape[0], generator
            )
        if keep is not None:
            keep = keep.to(images.device, non_blocking=True)
        logits: Tensor = self.model(normalise_images(images, backbone), keep)
        return logits


class TrainStep:
    """L = CE(student) + CE(teacher) + weight * D(student, teacher), and its gradient (Eq. 5).

    The released code runs two backwards through the same graphs, one for each optimizer. One is the
    same maths: the student's gradient is equal, the teacher's, there accumulated twice, is half,
    a factor that AdamW divides out.
    """

    def __init__(
        self,
        plan: TrainPlan,
        student: Trainee,
        teacher: Trainee | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._plan = plan
        self._student = student
        self._teacher = teacher
        self._optimizer = optimizer
        self._distill: Callable[[Tensor, Tensor], Tensor] = build_distillation_loss(
            plan.loss, temperature=plan.temperature
        )

    def __call__(self, split: ResidentSplit, rows: Tensor, *, epoch: int, step: int) -> Tensor:
        """Learn from some images.

        Args:
            split: the training split.
            rows: int64 (batch,), which images, on the split's device.
            epoch: from 0, names the random draws together with `step`.
            step: within the run, from 0.

        Returns:
            The `LOSS_NAMES` as one fp32 tensor (4,), not yet waited for.
        """
        losses = self.losses(split, rows, epoch=epoch, step=step)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses[0])
        self._optimizer.step()
        return torch.stack(losses).detach()

    def losses(
        self, split: ResidentSplit, rows: Tensor, *, epoch: int, step: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the differentiable `LOSS_NAMES` of some images."""
        labels = split.labels.index_select(0, rows)
        images = split.student_images.index_select(0, rows)
        student = self._student.logits(images, self._plan, epoch=epoch, step=step)
        ce_student = functional.cross_entropy(student, labels)
        if self._teacher is None:
            none = torch.zeros((), device=rows.device)
            return ce_student, ce_student, none, none
        assert split.teacher_images is not None, "checked when the run starts"
        if split.teacher_images is not split.student_images:
            images = split.teacher_images.index_select(0, rows)
        teacher = self._teacher.logits(images, self._plan, epoch=epoch, step=step)
        ce_teacher = functional.cross_entropy(teacher, labels)
        distillation = self._distill(student, teacher)
        total = ce_student + ce_teacher + self._plan.loss_weight * distillation
        return total, ce_student, ce_teacher, distillation
