"""RepAdapter: a linear bottleneck in front of attention and one in front of the MLP.

Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization" (2023); placement
and initial values of luogen1996/RepAdapter.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.errors import InvalidError
from core.ml.adapters.base import AdapterSpec, BlockMethod, refuse_unless
from core.ml.adapters.bottleneck import drop, rounded_linear
from core.ml.adapters.merging import fold_into_input, refuse_padding
from core.ml.adapters.places import require_norms_before_linears
from core.ml.backbones.blocks import ResidualBlock, find_blocks
from core.ml.backbones.load import LoadedBackbone

DROPOUT = 0.1
GROUPS = 2


class GroupedLinear(nn.Module):
    """A linear layer whose g-th part of the outputs reads the g-th part of the inputs alone.

    It is a 1x1 convolution with groups. Outputs and inputs are split in `GROUPS` equal parts.

    Args:
        inputs: width of what it reads, a multiple of `GROUPS`.
        outputs: width of what it gives, likewise.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // GROUPS))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        weights = self.weight.to(x.dtype).chunk(GROUPS)
        parts = x.chunk(GROUPS, dim=-1)
        products = [part @ weight.t() for part, weight in zip(parts, weights, strict=True)]
        return torch.cat(products, dim=-1) + self.bias.to(x.dtype)

    def dense_weight(self) -> Tensor:
        """Return the same map as one matrix (outputs, inputs), zero between the groups."""
        dense: Tensor = torch.block_diag(*self.weight.chunk(GROUPS))  # type: ignore[no-untyped-call] # of torch
        return dense


class LinearBottleneck(nn.Module):
    """B(drop(A z)): A dense with bias, B in two groups with bias, nothing between but dropout.

    Args:
        width: channels d of input and output.
        hidden_dim: h.
    """

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden_dim)
        self.up = GroupedLinear(hidden_dim, width)

    def forward(self, z: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Map (..., width) to (..., width)."""
        hidden: Tensor = self.up(drop(rounded_linear(z, self.down), DROPOUT, draws))
        return hidden


class BlockAdapters(nn.Module):
    """The two adapters of one block."""

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.attention = LinearBottleneck(width, hidden_dim)
        self.mlp = LinearBottleneck(width, hidden_dim)


class RepAdapter(BlockMethod):
    """z + s B(drop(A z)) between norm1 and qkv, and another one between norm2 and fc1.

    2 (d h + h + d h / 2 + d) numbers for each block. All of it is linear, so a trained adapter goes
    into the layers behind it.
    """

    allows_trimming = True
    is_random = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks whose blocks do not begin their branches with a norm and a linear."""
        require_norms_before_linears(spec.kind, backbone)
        refuse_unless(
            not any(width % GROUPS for width in backbone.block_widths),
            spec.kind,
            backbone,
            f"its second projection has {GROUPS} groups, and a block's width is odd",
        )

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the two adapters of one block.

        Raises:
            InvalidError: the hidden dimension or the width cannot be split in two.
        """
        for name, size in (("hidden_dim", spec.hidden_dim), ("the width of a block", width)):
            if size % GROUPS:
                raise InvalidError(
                    f"{name} is {size}; {spec.kind.value} splits it in {GROUPS} groups, so it must "
                    "be even"
                )
        return BlockAdapters(width, spec.hidden_dim)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Draw A from Xavier's uniform distribution and set all else to 0: no change at first."""
        for part in adapters.modules():
            if isinstance(part, LinearBottleneck):
                nn.init.xavier_uniform_(part.down.weight, generator=generator)
                for tensor in (part.down.bias, part.up.weight, part.up.bias):
                    nn.init.zeros_(tensor)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the outputs of both norms."""
        parts = cast("BlockAdapters", adapter)
        assert block.norm1 is not None and block.norm2 is not None, "checked"  # noqa: PT018
        return [
            _add(block.norm1, parts.attention, spec.scale, draws),
            _add(block.norm2, parts.mlp, spec.scale, draws),
        ]

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:
        """Put the adapters into qkv and fc1: M = I + s B A, t = s (B b_A + b_B)."""
        for block, adapter in zip(
            find_blocks(backbone), cast("nn.ModuleList", adapters), strict=True
        ):
            parts = cast("BlockAdapters", adapter)
            refuse_padding(spec.kind, block)
            for name, layer, part in (
                ("attn.qkv", block.qkv, parts.attention),
                ("mlp.fc1", block.fc1, parts.mlp),
            ):
                assert layer is not None, "checked when the model was built"
                matrix, shift = _as_matrix(part, spec.scale)
                where = f"{block.name}.{name}"
                fold_into_input(layer, matrix, shift, kind=spec.kind, name=where)


def _add(
    norm: nn.Module, part: LinearBottleneck, scale: float, draws: torch.Generator | None
) -> RemovableHandle:
    def add(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        change: Tensor = part(output, draws)
        return output + scale * change

    return norm.register_forward_hook(add)


def _as_matrix(part: LinearBottleneck, scale: float) -> tuple[Tensor, Tensor]:
    up = part.up.dense_weight().double()
    change = up @ part.down.weight.double()
    shift = up @ part.down.bias.double() + part.up.bias.double()
    identity = torch.eye(change.shape[0], dtype=change.dtype, device=change.device)
    return identity + scale * change, scale * shift
