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
        adapter_kind: placement of the adapters (`AdapterKind`).
        hidden_dim: bottleneck width h.
        scale: factor s of the parallel adapters.
        loss: distillation loss (`DistillationLoss`).
        loss_weight: its weight lambda.
        temperature: T of the `kl` loss.
        recipe: `default` or `official`.
        epochs: passes over the training split, without cooldown.
        warmup_epochs: linear warm-up, in epochs.
        batch_size: images per step.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        drop_path: stochastic depth of the deepest block.
        precision: `auto`, `fp32` or `bf16`; `auto` is decided where the job runs and recorded.
        seed: of everything random in training.
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
    figures: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Read the stored form back."""
        return cls(**stored)
