"""The module that most adapters are: down to a few dimensions, a non-linearity, up again."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bottleneck(nn.Module):
    """A(x) = W_up act(W_down x + b_down) + b_up, with the exact (erf) GELU unless told otherwise.

    The parameters are fp32 whatever the backbone is; they are rounded to the input's format for the
    arithmetic, so that small updates are not lost.

    Args:
        width: channels d of input and output.
        hidden_dim: h, the dimensions between.
        activation: act.
        dropout: share of the hidden values that training drops, 0 to 1.
    """

    def __init__(
        self,
        width: int,
        hidden_dim: int,
        *,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden_dim)
        self.up = nn.Linear(hidden_dim, width)
        self._activation = activation
        self._dropout = dropout

    def forward(self, x: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Map (..., width) to (..., width); `draws` as in `AdapterMethod.attach`."""
        hidden = self._activation(rounded_linear(x, self.down))
        return rounded_linear(drop(hidden, self._dropout, draws), self.up)


def rounded_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """Apply an fp32 layer to `x` in the format of `x`."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, layer.weight.to(x.dtype), bias)


def drop(x: Tensor, rate: float, draws: torch.Generator | None) -> Tensor:
    """Return `x` with a share `rate` of its values set to 0 and the others divided by 1 - rate.

    The mask comes from `draws` alone, so that a resumed run drops the same values; without draws,
    in evaluation, or at rate 0 this is `x` itself.
    """
    if draws is None or rate == 0.0:
        return x
    kept = torch.rand(x.shape, generator=draws, device=x.device) >= rate
    return x * (kept / (1.0 - rate)).to(x.dtype)
