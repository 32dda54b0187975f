"""The parallel adapter: beside the MLP (paper, Sec. 3.2)."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.stream import change_mlp_branch
from core.ml.backbones.blocks import ResidualBlock


class Parallel(BlockMethod):
    """z = y + DropPath(mlp branch) + s A(y), with y before its norm and A outside drop-path."""

    allows_trimming = True

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck of one block."""
        return Bottleneck(width, spec.hidden_dim)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the end of the MLP branch."""
        return change_mlp_branch(block, lambda y, branch: branch + spec.scale * adapter(y, draws))
