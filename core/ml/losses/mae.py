"""Mean absolute difference of the logits (paper, Table 4; it gives no equation)."""

import torch
from torch import Tensor


def mae(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the absolute difference of raw logits, averaged over the batch and the classes.

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes).
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    return (student.to(wide) - teacher.to(wide)).abs().mean()
