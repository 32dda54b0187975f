"""Learning rate and token budget as functions of progress, not of a number of steps.

Progress is the spent share of the run's budget, so that a run ends on time on a machine whose
speed nobody knows, and a finished run can go on under a larger budget.
"""

import math

PATCHES = 64
KEPT_PATCHES = 24
#: Share of the run that sees KEPT_PATCHES patches of each image; the rest sees all 64.
SPARSE_SHARE = 0.75
#: Optimiser steps over which the learning rate rises after every start.
WARMUP_STEPS = 300
FINAL_RATE_SHARE = 0.01


def learning_rate(peak: float, progress: float, steps_since_start: int) -> float:
    """Return a cosine from peak to FINAL_RATE_SHARE of it, times a linear warm-up."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    warm = min(1.0, (steps_since_start + 1) / WARMUP_STEPS)
    return peak * warm * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def patches_to_keep(progress: float) -> int:
    """Return how many of the 64 patches the model sees."""
    return KEPT_PATCHES if progress < SPARSE_SHARE else PATCHES
