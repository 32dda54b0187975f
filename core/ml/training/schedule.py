"""The learning rate of every epoch: linear warm-up, cosine, cooldown."""

import math

WARMUP_START = 1e-7
FLOOR = 1e-8


def learning_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int) -> float:
    """Return the learning rate of `epoch`, constant within it.

    The closed form of timm's `CosineLRScheduler(t_initial=epochs, warmup_t=warmup_epochs,
    lr_min=1e-8, warmup_lr_init=1e-7)` as the released code uses it: the warm-up does not shift the
    cosine, so a run with one never quite reaches its peak.

    Args:
        epoch: from 0; from `epochs` on the cooldown runs at the floor.
        peak: the learning rate that was asked for.
        epochs: length of warm-up and cosine together.
        warmup_epochs: length of the warm-up; 0 for none.
    """
    if epoch < warmup_epochs:
        return WARMUP_START + epoch * (peak - WARMUP_START) / warmup_epochs
    if epoch < epochs:
        return FLOOR + 0.5 * (peak - FLOOR) * (1.0 + math.cos(math.pi * epoch / epochs))
    return FLOOR
