"""The distillation term of a run: a loss on logits or on features, with what it has to learn."""

from torch import Tensor, nn

from core.catalog.methods import DistillationLoss, FeatureTokens
from core.ml.adapters.adapted import Forward
from core.ml.backbones.load import LoadedBackbone
from core.ml.losses.feature import FeatureBridge
from core.ml.losses.registry import build_logit_loss
from core.ml.losses.spec import DistillationSpec


class Distillation(nn.Module):
    """D(student, teacher), before its weight.

    Its parameters, if it has any, are trained with the adapters and never exported.

    Attributes:
        student_layers: blocks of the student whose outputs it reads.
        teacher_layers: blocks of the teacher, likewise.
        all_tokens: whether it reads every token of them.
    """

    def __init__(
        self, spec: DistillationSpec, student: LoadedBackbone, teacher: LoadedBackbone, *, seed: int
    ) -> None:
        super().__init__()
        self._detach = spec.detach_teacher
        self.bridge: FeatureBridge | None = None
        if spec.loss is DistillationLoss.FEATURE:
            self.bridge = FeatureBridge(
                student, teacher, layers=spec.layers, tokens=spec.tokens, seed=seed
            )
        else:
            self._loss = build_logit_loss(spec)
        self.student_layers = self.bridge.student_layers if self.bridge else ()
        self.teacher_layers = self.bridge.teacher_layers if self.bridge else ()
        self.all_tokens = self.bridge is not None and spec.tokens is FeatureTokens.ALL

    def forward(self, student: Forward, teacher: Forward) -> Tensor:
        """Return the loss as a scalar."""
        if self.bridge is None:
            return self._loss(student.logits, teacher.logits)
        hidden = teacher.hidden
        if self._detach:
            hidden = tuple(tensor.detach() for tensor in hidden)
        loss: Tensor = self.bridge(student.hidden, hidden)
        return loss
