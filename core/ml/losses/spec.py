"""The settings of a distillation loss."""

import math
from dataclasses import dataclass
from typing import Any, Self

from core.catalog.methods import DistillationLoss, FeatureTokens, KlDirection
from core.errors import FieldError, InvalidError

_MAX_WEIGHT = 1e4
_MAX_TEMPERATURE = 1e3


@dataclass(frozen=True, kw_only=True)
class DistillationSpec:
    """What ties student and teacher together.

    Attributes:
        loss: which loss.
        weight: its factor λ in the whole loss.
        temperature: T, divides the logits in `kl`; the other losses have none.
        squared_temperature: whether `kl` is multiplied by T², as textbooks do and the paper does
            not.
        direction: which distribution `kl` takes its mean over.
        detach_teacher: whether the loss leaves the teacher alone; in the paper both learn from it.
        layers: indices of the student's blocks, from 0, whose outputs `feature` compares; None for
            the last one.
        tokens: which tokens `feature` compares.
    """

    loss: DistillationLoss = DistillationLoss.MSE
    weight: float = 1.0
    temperature: float = 5.0
    squared_temperature: bool = False
    direction: KlDirection = KlDirection.TEACHER_STUDENT
    detach_teacher: bool = False
    layers: tuple[int, ...] | None = None
    tokens: FeatureTokens = FeatureTokens.CLS

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.weight) and 0.0 <= self.weight <= _MAX_WEIGHT):
            problems.append(FieldError("/method/distillation/weight", "0 to 10000"))
        if not (math.isfinite(self.temperature) and 0.0 < self.temperature <= _MAX_TEMPERATURE):
            problems.append(FieldError("/method/distillation/temperature", "above 0, to 1000"))
        if self.layers is not None and (
            not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0
        ):
            problems.append(
                FieldError("/method/distillation/layers", "one or more different block indices")
            )
        if problems:
            listed = "; ".join(
                f"{p.pointer.rsplit('/', 1)[-1]} must be {p.message}" for p in problems
            )
            raise InvalidError(listed, code="invalid_hyperparameters", fields=tuple(problems))

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Read the form back that `dataclasses.asdict` gives."""
        layers = stored.get("layers")
        return cls(
            **{
                **stored,
                "loss": DistillationLoss(stored["loss"]),
                "direction": KlDirection(stored["direction"]),
                "tokens": FeatureTokens(stored["tokens"]),
                "layers": None if layers is None else tuple(layers),
            }
        )
