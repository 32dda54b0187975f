"""Kullback-Leibler divergence of tempered softmaxes (paper, Eq. 4, as its code computes it)."""

import torch
from torch import Tensor
from torch.nn import functional

from core.catalog.methods import KlDirection

TEMPERATURE = 5.0


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = TEMPERATURE,
    squared_temperature: bool = False,
    direction: KlDirection = KlDirection.TEACHER_STUDENT,
) -> Tensor:
    """Return a KL divergence in nats, summed over the classes and averaged over the batch.

    By default KL(teacher ‖ student). The paper's equation reads the other way round and weighs
    with an un-tempered softmax, which is no divergence (it can be negative); this is what its code
    does. There is no factor temperature² unless asked for, so that a weight of 1 here is 1 /
    temperature² in the usual convention of distillation.

    Args:
        student: logits (batch, classes).
        teacher: logits (batch, classes).
        temperature: divides both logits.
        squared_temperature: multiply by temperature², so that gradients keep their size.
        direction: whose probabilities weigh the logarithms.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    log_student = functional.log_softmax(student.to(wide) / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher.to(wide) / temperature, dim=-1)
    target, given = (log_teacher, log_student)
    if direction is KlDirection.STUDENT_TEACHER:
        target, given = given, target
    divergence = functional.kl_div(given, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2 if squared_temperature else divergence
