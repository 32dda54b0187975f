"""Res-Tuning's adapter, the part of that method whose code is public.

Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from
Backbone" (2023). The public code is the module `ResAdapter` of modelscope/ms-swift,
R(x) = x + W_2 GELU(W_1 x + b_1) + b_2, used there in a detached bypass network.

**What is missing.** The paper's best rows combine three tuners, and beside this one they have
Res-Prefix and Res-Prompt in the attention; the named repository, the dimensions of its ViT and the
tuners of the attention are not public. The bypass is: it trains without a backward pass through
the network, a way of training of its own rather than a kind of adapter, and is not here either. So
the figures that papers quote for Res-Tuning cannot be reproduced by this kind.

**Where it is put.** The paper sets a tuner beside the operation that it tunes: what comes out is
OP(x) + R(x). Around an MLP that is

    z = DropPath(mlp branch) + R(y),    R(y) = y + W_2 GELU(W_1 y + b_1) + b_2,

y the stream in front of the MLP and of its norm: R takes the place of the skip connection, whose y
is R's own. The other reading, R of what the MLP itself reads, would add norm(y) to the stream of
every block on top of y, a large change of the network that nobody asked for; and the public code
feeds the module outputs of blocks, which are the raw stream.
"""

from typing import cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.bottleneck import Bottleneck
from core.ml.adapters.parallel import Parallel
from core.ml.adapters.stream import change_mlp_branch
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone

_BIAS_STD = 1e-6


class ResAdapter(Parallel):
    """z = y + DropPath(mlp branch) + W_2 GELU(W_1 y + b_1) + b_2, without a factor.

    The network is not the pretrained one at the start: W_2 is not 0.
    """

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Set weights to Xavier's U(-√(6/(d+h)), √(6/(d+h))), biases to N(0, 1e-6²)."""
        for adapter in cast(nn.ModuleList, adapters):
            for layer in (cast(Bottleneck, adapter).down, cast(Bottleneck, adapter).up):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.normal_(layer.bias, std=_BIAS_STD, generator=generator)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no scale
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the end of the MLP branch."""
        return change_mlp_branch(block, lambda y, branch: branch + adapter(y, draws))
