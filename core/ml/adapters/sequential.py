"""The sequential adapter: after the block, with a residual of its own (paper, Sec. 3.2)."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.stream import change_output
from core.ml.backbones.blocks import ResidualBlock


class Sequential(BlockMethod):
    """z -> z + A(z), with z the block's output: un-normalised, no scale, outside drop-path."""

    allows_trimming = True

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck of one block."""
        return Bottleneck(width, spec.hidden_dim)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no scale
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the block's output."""
        return [change_output(block, lambda z: z + adapter(z, draws))]
