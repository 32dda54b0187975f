"""Kullback-Leibler divergence of tempered softmaxes (paper, Eq. 4, as its code computes it)."""

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 5.0


def kl(student: Tensor, teacher: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Return KL(teacher ‖ student) in nats, summed over the classes and averaged over the batch.

    The paper's equation reads the other way round and weighs with an un-tempered softmax; this is
    what its code does. There is no factor temperature², so that a weight of 1 here is 1 /
    temperature² in the usual convention of distillation.

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes); not detached, so the teacher learns from the student too.
        temperature: divides both logits.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    log_student = functional.log_softmax(student.to(wide) / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.to(wide) / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
