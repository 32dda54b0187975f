"""One AdamW over the trainable tensors of teacher and student."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

_FUSED_DEVICES = frozenset({"cpu", "cuda"})


def build_optimizer(
    models: Iterable[Mapping[str, nn.Parameter]], *, weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW with torch's betas and eps over the parameters of all `models`.

    Biases and other vectors do not decay. One optimizer over both models does the same arithmetic
    as the released code's two, whose settings are equal. The learning rate is set before every
    epoch.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for model in models:
        for name, parameter in model.items():
            is_plain = parameter.ndim <= 1 or name.endswith(".bias")
            (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED_DEVICES for p in decayed + plain)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
