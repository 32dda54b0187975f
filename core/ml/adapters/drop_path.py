"""Stochastic depth with masks that depend on a given generator and nothing else."""

import torch
from torch import Tensor


def drop_path_rates(rate: float, depth: int) -> Tensor:
    """Return the rate of each block, rising linearly from 0 to `rate`, as timm sets them."""
    return torch.linspace(0.0, rate, depth, dtype=torch.float64)


def sample_drop_path(
    rate: float, depth: int, batch: int, generator: torch.Generator
) -> Tensor | None:
    """Draw the factors that multiply the two branches of every block: 0, or 1 / (1 - block's rate).

    Drawn on the CPU so that every device trains with the same masks.

    Returns:
        (2 * depth, batch) fp32, rows in the order of the branches; None if `rate` is 0.
    """
    if rate == 0.0:
        return None
    survival = (1.0 - drop_path_rates(rate, depth)).repeat_interleave(2).float().unsqueeze(1)
    kept = torch.rand(2 * depth, batch, generator=generator) < survival
    return kept / survival
