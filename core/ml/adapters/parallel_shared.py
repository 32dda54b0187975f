"""The parallel shared adapter: one module beside attention and beside the MLP (paper, Sec. 3.2)."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod, refuse_unless
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.stream import change_attention_branch, change_mlp_branch
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone


class ParallelShared(BlockMethod):
    """y = x + DropPath(attention) + s A(x); z = y + DropPath(mlp) + s A(y); the same A twice."""

    allows_trimming = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse blocks without an attention branch as wide as the MLP's."""
        refuse_unless(
            all(block.attention_input is not None for block in backbone.blocks),
            spec.kind,
            backbone,
            "its blocks have no attention branch beside the MLP whose width is the MLP's",
        )

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck that both branches of one block share."""
        return Bottleneck(width, spec.hidden_dim)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the ends of both branches."""

        def add(stream: Tensor, branch: Tensor) -> Tensor:
            added: Tensor = branch + spec.scale * adapter(stream, draws)
            return added

        return [*change_attention_branch(block, add), *change_mlp_branch(block, add)]
