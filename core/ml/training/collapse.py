"""Notice a run that has stopped learning because its learning rate is too high.

A network whose adapters have blown up gives the same answer for every image. No number in it need
be infinite: its cross-entropy is that of guessing by class frequencies, and stays there. The
paper's own table has such runs (sequential adapters on Clevr/distance at learning rate 5e-2).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Epochs in a row without progress that make a collapse.
PATIENCE = 3
_NEAR = 0.98
_PROGRESS = 0.01
_EXPLODED = 1.25


def label_entropy(labels: Tensor) -> float:
    """Return the entropy of the labels' frequencies in nats: the loss of the best constant answer.

    Args:
        labels: int64 (images,).
    """
    counts = torch.bincount(labels.cpu()).double()
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * frequencies.log()).sum())


def find_collapse(
    losses: Sequence[float], *, entropy: float, num_classes: int, warmup_epochs: int
) -> int | None:
    """Return the epoch (from 0) by which a run had collapsed, or None.

    Collapsed is a run that, for `PATIENCE` epochs in a row after the warm-up, does no better on its
    training images than a constant answer (98 % of its loss), and either gains less than 1 % of
    that or is far worse than an untrained head (125 % of ln C). A slow run, which comes down from
    ln C epoch by epoch, is neither.

    Args:
        losses: the student's mean cross-entropy in each epoch so far, in nats.
        entropy: from `label_entropy`.
        num_classes: C.
        warmup_epochs: epochs at the start that prove nothing.
    """
    for last in range(warmup_epochs + PATIENCE - 1, len(losses)):
        window = losses[last - PATIENCE + 1 : last + 1]
        if not all(map(math.isfinite, window)):
            return last
        gained = window[0] - window[-1] >= _PROGRESS * entropy
        exploded = window[-1] > _EXPLODED * math.log(num_classes)
        if min(window) >= _NEAR * entropy and (exploded or not gained):
            return last
    return None
