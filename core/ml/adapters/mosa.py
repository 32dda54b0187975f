"""MoSA: an adapter beside the MLP whose second half is divided between sparse experts.

Zhang et al., "MoSA: Mixture of Sparse Adapters for Visual Efficient Tuning" (2023);
Theia-4869/MoSA with four experts of the up-projection over one down-projection, as its scripts
for VTAB-1k set it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.ml.adapters.adaptformer import DROPOUT, initialise_to_zero
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.bottleneck import Bottleneck, drop, rounded_linear
from core.ml.adapters.parallel import Parallel
from core.ml.adapters.rounded import rounded_norm
from core.ml.backbones.load import LoadedBackbone

EXPERTS = 4
NORM_EPS = 1e-6


class SparseExperts(Bottleneck):
    """A(x) = W drop(GELU(W_down LN(x) + b_down)) + b_up, with W from the experts in W_up.

    Every entry of W_up, (width, hidden_dim), belongs to one of the experts. In training W is one
    expert drawn anew, which is W_up where the entries are its own and 0 elsewhere; in evaluation W
    is the mean of the experts, W_up / 4.

    The released code keeps a whole layer for every expert, with a gradient at its own entries alone
    and the others at their initial 0, and averages the layers: the same function, four times the
    memory. Its layers have a bias each, which is not divided; here they share one.
    """

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__(width, hidden_dim, dropout=DROPOUT)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.expert_of: Tensor
        owners = torch.zeros(width, hidden_dim, dtype=torch.uint8, device="cpu")
        self.register_buffer("expert_of", owners, persistent=False)

    def divide(self, block: int) -> None:
        """Deal the entries of W_up to the experts at random, in equal numbers.

        The dealing depends on the shape and the number of the block, from 0, and on nothing else:
        no seed and no file has to be kept to know it again.
        """
        generator = torch.Generator().manual_seed(block)
        order = torch.randperm(self.expert_of.numel(), generator=generator, device="cpu")
        self.expert_of = (order % EXPERTS).to(torch.uint8).view_as(self.expert_of)

    def forward(self, x: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Map (..., width) to (..., width)."""
        hidden = functional.gelu(rounded_linear(rounded_norm(x, self.norm), self.down))
        hidden = drop(hidden, DROPOUT, draws)
        return functional.linear(hidden, self._weight(draws).to(x.dtype), self.up.bias.to(x.dtype))

    def _weight(self, draws: torch.Generator | None) -> Tensor:
        if draws is None:
            return self.up.weight / EXPERTS
        # One number that stays on the device: reading it would make the host wait.
        expert = torch.randint(EXPERTS, (), generator=draws, device=self.expert_of.device)
        return self.up.weight * (self.expert_of == expert)


class Mosa(Parallel):
    """z = y + DropPath(mlp branch) + s A(y), the place of `Parallel`, with A the experts.

    Each batch is forwarded twice in training, with draws of their own, and the symmetric KL
    divergence between the two is added to the loss with weight 1.
    """

    is_random = True
    consistency_weight = 1.0

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the adapter of one block, its entries not yet divided."""
        return SparseExperts(width, spec.hidden_dim)

    def build_from_widths(self, widths: Sequence[int], spec: AdapterSpec) -> nn.Module:
        """Return one adapter a block, divided between its experts."""
        adapters = super().build_from_widths(widths, spec)
        for block, adapter in enumerate(cast(nn.ModuleList, adapters)):
            cast(SparseExperts, adapter).divide(block)
        return adapters

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Set W_down to U(-1/√d, 1/√d), the norm to 1 and 0, everything else to 0."""
        for module in cast(nn.ModuleList, adapters):
            adapter = cast(SparseExperts, module)
            adapter.norm.reset_parameters()
            initialise_to_zero(adapter, generator)
