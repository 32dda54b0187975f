"""LoRA: a low-rank update of the weight that makes queries, keys and values.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022); on the fused layer of vision
transformers, with dropout on its input, as in NOAH (Zhang, Zhou and Liu 2022).
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterMethod, AdapterSpec
from core.ml.adapters.bottleneck import drop, rounded_linear
from core.ml.adapters.merging import add_to_weight
from core.ml.adapters.places import require_qkv
from core.ml.backbones.blocks import ResidualBlock, find_blocks
from core.ml.backbones.load import LoadedBackbone

DROPOUT = 0.1


class LowRank(nn.Module):
    """B A drop(x): the change that one layer's output gets, before its factor.

    Args:
        inputs: of the layer.
        outputs: of the layer.
        rank: r, rows of A (`down`) and columns of B (`up`).
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return rounded_linear(rounded_linear(drop(x, DROPOUT, draws), self.down), self.up)


class Lora(AdapterMethod):
    """qkv(x) + s B A drop(x), with s the usual alpha / r.

    r (inputs + outputs) numbers for each block: r (d + 3 d) where attention keeps the width d.
    Nothing learns a bias, so that the update of the weight is all there is, in every family.
    """

    is_random = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks without a qkv layer that can be hooked."""
        require_qkv(spec.kind, backbone)

    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:
        """Return one pair of matrices a block."""
        layers = (_qkv(block) for block in backbone.blocks)
        return nn.ModuleList(
            LowRank(q.in_features, q.out_features, spec.hidden_dim) for q in layers
        )

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Draw A as torch draws a linear layer's weight, and set B to 0: no change at first."""
        for part in cast("nn.ModuleList", adapters):
            pair = cast("LowRank", part)
            nn.init.kaiming_uniform_(pair.down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(pair.up.weight)

    def attach(
        self,
        blocks: Sequence[ResidualBlock],
        adapters: nn.Module,
        spec: AdapterSpec,
        *,
        backbone: nn.Module,  # noqa: ARG002 - nothing outside of the blocks
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the output of every qkv layer."""
        pairs = zip(blocks, cast("nn.ModuleList", adapters), strict=True)
        return [
            _add(_qkv(block), cast("LowRank", part), spec.scale, draws) for block, part in pairs
        ]

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:
        """Set every qkv weight W to W + s B A."""
        for block, part in zip(find_blocks(backbone), cast("nn.ModuleList", adapters), strict=True):
            pair = cast("LowRank", part)
            change = spec.scale * (pair.up.weight.double() @ pair.down.weight.double())
            add_to_weight(_qkv(block), change)


def _add(
    layer: nn.Linear, pair: LowRank, scale: float, draws: torch.Generator | None
) -> RemovableHandle:
    def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        change: Tensor = pair(inputs[0], draws)
        return output + scale * change

    return layer.register_forward_hook(add)


def _qkv(block: ResidualBlock) -> nn.Linear:
    assert block.qkv is not None, "checked when the model is built"
    return block.qkv
