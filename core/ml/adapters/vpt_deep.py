"""VPT-deep: learnt tokens in front of every block.

Jia et al., "Visual Prompt Tuning" (2022), as in KMnP/vpt.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod, refuse_unless
from core.ml.adapters.bottleneck import drop
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone

_DROPOUT = 0.1
_COLOURS = 3


class Prompts(nn.Module):
    """The tokens that one block sees beside those of the image.

    Args:
        width: channels d of a token.
        tokens: how many, p.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, stream: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Return (batch, p, width) for a stream (batch, N, width), in its number format."""
        tokens = self.tokens.to(stream.dtype).expand(stream.shape[0], -1, -1)
        return drop(tokens, _DROPOUT, draws)


class VptDeep(BlockMethod):
    """Block l sees [prefix; P_l; patches], and its outputs for P_l are dropped.

    The paper says it the other way round: the p slots go through the whole network, and in front of
    every block but the first their content is replaced by that block's prompts. What is replaced
    has been read by nobody, since only a block mixes tokens; and what the last block leaves in the
    slots is not read by the class token's head. So putting P_l in before a block and taking the
    slots out behind it gives every other token the same values, and leaves the mean over patches,
    where a network is pooled by it, to the patches.

    Prompts lie behind the prefix tokens (class, registers) and get no position. Values of prompts
    are dropped in training at rate 0.1, the rate of the paper's runs.
    """

    is_random = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks whose attention has no place for further tokens."""
        refuse_unless(
            all(block.takes_prompts for block in backbone.blocks),
            spec.kind,
            backbone,
            "there is no place for further tokens (windows, grids or rotary positions)",
        )

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the prompts of one block."""
        return Prompts(width, spec.hidden_dim)

    def initialise(
        self, adapters: nn.Module, backbone: LoadedBackbone, generator: torch.Generator
    ) -> None:
        """Draw prompts from U(-v, v), v = √(6 / (3 P² + d)), P the side of a patch in pixels."""
        patch_px = _read_patch_px(backbone.module)
        for module in cast(nn.ModuleList, adapters):
            tokens = cast(Prompts, module).tokens
            bound = math.sqrt(6 / (_COLOURS * patch_px**2 + tokens.shape[1]))
            nn.init.uniform_(tokens, -bound, bound, generator=generator)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the block's input and output."""
        prefix, end = block.prefix_tokens, block.prefix_tokens + spec.hidden_dim

        def insert(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            stream, *rest = inputs
            parts = (stream[:, :prefix], adapter(stream, draws), stream[:, prefix:])
            return (torch.cat(parts, dim=1), *rest)

        def remove(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            return torch.cat((output[:, :prefix], output[:, end:]), dim=1)

        return [
            block.module.register_forward_pre_hook(insert),
            block.module.register_forward_hook(remove),
        ]


def _read_patch_px(backbone: nn.Module) -> int:
    """Return the side of a patch, from timm's list of strides: a ViT has one for all blocks."""
    strides = getattr(backbone, "feature_info")  # noqa: B009 - nn.Module types every attribute
    return int(strides[0]["reduction"])
