"""The distillation losses by name. A new loss on logits is one file and one line here."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from core.catalog.methods import DistillationLoss
from core.ml.losses.cosine import cosine
from core.ml.losses.kl import kl
from core.ml.losses.mae import mae
from core.ml.losses.mse import mse
from core.ml.losses.spec import DistillationSpec

_PLAIN: Mapping[DistillationLoss, Callable[[Tensor, Tensor], Tensor]] = {
    DistillationLoss.MSE: mse,
    DistillationLoss.COSINE: cosine,
    DistillationLoss.MAE: mae,
}


def build_logit_loss(spec: DistillationSpec) -> Callable[[Tensor, Tensor], Tensor]:
    """Return loss(student logits, teacher logits) -> scalar, for every loss but `feature`.

    The teacher receives its gradient too unless the spec detaches it.
    """
    loss = _PLAIN.get(spec.loss)
    if loss is None:
        assert spec.loss is DistillationLoss.KL, "feature losses do not compare logits"
        loss = partial(
            kl,
            temperature=spec.temperature,
            squared_temperature=spec.squared_temperature,
            direction=spec.direction,
        )
    return partial(_detached, loss) if spec.detach_teacher else loss


def _detached(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    return loss(student, teacher.detach())
