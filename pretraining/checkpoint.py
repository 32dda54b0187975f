"""Checkpoints of a pretraining run, the running average of its weights, and their export."""

from pathlib import Path

import torch
from torch import Tensor, nn

AVERAGE_EVERY_STEPS = 4
#: Per update: the average looks back over about 4 x 250 steps.
AVERAGE_DECAY = 0.996


class Average:
    """Exponential moving average of a module's parameters (the starters have no buffers)."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = [p.detach().clone() for p in module.parameters()]
        self.names = [name for name, _ in module.named_parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average; early on it looks back over a third of the run only."""
        if step % AVERAGE_EVERY_STEPS:
            return
        updates = step / AVERAGE_EVERY_STEPS
        decay = min(AVERAGE_DECAY, 1 - 3 / (updates + 3))
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.tensors, current, 1 - decay)  # as torch.optim does

    def state_dict(self) -> dict[str, Tensor]:
        """Return parameter name → average."""
        return dict(zip(self.names, self.tensors, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for name, tensor in zip(self.names, self.tensors, strict=True):
            tensor.copy_(state[name])


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    *,
    step: int,
    spent_s: float,
) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "step": step,
        "spent_s": spent_s,
    }
    torch.save(content, partial)
    partial.replace(path)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> tuple[int, float]:
    """Restore a run; return its step and the seconds it has spent."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    average.load_state_dict(content["average"])
    return int(content["step"]), float(content["spent_s"])


def backbone_weights(path: Path, *, averaged: bool) -> dict[str, Tensor]:
    """Return the backbone's weights in a checkpoint, float32, by timm's names."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if averaged:
        return dict(content["average"])
    prefix = "backbone."
    state: dict[str, Tensor] = content["model"]
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
