"""Mean squared difference of the logits (paper, Eq. 3, with the released code's mean)."""

import torch
from torch import Tensor


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference of raw logits, averaged over the batch and the classes.

    The mean over classes makes its gradient shrink as 1 / classes: dL/ds = 2 (s - t) / (batch *
    classes).

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes); not detached, so the teacher learns from the student too.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    return (student.to(wide) - teacher.to(wide)).square().mean()
