"""ARC: projections shared by all blocks, re-scaled and shifted in each.

Dong et al., "Efficient Adaptation of Large Vision Transformer via Adapter Re-Composing" (2023);
placement and initial values of DavidYanAnDe/ARC.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, WidthMethod
from core.ml.adapters.bottleneck import drop
from core.ml.adapters.merging import fold_into_input, refuse_padding
from core.ml.adapters.places import require_norms_before_linears
from core.ml.backbones.blocks import ResidualBlock, find_blocks
from core.ml.backbones.load import LoadedBackbone

DROPOUT = 0.1


class SharedProjections(nn.Module):
    """All adapters in front of one kind of branch, attention's or the MLP's.

    Attributes:
        down: W_d by width, (width, hidden_dim); the way up is its transpose.
        scales: c of each block, (hidden_dim,).
        shifts: b of each block, (width,).
    """

    def __init__(self, widths: Sequence[int], hidden_dim: int) -> None:
        super().__init__()
        self.down = nn.ParameterDict(
            {str(width): torch.zeros(width, hidden_dim) for width in dict.fromkeys(widths)}
        )
        self.scales = nn.ParameterList(torch.zeros(hidden_dim) for _ in widths)
        self.shifts = nn.ParameterList(torch.zeros(width) for width in widths)

    def change(self, index: int, z: Tensor, draws: torch.Generator | None) -> Tensor:
        """Return z + drop(z W_d * c) W_d^T + b of block `index`, shaped like `z` (..., width)."""
        down = self.down[str(z.shape[-1])].to(z.dtype)
        hidden = (z @ down) * self.scales[index].to(z.dtype)
        shift = self.shifts[index].to(z.dtype)
        return z + functional.linear(drop(hidden, DROPOUT, draws), down, shift)

    def as_matrix(self, index: int) -> tuple[Tensor, Tensor]:
        """Return M = I + W_d diag(c) W_d^T and b in float64: the change of block `index`."""
        shift = self.shifts[index].double()
        down = self.down[str(len(shift))].double()
        change = (down * self.scales[index].double()) @ down.t()
        return torch.eye(len(shift), dtype=shift.dtype, device=shift.device) + change, shift


class ArcAdapters(nn.Module):
    """Those in front of attention and those in front of the MLP."""

    def __init__(self, widths: Sequence[int], hidden_dim: int) -> None:
        super().__init__()
        self.attention = SharedProjections(widths, hidden_dim)
        self.mlp = SharedProjections(widths, hidden_dim)


class Arc(WidthMethod):
    """z + drop(z W_d * c_l) W_d^T + b_l between norm1 and qkv, and likewise between norm2 and fc1.

    W_d is shared by all blocks of one width, one for attention and one for the MLP; in a pyramid
    every stage has its own two. All of it is linear, so trained adapters go into the layers behind
    them. 2 (the sum over widths of d h + the sum over blocks of (h + d)) numbers.
    """

    allows_trimming = True
    is_random = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks whose blocks do not begin their branches with a norm and a linear."""
        require_norms_before_linears(spec.kind, backbone)

    def build_from_widths(self, widths: Sequence[int], spec: AdapterSpec) -> nn.Module:
        """Return all adapters."""
        return ArcAdapters(widths, spec.hidden_dim)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Draw W_d, and c in front of the MLP, from Xavier's uniform distribution; all else is 0.

        So attention starts unchanged, but the MLP does not: that is how the public code begins.
        """
        parts = cast("ArcAdapters", adapters)
        for part in (parts.attention, parts.mlp):
            for down in part.down.values():
                nn.init.xavier_uniform_(down, generator=generator)
            for vector in (*part.scales, *part.shifts):
                nn.init.zeros_(vector)
        with torch.no_grad():
            for scale in parts.mlp.scales:
                nn.init.xavier_uniform_(scale[None], generator=generator)

    def attach(
        self,
        blocks: Sequence[ResidualBlock],
        adapters: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no fixed scale
        *,
        backbone: nn.Module,  # noqa: ARG002 - nothing outside of the blocks
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the outputs of both norms of every block."""
        parts = cast("ArcAdapters", adapters)
        handles = []
        for index, block in enumerate(blocks):
            for norm, part in ((block.norm1, parts.attention), (block.norm2, parts.mlp)):
                assert norm is not None, "checked when the model was built"
                handles.append(_change(norm, part, index, draws))
        return handles

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:
        """Put the adapters into qkv and fc1."""
        parts = cast("ArcAdapters", adapters)
        for index, block in enumerate(find_blocks(backbone)):
            refuse_padding(spec.kind, block)
            for name, layer, part in (
                ("attn.qkv", block.qkv, parts.attention),
                ("mlp.fc1", block.fc1, parts.mlp),
            ):
                assert layer is not None, "checked when the model was built"
                matrix, shift = part.as_matrix(index)
                where = f"{block.name}.{name}"
                fold_into_input(layer, matrix, shift, kind=spec.kind, name=where)


def _change(
    norm: nn.Module, part: SharedProjections, index: int, draws: torch.Generator | None
) -> RemovableHandle:
    def change(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return part.change(index, output, draws)

    return norm.register_forward_hook(change)
