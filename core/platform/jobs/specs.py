"""A job's specification with every default resolved: what was asked for, reproducible for ever."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class JobSpec:
    """Everything that decides a job's result, besides its dataset.

    Attributes:
        method: `idat` or `adapter` (`core.catalog.methods.MethodType`).
        pair: name of the pair, or empty when the backbones were named one by one.
        student: timm name of the student backbone.
        teacher: timm name of the teacher backbone, None for `adapter`.
        adapter_kind: kind of the student's adapter (`AdapterKind`).
        hidden_dim: its size; 0 for kinds that have none.
        scale: its fixed factor s; the kinds that have none ignore it.
        loss: distillation loss (`DistillationLoss`).
        loss_weight: its weight lambda.
        temperature: T of the `kl` loss.
        recipe: `default`, `official` or one of a dataset (`core.catalog.recipes`).
        epochs: passes over the training split, without cooldown.
        warmup_epochs: linear warm-up, in epochs.
        batch_size: images per step.
        learning_rate: peak learning rate; the middle of the search, if there is one.
        weight_decay: decoupled weight decay.
        drop_path: stochastic depth of the deepest block.
        precision: `auto`, `fp32` or `bf16`; `auto` is decided where the job runs and recorded.
        seed: of everything random in training.
        teacher_adapter_kind: kind of the teacher's adapter, None for the student's, size included.
        teacher_hidden_dim: its size.
        teacher_scale: its factor.
        squared_temperature: whether `kl` is multiplied by T².
        direction: of `kl` (`KlDirection`).
        detach_teacher: whether the distillation loss leaves the teacher alone.
        layers: the student's blocks that `feature` compares, from 0; None for the last.
        tokens: which tokens `feature` compares (`FeatureTokens`).
        search_learning_rate: whether a rate is searched for on validation.
        compare_baseline: whether the student is trained alone as well.
        seeds: with how many seeds, from `seed` on, all of it is done.
        figures: what to draw after it, each a name (`core.catalog.figures`) with its options.
    """

    method: str
    pair: str
    student: str
    teacher: str | None
    adapter_kind: str
    hidden_dim: int
    scale: float
    loss: str
    loss_weight: float
    temperature: float
    recipe: str
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    drop_path: float
    precision: str
    seed: int
    # Rows of earlier releases lack what follows.
    teacher_adapter_kind: str | None = None
    teacher_hidden_dim: int | None = None
    teacher_scale: float | None = None
    squared_temperature: bool = False
    direction: str = "teacher_student"
    detach_teacher: bool = False
    layers: list[int] | None = None
    tokens: str = "cls"
    search_learning_rate: bool = False
    compare_baseline: bool = False
    seeds: int = 1
    figures: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Read the stored form back."""
        return cls(**stored)
