"""The plan of a training run: what a job asked for with every default filled in."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision, Recipe
from core.errors import FieldError, InvalidError
from core.ml.adapters.base import AdapterSpec
from core.ml.losses.spec import DistillationSpec

_OFFICIAL_EPOCHS = 100
_OFFICIAL_WARMUP_EPOCHS = 10
_OFFICIAL_COOLDOWN_EPOCHS = 10
_OFFICIAL_BATCH_SIZE = 64
_WARMUP_SHARE = 10


class InvalidPlanError(InvalidError):
    """A hyperparameter is out of range, or two of them contradict each other."""

    code = "invalid_hyperparameters"


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that decides the result of a run, but images and backbone weights.

    Attributes:
        method: with a teacher, or without.
        adapter: of the student.
        teacher_adapter: of the teacher; without a teacher it means nothing.
        num_classes: outputs of both heads.
        epochs: length of warm-up and cosine.
        warmup_epochs: of these, the linear part.
        cooldown_epochs: further epochs at the lowest learning rate.
        batch_size: images per step.
        drop_last: whether a last, smaller batch of an epoch is left out.
        learning_rate: peak, of both models.
        weight_decay: decoupled, of the matrices of both models.
        drop_path: stochastic depth of the last block; blocks before it rise to it linearly.
        seed: of every random draw.
        precision: of frozen weights and activations.
        distillation: what ties teacher and student.
        recipe: the named schedule that the values came from.
    """

    method: MethodType
    adapter: AdapterSpec
    teacher_adapter: AdapterSpec
    num_classes: int
    epochs: int
    warmup_epochs: int
    cooldown_epochs: int
    batch_size: int
    drop_last: bool
    learning_rate: float
    weight_decay: float
    drop_path: float
    seed: int
    precision: Precision
    distillation: DistillationSpec
    recipe: str = Recipe.DEFAULT

    def __post_init__(self) -> None:
        problems = [
            FieldError(f"/hyperparameters/{name}", message)
            for name, fine, message in (
                ("num_classes", self.num_classes >= 2, "at least two classes"),  # noqa: PLR2004
                ("epochs", self.epochs >= 1, "at least 1"),
                ("warmup_epochs", 0 <= self.warmup_epochs <= self.epochs, "0 to epochs"),
                ("cooldown_epochs", self.cooldown_epochs >= 0, "0 or more"),
                ("batch_size", self.batch_size >= 1, "at least 1"),
                ("learning_rate", _is_within(self.learning_rate, 0.0, 10.0), "0 to 10"),
                ("weight_decay", _is_within(self.weight_decay, 0.0, 10.0), "0 to 10"),
                ("drop_path", _is_within(self.drop_path, 0.0, 0.9), "0 to 0.9"),
            )
            if not fine
        ]
        if problems:
            listed = "; ".join(
                f"{p.pointer.rsplit('/', 1)[-1]} must be {p.message}" for p in problems
            )
            raise InvalidPlanError(listed, fields=tuple(problems))

    def adapter_of(self, role: str) -> AdapterSpec:
        """Return the adapter of `student` or `teacher`."""
        return self.teacher_adapter if role == "teacher" else self.adapter

    @property
    def total_epochs(self) -> int:
        """Epochs that are run, cooldown included."""
        return self.epochs + self.cooldown_epochs

    def steps_per_epoch(self, images: int) -> int:
        """Return how many batches an epoch over `images` training images has.

        Raises:
            InvalidPlanError: there would be none.
        """
        steps = images // self.batch_size if self.drop_last else math.ceil(images / self.batch_size)
        if steps == 0:
            raise InvalidPlanError(
                f"{images} training images do not fill one batch of {self.batch_size}, "
                "and this recipe drops a last batch that is not full"
            )
        return steps

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain values."""
        return dataclasses.asdict(self)

    def fingerprint(self, *parts: str) -> str:
        """Return a SHA-256 (hex) of the plan and of `parts`, the names of what it is run on."""
        text = json.dumps([self.to_json(), list(parts)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def build_plan(
    *,
    method: MethodType = MethodType.IDAT,
    kind: AdapterKind = AdapterKind.SEQUENTIAL,
    hidden_dim: int = 4,
    scale: float = 0.1,
    num_classes: int,
    learning_rate: float,
    weight_decay: float,
    precision: Precision,
    epochs: int | None = None,
    batch_size: int | None = None,
    warmup_epochs: int | None = None,
    drop_path: float = 0.0,
    seed: int = 0,
    loss: DistillationLoss = DistillationLoss.MSE,
    loss_weight: float = 1.0,
    temperature: float = 5.0,
    distillation: DistillationSpec | None = None,
    teacher_adapter: AdapterSpec | None = None,
    recipe: str = Recipe.DEFAULT,
) -> TrainPlan:
    """Fill in what was left open.

    The default recipe: 100 epochs, a warm-up of a tenth of them (at most 10), batches of 32, no
    cooldown, every image in every epoch. The official one: 100 epochs and 10 of cooldown, a warm-up
    of 10, batches of 64, the last incomplete batch dropped. A recipe of a data set (see
    `core.catalog.recipes`) is the official one under its own name.

    `distillation` replaces `loss`, `loss_weight` and `temperature`, which are enough for the
    paper's two losses. Without a `teacher_adapter` the teacher has the student's.

    Raises:
        InvalidPlanError: a value out of range, or one that the official recipe sets itself.
        InvalidError: an adapter out of range.
    """
    cooldown = 0
    if recipe != Recipe.DEFAULT:
        fixed = {
            "epochs": (epochs, _OFFICIAL_EPOCHS),
            "batch_size": (batch_size, _OFFICIAL_BATCH_SIZE),
            "warmup_epochs": (warmup_epochs, _OFFICIAL_WARMUP_EPOCHS),
        }
        for name, (given, official) in fixed.items():
            if given not in (None, official):
                message = f"the official recipe sets {name} to {official}; leave it out"
                field = FieldError(f"/hyperparameters/{name}", message)
                raise InvalidPlanError(message, fields=(field,))
        epochs, batch_size = _OFFICIAL_EPOCHS, _OFFICIAL_BATCH_SIZE
        warmup_epochs, cooldown = _OFFICIAL_WARMUP_EPOCHS, _OFFICIAL_COOLDOWN_EPOCHS
    epochs = 100 if epochs is None else epochs
    if warmup_epochs is None:
        warmup_epochs = min(_OFFICIAL_WARMUP_EPOCHS, max(epochs, 0) // _WARMUP_SHARE)
    adapter = AdapterSpec(kind, hidden_dim, scale)
    if distillation is None:
        distillation = DistillationSpec(loss=loss, weight=loss_weight, temperature=temperature)
    return TrainPlan(
        method=method,
        adapter=adapter,
        teacher_adapter=teacher_adapter or adapter,
        num_classes=num_classes,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        cooldown_epochs=cooldown,
        batch_size=32 if batch_size is None else batch_size,
        drop_last=recipe != Recipe.DEFAULT,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        drop_path=drop_path,
        seed=seed,
        precision=precision,
        distillation=distillation,
        recipe=recipe,
    )


def _is_within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high
