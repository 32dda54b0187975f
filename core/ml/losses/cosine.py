"""Angle between the logits (paper, Table 4; it gives no equation, this is the usual one)."""

import torch
from torch import Tensor
from torch.nn import functional


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cos(student, teacher) of the raw logits, averaged over the batch: 0 to 2.

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes).
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    similarity = functional.cosine_similarity(student.to(wide), teacher.to(wide), dim=-1)
    return (1.0 - similarity).mean()
