"""Kinds without a non-linearity in a bank: LoRA, RepAdapter and ARC.

All are base + (x P) Q + b with matrices and vectors of the row, and 0 there adds nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.repadapter import GROUPS
from core.ml.backbones.load import LoadedBackbone
from core.ml.inference.banked import BankedMethod, ReadRows

_BRANCHES = ("attention", "mlp")


class BankedLora(BankedMethod):
    """qkv(x) + s B A x; the windows of a Swin's attention lie image after image."""

    allows_trimming = False

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:
        """Return two matrices a block."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, block in enumerate(backbone.blocks):
            assert block.qkv is not None, "checked when the model is admitted"
            shapes[f"{index}.down"] = (block.qkv.in_features, bucket)
            shapes[f"{index}.up"] = (bucket, block.qkv.out_features)
        return shapes

    def pack(
        self, backbone: LoadedBackbone, spec: AdapterSpec, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return transposed matrices, the factor in those of the way up."""
        packed: dict[str, Tensor] = {}
        for index in range(len(backbone.blocks)):
            packed[f"{index}.down"] = state[f"adapters.{index}.down.weight"].t()
            packed[f"{index}.up"] = state[f"adapters.{index}.up.weight"].t() * spec.scale
        return packed

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the output of every qkv layer."""
        handles = []
        for index, block in enumerate(backbone.blocks):
            assert block.qkv is not None, "checked when the model is admitted"
            handles.append(_change_qkv(block.qkv, read, index))
        return handles


def _change_qkv(layer: nn.Linear, read: ReadRows, index: int) -> RemovableHandle:
    def change(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        rows = read()
        hidden = rows.linear(inputs[0], f"{index}.down")
        return rows.add_linear(output, hidden, f"{index}.up")

    return layer.register_forward_hook(change)


class BankedRepAdapter(BankedMethod):
    """z + s (B (A z + a) + b) behind both norms; B's two groups as one matrix with zeros."""

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:
        """Return two matrices and two biases for each branch of a block."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, width in enumerate(backbone.block_widths):
            for branch in _BRANCHES:
                shapes |= {
                    f"{index}.{branch}.down": (width, bucket),
                    f"{index}.{branch}.down_bias": (bucket,),
                    f"{index}.{branch}.up": (bucket, width),
                    f"{index}.{branch}.up_bias": (width,),
                }
        return shapes

    def pack(
        self, backbone: LoadedBackbone, spec: AdapterSpec, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return transposed matrices, the factor in those of the way up."""
        packed: dict[str, Tensor] = {}
        for index in range(len(backbone.blocks)):
            for branch in _BRANCHES:
                old, new = f"adapters.{index}.{branch}", f"{index}.{branch}"
                groups = state[f"{old}.up.weight"].chunk(GROUPS)
                dense: Tensor = torch.block_diag(*groups)  # type: ignore[no-untyped-call] # of torch
                packed |= {
                    f"{new}.down": state[f"{old}.down.weight"].t(),
                    f"{new}.down_bias": state[f"{old}.down.bias"],
                    f"{new}.up": dense.t() * spec.scale,
                    f"{new}.up_bias": state[f"{old}.up.bias"] * spec.scale,
                }
        return packed

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the outputs of both norms of every block."""
        return [
            _change_norm(norm, read, f"{index}.{branch}")
            for index, block in enumerate(backbone.blocks)
            for branch, norm in zip(_BRANCHES, (block.norm1, block.norm2), strict=True)
            if norm is not None
        ]


def _change_norm(norm: nn.Module, read: ReadRows, name: str) -> RemovableHandle:
    def change(_: nn.Module, __: tuple[Any, ...], z: Tensor) -> Tensor:
        rows = read()
        hidden = rows.linear(z, f"{name}.down", f"{name}.down_bias")
        return rows.add_linear(z, hidden, f"{name}.up", f"{name}.up_bias")

    return norm.register_forward_hook(change)


class BankedArc(BankedMethod):
    """z + ((z W) * c) W^T + b behind both norms; W shared by all blocks of a width."""

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:
        """Return W for each width, and c and b for each block, all for both branches."""
        widths = backbone.block_widths
        shapes: dict[str, tuple[int, ...]] = {}
        for branch in _BRANCHES:
            for width in dict.fromkeys(widths):
                shapes[f"{branch}.down.{width}"] = (width, bucket)
            for index, width in enumerate(widths):
                shapes[f"{branch}.scales.{index}"] = (bucket,)
                shapes[f"{branch}.shifts.{index}"] = (width,)
        return shapes

    def pack(
        self,
        backbone: LoadedBackbone,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no fixed scale
        state: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the tensors as they are."""
        names = self.lay_out(backbone, 0)
        return {name: state[f"adapters.{name}"] for name in names}

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the outputs of both norms of every block."""
        return [
            _change_shared(norm, read, index, branch)
            for index, block in enumerate(backbone.blocks)
            for branch, norm in zip(_BRANCHES, (block.norm1, block.norm2), strict=True)
            if norm is not None
        ]


def _change_shared(norm: nn.Module, read: ReadRows, index: int, branch: str) -> RemovableHandle:
    def change(_: nn.Module, __: tuple[Any, ...], z: Tensor) -> Tensor:
        rows = read()
        down = f"{branch}.down.{z.shape[-1]}"
        hidden = rows.linear(z, down) * rows.vectors(f"{branch}.scales.{index}")
        changed = rows.add_linear(z, hidden, down, transposed=True)
        return rows.add_vectors(changed, f"{branch}.shifts.{index}")

    return norm.register_forward_hook(change)
