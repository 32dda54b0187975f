"""One training step: both forwards, one loss, one backward, one optimizer step."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.ml.adapters.adapted import AdaptedModel, Forward
from core.ml.adapters.drop_path import sample_drop_path
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.normalise import normalise_images
from core.ml.losses.distillation import Distillation
from core.ml.training.plan import TrainPlan
from core.ml.training.resident import ResidentSplit
from core.ml.training.seeds import build_generator, derive_seed

#: What a step reports, in this order; the teacher's two are 0 without a teacher.
LOSS_NAMES = ("loss", "ce_student", "ce_teacher", "distillation")


@dataclass(frozen=True)
class Part:
    """Which images of a batch are run at once.

    Attributes:
        start: how many are before them.
        batch: how many the whole batch has.
    """

    start: int
    batch: int


@dataclass(frozen=True, eq=False)
class Trainee:
    """One of the two models of a run.

    Attributes:
        role: `student` or `teacher`.
        model: what learns.
    """

    role: str
    model: AdaptedModel

    def forward(
        self,
        images: Tensor,
        plan: TrainPlan,
        *,
        epoch: int,
        step: int,
        layers: tuple[int, ...] = (),
        all_tokens: bool = False,
        part: Part | None = None,
    ) -> tuple[Forward, Tensor | None]:
        """Run uint8 images through the model, with this step's random draws.

        Args:
            images: (batch, px, px, 3), or a part of the batch.
            plan: of the run.
            epoch: from 0.
            step: within the run, from 0.
            layers: blocks whose outputs are wanted.
            all_tokens: whether every token of them is.
            part: which part of the batch the images are; None for all of it.

        Returns:
            The outputs, and what the adapter's kind adds to its model's loss (None for nearly
            all): the symmetric KL divergence between this and a second draw.
        """
        method = ADAPTER_METHODS[self.model.spec.kind]
        normalised = normalise_images(images, self.model.backbone)
        draws = None
        if method.is_random:
            purpose = f"draws/{self.role}" + (f"/{part.start}" if part else "")
            seed = derive_seed(plan.seed, purpose, epoch=epoch, step=step)
            draws = torch.Generator(device=images.device).manual_seed(seed)
        first = self.model.forward_with_hidden(
            normalised,
            self._keep(plan, images, "drop_path", part, epoch=epoch, step=step),
            draws,
            layers=layers,
            all_tokens=all_tokens,
        )
        if method.consistency_weight == 0.0:
            return first, None
        keep = self._keep(plan, images, "second_drop_path", part, epoch=epoch, step=step)
        second = self.model(normalised, keep, draws)
        return first, method.consistency_weight * symmetric_kl(first.logits, second)

    def _keep(
        self,
        plan: TrainPlan,
        images: Tensor,
        purpose: str,
        part: Part | None,
        *,
        epoch: int,
        step: int,
    ) -> Tensor | None:
        if plan.drop_path == 0:
            return None
        generator = build_generator(plan.seed, f"{purpose}/{self.role}", epoch=epoch, step=step)
        depth = len(self.model.backbone.blocks)
        whole = images.shape[0] if part is None else part.batch
        keep = sample_drop_path(plan.drop_path, depth, whole, generator)
        if keep is None:
            return None
        if part is not None:  # the same masks as for the whole batch at once
            keep = keep[:, part.start : part.start + images.shape[0]]
        return keep.to(images.device, non_blocking=True)


class TrainStep:
    """L = CE(student) + CE(teacher) + weight * D(student, teacher), and its gradient (Eq. 5).

    The released code runs two backwards through the same graphs, one for each optimizer. One is the
    same maths: the student's gradient is equal, the teacher's, there accumulated twice, is half,
    a factor that AdamW divides out.

    Args:
        plan: every hyperparameter.
        student: what is wanted in the end.
        teacher: learns beside it; None for plain adapter-tuning.
        distillation: what ties them; None exactly without a teacher.
        optimizer: over everything that learns.
        micro_batch: most images that are run at once; a larger batch is run in parts whose
            gradients are added up. Every term of the loss is a mean over images, so it is the same
            step, up to rounding and, for kinds that draw at random, to other draws.
    """

    def __init__(
        self,
        plan: TrainPlan,
        student: Trainee,
        teacher: Trainee | None,
        distillation: Distillation | None,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batch: int | None = None,
    ) -> None:
        self._micro_batch = micro_batch
        self._plan = plan
        self._student = student
        self._teacher = teacher
        self._distillation = distillation
        self._optimizer = optimizer

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
        batch, micro = len(rows), self._micro_batch
        self._optimizer.zero_grad(set_to_none=True)
        if micro is None or batch <= micro:
            losses = self.losses(split, rows, epoch=epoch, step=step)
            torch.autograd.backward(losses[0])
            self._optimizer.step()
            return torch.stack(losses).detach()
        sums = torch.zeros(len(LOSS_NAMES), device=rows.device)
        for start in range(0, batch, micro):
            few = rows[start : start + micro]
            losses = self.losses(split, few, epoch=epoch, step=step, part=Part(start, batch))
            share = len(few) / batch
            torch.autograd.backward(losses[0] * share)
            sums += torch.stack(losses).detach() * share
        self._optimizer.step()
        return sums

    def losses(
        self,
        split: ResidentSplit,
        rows: Tensor,
        *,
        epoch: int,
        step: int,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the differentiable `LOSS_NAMES` of some images, or of a part of a batch."""
        labels = split.labels.index_select(0, rows)
        images = split.student_images.index_select(0, rows)
        distillation = self._distillation
        student, extra = self._student.forward(
            images,
            self._plan,
            epoch=epoch,
            step=step,
            layers=distillation.student_layers if distillation else (),
            all_tokens=distillation is not None and distillation.all_tokens,
            part=part,
        )
        ce_student = functional.cross_entropy(student.logits, labels)
        total = ce_student if extra is None else ce_student + extra
        if self._teacher is None or distillation is None:
            none = torch.zeros((), device=rows.device)
            return total, ce_student, none, none
        assert split.teacher_images is not None, "checked when the run starts"
        if split.teacher_images is not split.student_images:
            images = split.teacher_images.index_select(0, rows)
        teacher, extra = self._teacher.forward(
            images,
            self._plan,
            epoch=epoch,
            step=step,
            layers=distillation.teacher_layers,
            all_tokens=distillation.all_tokens,
            part=part,
        )
        ce_teacher = functional.cross_entropy(teacher.logits, labels)
        distance = distillation(student, teacher)
        total = total + ce_teacher + self._plan.distillation.weight * distance
        if extra is not None:
            total = total + extra
        return total, ce_student, ce_teacher, distance


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Return (KL(p ‖ q) + KL(q ‖ p)) / 2 of two logits (batch, classes), mean over the batch."""
    p, q = functional.log_softmax(first, dim=-1), functional.log_softmax(second, dim=-1)
    forward = functional.kl_div(q, p, reduction="batchmean", log_target=True)
    backward = functional.kl_div(p, q, reduction="batchmean", log_target=True)
    return (forward + backward) / 2
