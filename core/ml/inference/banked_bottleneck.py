"""Bottlenecks in a bank: down to h dimensions, a non-linearity, up again.

What is fixed or linear goes into the numbers of the row. A factor s or c for each channel goes into
W_up and b_up: s (W_up a + b_up) = (s W_up) a + s b_up. The affine part of a norm in front, g n + t,
goes into W_down: W_down (g n + t) + b = (W_down g) n + (W_down t + b). Padding h is exact: the
padded units are act(0) = 0, and their columns of W_up are 0.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.mosa import EXPERTS, NORM_EPS
from core.ml.adapters.stream import (
    change_attention_branch,
    change_mlp_branch,
    change_output,
)
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone
from core.ml.inference.banked import BankedMethod, ReadRows
from core.ml.inference.rows import Rows

#: `add(base, x)` is base + A(x), A the bottleneck of a block.
Add = Callable[[Tensor, Tensor], Tensor]
Attach = Callable[[ResidualBlock, Add], list[RemovableHandle]]


def after_block(block: ResidualBlock, add: Add) -> list[RemovableHandle]:
    """Put A behind the block, with a residual of its own: z + A(z)."""
    return [change_output(block, lambda z: add(z, z))]


def beside_mlp(block: ResidualBlock, add: Add) -> list[RemovableHandle]:
    """Put A beside the MLP: y + mlp + A(y)."""
    return change_mlp_branch(block, lambda y, branch: add(branch, y))


def beside_both(block: ResidualBlock, add: Add) -> list[RemovableHandle]:
    """Put A beside attention and beside the MLP."""
    return [
        *change_attention_branch(block, lambda x, branch: add(branch, x)),
        *beside_mlp(block, add),
    ]


class BankedBottleneck(BankedMethod):
    """A(x) = W_up act(W_down x + b_down) + b_up in every block.

    Args:
        attach: where in a block.
        activation: act, with act(0) = 0.
        scaled: whether the kind has the factor `AdapterSpec.scale`.
    """

    def __init__(
        self,
        attach: Attach,
        *,
        activation: Callable[[Tensor], Tensor] = functional.gelu,
        scaled: bool = False,
    ) -> None:
        self._attach = attach
        self._activation = activation
        self._scaled = scaled

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:
        """Return two matrices and two biases a block."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, width in enumerate(backbone.block_widths):
            shapes |= {
                f"{index}.down": (width, bucket),
                f"{index}.down_bias": (bucket,),
                f"{index}.up": (bucket, width),
                f"{index}.up_bias": (width,),
            }
        return shapes

    def pack(
        self, backbone: LoadedBackbone, spec: AdapterSpec, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return transposed matrices, the factor in those of the way up."""
        packed: dict[str, Tensor] = {}
        for index in range(len(backbone.blocks)):
            names = ("down.weight", "down.bias", "up.weight", "up.bias")
            down, down_bias, up, up_bias = (state[f"adapters.{index}.{name}"] for name in names)
            factor = self.read_factor(spec, state, index)
            packed |= {
                f"{index}.down": down.t(),
                f"{index}.down_bias": down_bias,
                f"{index}.up": up.t() * factor,
                f"{index}.up_bias": up_bias * factor,
            }
        return packed

    def read_factor(
        self,
        spec: AdapterSpec,
        state: Mapping[str, Tensor],  # noqa: ARG002 - some kinds learn it
        index: int,  # noqa: ARG002
    ) -> Tensor | float:
        """Return what A of block `index` is multiplied with: a number, or one for each channel."""
        return spec.scale if self._scaled else 1.0

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook every block."""
        return [
            handle
            for index, block in enumerate(backbone.blocks)
            for handle in self._attach(block, partial(self._add, read, index))
        ]

    def _add(self, read: ReadRows, index: int, base: Tensor, x: Tensor) -> Tensor:
        rows = read()
        hidden = self._activation(self.go_down(rows, index, x))
        return rows.add_linear(base, hidden, f"{index}.up", f"{index}.up_bias")

    def go_down(self, rows: Rows, index: int, x: Tensor) -> Tensor:
        """Return W_down x + b_down of block `index`, (batch, tokens, bucket)."""
        return rows.linear(x, f"{index}.down", f"{index}.down_bias")


class BankedScaledBottleneck(BankedBottleneck):
    """Adapter+: a learnt factor for each channel."""

    def read_factor(
        self,
        spec: AdapterSpec,  # noqa: ARG002 - learnt
        state: Mapping[str, Tensor],
        index: int,
    ) -> Tensor:
        """Return the factors of block `index`, (width,)."""
        return state[f"adapters.{index}.scale"]


class BankedExperts(BankedBottleneck):
    """MoSA in evaluation: a norm in front, and the mean of the experts, W_up / 4."""

    def pack(
        self, backbone: LoadedBackbone, spec: AdapterSpec, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what a plain bottleneck has, the norm's affine part in the way down."""
        packed = super().pack(backbone, spec, state)
        for index in range(len(backbone.blocks)):
            weight = state[f"adapters.{index}.norm.weight"]
            bias = state[f"adapters.{index}.norm.bias"]
            down = packed[f"{index}.down"]  # (width, h)
            packed[f"{index}.down_bias"] = packed[f"{index}.down_bias"] + bias @ down
            packed[f"{index}.down"] = down * weight.unsqueeze(1)
            packed[f"{index}.up"] = packed[f"{index}.up"] / EXPERTS
        return packed

    def go_down(self, rows: Rows, index: int, x: Tensor) -> Tensor:
        """Normalise, then go down."""
        normalised = torch.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)
        return super().go_down(rows, index, normalised)
