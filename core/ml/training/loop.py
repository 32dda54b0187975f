"""The training run: epochs of steps, the choice of the best one, one look at the test split."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.catalog.methods import MethodType
from core.clock import monotonic_s
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.load import LoadedBackbone
from core.ml.losses.distillation import Distillation
from core.ml.training.checkpoint import CheckpointFolder, Checkpoints
from core.ml.training.collapse import find_collapse, label_entropy
from core.ml.training.evaluate import BATCH_IMAGES, Evaluation, evaluate
from core.ml.training.observer import SilentObserver, TrainObserver
from core.ml.training.optim import build_optimizer, set_learning_rate
from core.ml.training.plan import TrainPlan
from core.ml.training.resident import ResidentData, ResidentSplit
from core.ml.training.run_state import BestEpoch, EpochMetrics, RunState, build_loss_sums
from core.ml.training.schedule import learning_rate
from core.ml.training.seeds import build_generator, derive_seed
from core.ml.training.step import Trainee, TrainStep


class DivergedError(InvalidError):
    """The loss or a weight is no longer a finite number."""

    code = "diverged"


class CollapsedError(DivergedError):
    """The model gives the same answer for every image and no longer learns."""

    code = "collapsed"


class TrainingStoppedError(Exception):
    """The observer asked to stop; the state is in the checkpoint folder, if there is one."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        student: the student with the weights of the best epoch.
        teacher: the teacher with the weights of the same epoch; None without one.
        best_epoch: from 0.
        val: the student's figures on the validation split at that epoch; None without one.
        teacher_val: the teacher's.
        test: the student's figures on the test split, looked at once; None without one.
        teacher_test: the teacher's.
        history: the figures of every epoch.
        steps: how many were taken.
        collapsed_epoch: by which the student had stopped learning, see `collapse`; None if it
            learnt to the end.
    """

    student: AdaptedModel
    teacher: AdaptedModel | None
    best_epoch: int
    val: Evaluation | None
    teacher_val: Evaluation | None
    test: Evaluation | None
    teacher_test: Evaluation | None
    history: list[EpochMetrics]
    steps: int
    collapsed_epoch: int | None = None


def train(
    plan: TrainPlan,
    data: ResidentData,
    *,
    student: LoadedBackbone,
    teacher: LoadedBackbone | None,
    device: torch.device,
    observer: TrainObserver | None = None,
    checkpoint_dir: Path | None = None,
    checkpoints: Checkpoints | None = None,
    stop_on_collapse: bool = False,
    micro_batch: int | None = None,
) -> TrainResult:
    """Train to the end, from the newest checkpoint if there is one.

    The best epoch is the one with the highest validation accuracy of the student; among equals the
    one with the lower validation loss, then the earlier. Without a validation split it is the last.

    Args:
        plan: every hyperparameter.
        data: the images, on `device`.
        student: frozen; placed on `device` in the plan's precision, otherwise left as it is.
        teacher: likewise; the same object as `student` where both have the same backbone; None
            exactly if the plan's method has no teacher.
        device: where to train.
        observer: watches and may interrupt.
        checkpoint_dir: where checkpoints are kept; None keeps none.
        checkpoints: keeps them instead of a folder, for runs that are part of something larger.
        stop_on_collapse: whether to give up as soon as the student has stopped learning.
        micro_batch: most images that are on the network at once, see `TrainStep`; for devices with
            too little memory for a batch. It is no part of the plan: the mathematics is the same.

    Raises:
        DivergedError: noticed at the end of an epoch.
        CollapsedError: likewise, if asked for.
        TrainingStoppedError: the observer asked for it.
        CheckpointMismatchError: the folder holds another run.
        InvalidError: plan, data and backbones do not belong together.
    """
    _check(plan, data, student, teacher)
    for backbone in {id(b): b for b in (student, teacher) if b is not None}.values():
        backbone.place(device=device, precision=plan.precision)
    if checkpoint_dir is not None:
        names = [b.weights_sha256 for b in (student, teacher) if b is not None]
        fingerprint = plan.fingerprint(data.fingerprint, *names)
        checkpoints = CheckpointFolder(checkpoint_dir, fingerprint)
    run = _Run(
        plan,
        data,
        student=student,
        teacher=teacher,
        observer=observer or SilentObserver(),
        checkpoints=checkpoints,
        stop_on_collapse=stop_on_collapse,
        micro_batch=micro_batch,
    )
    return run.to_end()


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        plan: TrainPlan,
        data: ResidentData,
        *,
        student: LoadedBackbone,
        teacher: LoadedBackbone | None,
        observer: TrainObserver,
        checkpoints: Checkpoints | None,
        stop_on_collapse: bool,
        micro_batch: int | None,
    ) -> None:
        self.plan, self.data, self.observer = plan, data, observer
        self.device = data.train.labels.device
        self.trainees = [
            Trainee(role, build_trainee_model(plan, role, backbone))
            for role, backbone in (("student", student), ("teacher", teacher))
            if backbone is not None
        ]
        distillation = None
        if teacher is not None:
            seed = derive_seed(plan.seed, "init/distillation")
            distillation = Distillation(plan.distillation, student, teacher, seed=seed)
        bridges = {} if distillation is None else dict(distillation.named_parameters())
        optimizer = build_optimizer(
            [*(trainee.model.trainable_parameters() for trainee in self.trainees), bridges],
            weight_decay=plan.weight_decay,
        )
        pair = self.trainees[1] if teacher is not None else None
        self.train_step = TrainStep(
            plan, self.trainees[0], pair, distillation, optimizer, micro_batch=micro_batch
        )
        self.evaluated_at_once = min(BATCH_IMAGES, micro_batch or BATCH_IMAGES)
        self.state = RunState(self.trainees, optimizer, build_loss_sums(self.device), bridges)
        self.steps_per_epoch = plan.steps_per_epoch(len(data.train))
        self.stop_on_collapse = stop_on_collapse
        self.label_entropy = label_entropy(data.train.labels)
        self.checkpoints = checkpoints
        snapshot = checkpoints.find_latest() if checkpoints is not None else None
        if snapshot is not None:
            self.state.restore(snapshot)

    def to_end(self) -> TrainResult:
        while self.state.epochs_done < self.plan.total_epochs:
            self._run_epoch(self.state.epochs_done)
        best = self.state.best
        assert best is not None, "a run has at least one epoch"
        for trainee in self.trainees:
            prefix = f"{trainee.role}."
            trainee.model.load_adapter_state(
                {n.removeprefix(prefix): w for n, w in best.weights.items() if n.startswith(prefix)}
            )
        test = self._evaluate_all(self.data.test)
        return TrainResult(
            student=self.trainees[0].model,
            teacher=self.trainees[1].model if len(self.trainees) > 1 else None,
            best_epoch=best.epoch,
            val=best.val,
            teacher_val=best.teacher_val,
            test=test.get("student"),
            teacher_test=test.get("teacher"),
            history=self.state.history,
            steps=self.state.step,
            collapsed_epoch=self._find_collapse(),
        )

    def _run_epoch(self, epoch: int) -> None:
        """Take what is left of an epoch's steps and evaluate it."""
        plan, state = self.plan, self.state
        lr = learning_rate(
            epoch,
            peak=plan.learning_rate,
            epochs=plan.epochs,
            warmup_epochs=plan.warmup_epochs,
        )
        set_learning_rate(state.optimizer, lr)
        batches = self._batches(epoch)
        total = plan.total_epochs * self.steps_per_epoch
        started_s, images = monotonic_s(), 0
        for index in range(state.step - epoch * self.steps_per_epoch, self.steps_per_epoch):
            rows = batches[index]
            losses = self.train_step(self.data.train, rows, epoch=epoch, step=state.step)
            state.add_losses(losses, len(rows))
            images += len(rows)
            state.step += 1
            self.observer.on_step(state.step, total)
            self._interrupt()
        sums = state.loss_sums.tolist()  # the epoch's one wait for the device
        elapsed_s = max(monotonic_s() - started_s, 1e-9)
        self._finish_epoch(epoch, lr, sums, images / elapsed_s)

    def _batches(self, epoch: int) -> list[Tensor]:
        generator = build_generator(self.plan.seed, "order", epoch=epoch)
        order = torch.randperm(len(self.data.train), generator=generator).to(self.device)
        return list(torch.split(order, self.plan.batch_size))[: self.steps_per_epoch]

    def _interrupt(self) -> None:
        stop = self.observer.should_stop()
        if self.checkpoints is not None and (stop or self.observer.should_checkpoint()):
            path = self.checkpoints.save(self.state.snapshot())
            self.observer.on_checkpoint(path, self.state.step)
        if stop:
            raise TrainingStoppedError(f"stopped after {self.state.step} steps")

    def _finish_epoch(self, epoch: int, lr: float, sums: list[float], images_per_s: float) -> None:
        state = self.state
        *totals, images = sums
        loss, ce_student, ce_teacher, distillation = (total / images for total in totals)
        self._check_finite(loss, epoch, lr)
        val = self._evaluate_all(self.data.val)
        student, teacher = val.get("student"), val.get("teacher")
        paired = len(self.trainees) > 1
        metrics = EpochMetrics(
            epoch=epoch,
            lr=lr,
            train_loss=loss,
            ce_student=ce_student,
            ce_teacher=ce_teacher if paired else None,
            distillation=distillation if paired else None,
            val_accuracy=student.accuracy if student else None,
            val_loss=student.loss if student else None,
            teacher_val_accuracy=teacher.accuracy if teacher else None,
            teacher_val_loss=teacher.loss if teacher else None,
            images_per_s=images_per_s,
        )
        if state.best is None or _is_better(student, state.best.val):
            state.best = BestEpoch(epoch, student, teacher, state.copy_weights())
        state.history.append(metrics)
        state.loss_sums.zero_()
        state.epochs_done = epoch + 1
        self.observer.on_epoch(metrics)
        if self.stop_on_collapse and self._find_collapse() is not None:
            raise CollapsedError(
                f"training collapsed by epoch {epoch + 1} at learning rate "
                f"{self.plan.learning_rate:g}: the model answers the same for every image; lower "
                "learning_rate, for example to a third"
            )

    def _find_collapse(self) -> int | None:
        return find_collapse(
            [metrics.ce_student for metrics in self.state.history],
            entropy=self.label_entropy,
            num_classes=self.plan.num_classes,
            warmup_epochs=self.plan.warmup_epochs,
        )

    def _check_finite(self, loss: float, epoch: int, lr: float) -> None:
        finite = torch.stack([torch.isfinite(p).all() for p in self.state.parameters().values()])
        if torch.isfinite(torch.tensor(loss)) and bool(finite.all()):
            return
        raise DivergedError(
            f"training diverged in epoch {epoch + 1} at learning rate {lr:.3g}: the loss or a "
            "weight is not a finite number; lower learning_rate "
            f"(now {self.plan.learning_rate:g}), for example to a third"
        )

    def _evaluate_all(self, split: ResidentSplit | None) -> dict[str, Evaluation]:
        if split is None:
            return {}
        images = {"student": split.student_images, "teacher": split.teacher_images}
        evaluations = {}
        for trainee in self.trainees:
            own = images[trainee.role]
            assert own is not None, "checked when the run starts"
            evaluations[trainee.role] = evaluate(
                trainee.model, own, split.labels, at_once=self.evaluated_at_once
            )
        return evaluations


def build_trainee_model(plan: TrainPlan, role: str, backbone: LoadedBackbone) -> AdaptedModel:
    """Return the `student` or `teacher` of a run as it is before the first step."""
    seed = derive_seed(plan.seed, f"init/{role}")
    return AdaptedModel(backbone, plan.adapter_of(role), plan.num_classes, seed=seed)


def _is_better(candidate: Evaluation | None, best: Evaluation | None) -> bool:
    if candidate is None or best is None:
        return True  # no validation split: the last epoch is taken
    return (candidate.correct, -candidate.loss) > (best.correct, -best.loss)


def _check(
    plan: TrainPlan,
    data: ResidentData,
    student: LoadedBackbone,
    teacher: LoadedBackbone | None,
) -> None:
    if (teacher is not None) != (plan.method is MethodType.IDAT):
        raise InvalidError(f"method {plan.method.value} and its teacher do not go together")
    for split in (data.train, data.val, data.test):
        if split is None:
            continue
        pairs = [(student, split.student_images)]
        if teacher is not None:
            if split.teacher_images is None:
                raise InvalidError("the teacher's images are missing")
            pairs.append((teacher, split.teacher_images))
        for backbone, images in pairs:
            if images.shape[1:3] != (backbone.image_px, backbone.image_px):
                raise InvalidError(
                    f"{backbone.name} reads {backbone.image_px} px images, "
                    f"not {tuple(images.shape[1:3])}"
                )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= plan.num_classes:
            raise InvalidError(
                f"labels run from {low} to {high}, outside {plan.num_classes} classes"
            )
