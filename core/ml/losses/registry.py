"""The distillation losses by name. A new loss is one file and one line here."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from core.catalog.methods import DistillationLoss
from core.ml.losses.kl import TEMPERATURE, kl
from core.ml.losses.mse import mse


def build_distillation_loss(
    name: DistillationLoss, *, temperature: float = TEMPERATURE
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return loss(student logits, teacher logits) -> scalar; only `kl` has a temperature."""
    if name is DistillationLoss.KL:
        return partial(kl, temperature=temperature)
    return mse
