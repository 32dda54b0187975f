"""AdaptFormer: a bottleneck with ReLU and dropout beside the MLP, which starts at zero.

Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition" (2022);
settings of ShoufaChen/AdaptFormer for images: bottleneck 64, s = 0.1, dropout 0.1, no norm inside.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.parallel import Parallel
from core.ml.backbones.load import LoadedBackbone

DROPOUT = 0.1


class AdaptFormer(Parallel):
    """z = y + DropPath(mlp branch) + s W_up drop(ReLU(W_down y + b_down)) + s b_up.

    y is the stream before its norm, and the adapter lies outside of drop-path: the place of
    `Parallel`, which is taken from here. Biases and W_up are 0 at the start, so the network is at
    first the pretrained one.

    The public code also trains with SGD and puts a batch norm without weights in front of the
    head. Both belong to its recipe rather than to the module, and are left out.
    """

    is_random = True

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck of one block."""
        return Bottleneck(width, spec.hidden_dim, activation=functional.relu, dropout=DROPOUT)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Set W_down to U(-1/√d, 1/√d), everything else to 0."""
        for adapter in cast(nn.ModuleList, adapters):
            initialise_to_zero(cast(Bottleneck, adapter), generator)


def initialise_to_zero(adapter: Bottleneck, generator: torch.Generator) -> None:
    """Draw W_down as torch draws a linear layer's weight, and set W_up and both biases to 0."""
    nn.init.kaiming_uniform_(adapter.down.weight, a=math.sqrt(5), generator=generator)
    for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
        nn.init.zeros_(tensor)
