"""Adapter+: a bottleneck after the block, with a learnt scale for each channel.

Steitz and Roth, "Adapters Strike Back" (2024); visinf/adapter_plus with `config: post`,
`scaling: channel` and no norm.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.stream import change_output
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone

_STD = 0.01


class ScaledBottleneck(Bottleneck):
    """c * A(x), A a bottleneck with GELU and c a learnt number for each channel."""

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__(width, hidden_dim)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Map (..., width) to (..., width)."""
        return super().forward(x, draws) * self.scale.to(x.dtype)


class AdapterPlus(BlockMethod):
    """z -> z + c * (W_up GELU(W_down z + b_down) + b_up), with z the block's output.

    The paper's recipe drops whole adapters for some images (stochastic depth of rate 0.1); here an
    adapter is never dropped, while the rate that a job sets drops the network's own branches.
    """

    allows_trimming = True

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck and the scales of one block."""
        return ScaledBottleneck(width, spec.hidden_dim)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Set weights to N(0, 0.01²) cut off at two standard deviations, biases to 0, c to 1."""
        for module in cast(nn.ModuleList, adapters):
            adapter = cast(ScaledBottleneck, module)
            nn.init.ones_(adapter.scale)
            for layer in (adapter.down, adapter.up):
                nn.init.trunc_normal_(
                    layer.weight, std=_STD, a=-2 * _STD, b=2 * _STD, generator=generator
                )
                nn.init.zeros_(layer.bias)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - the scale is learnt
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the block's output."""
        return [change_output(block, lambda z: z + adapter(z, draws))]
