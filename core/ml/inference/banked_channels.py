"""Kinds that change channels one by one in a bank, SSF and BitFit, and one that changes none."""

from collections.abc import Mapping
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.parts import find_biases, find_operations
from core.ml.inference.banked import BankedMethod, ReadRows
from core.ml.inference.rows import Rows

_GAIN, _SHIFT = "gain", "shift"


class BankedSsf(BankedMethod):
    """gamma * y + beta behind every operation; gamma - 1 is stored, so that 0 changes nothing."""

    allows_trimming = False

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - no size
        """Return two vectors for each operation."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, operation in _operations(backbone).items():
            weight = operation.weight
            assert isinstance(weight, nn.Parameter), "operations have weights"
            shapes |= dict.fromkeys((f"{name}.{_GAIN}", f"{name}.{_SHIFT}"), (weight.shape[0],))
        return shapes

    def pack(
        self,
        backbone: LoadedBackbone,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no settings
        state: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return gamma - 1 and beta."""
        packed = {}
        for name in _operations(backbone):
            packed[f"{name}.{_GAIN}"] = state[f"adapters.{name}.scale"] - 1
            packed[f"{name}.{_SHIFT}"] = state[f"adapters.{name}.shift"]
        return packed

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the output of every operation."""
        return [_change(layer, read, name) for name, layer in _operations(backbone).items()]


def _operations(backbone: LoadedBackbone) -> dict[str, nn.Module]:
    operations = find_operations(backbone.module, backbone.blocks)
    assert operations is not None, "checked when the model is admitted"
    return operations


def _change(operation: nn.Module, read: ReadRows, name: str) -> RemovableHandle:
    gain, shift = f"{name}.{_GAIN}", f"{name}.{_SHIFT}"

    def change(module: nn.Module, __: tuple[Any, ...], y: Tensor) -> Tensor:
        rows = read()
        if isinstance(module, nn.Conv2d):
            return (y + _per_plane(rows, shift)).addcmul_(y, _per_plane(rows, gain))
        return rows.scale_and_shift(y, gain, shift)

    return operation.register_forward_hook(change)


class BankedBitFit(BankedMethod):
    """b + delta for every bias, as delta added to the output of the layer that has the bias.

    In the families below every bias is added last by a layer that is called once with whole images.
    In bf16 the sum is rounded twice, where one model by itself rounds b + delta once.
    """

    allows_trimming = False

    def find_bucket(self, backbone: LoadedBackbone, spec: AdapterSpec) -> int | None:  # noqa: ARG002 - no size
        """Return 0 in the plain ViT and Swin, None in other families."""
        return 0 if type(backbone.module) in (VisionTransformer, SwinTransformer) else None

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - no size
        """Return a vector for each bias."""
        biases = find_biases(backbone.module)
        return {name: (bias.shape[0],) for name, bias in biases.items()}

    def pack(
        self,
        backbone: LoadedBackbone,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no settings
        state: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Return the differences as they are."""
        return {name: state[f"adapters.{name}"] for name in find_biases(backbone.module)}

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the output of every layer with a bias."""
        return [
            _shift(backbone.module.get_submodule(name.rpartition(".")[0]), read, name)
            for name in find_biases(backbone.module)
        ]


def _shift(layer: nn.Module, read: ReadRows, name: str) -> RemovableHandle:
    def change(module: nn.Module, __: tuple[Any, ...], y: Tensor) -> Tensor:
        rows = read()
        if isinstance(module, nn.Conv2d):
            return y + _per_plane(rows, name)
        return rows.add_vectors(y, name)

    return layer.register_forward_hook(change)


def _per_plane(rows: Rows, name: str) -> Tensor:
    # A convolution's channels come before rows and columns.
    return rows.vectors(name).transpose(1, 2).unsqueeze(-1)


class BankedNothing(BankedMethod):
    """Linear probing: the network as it is."""

    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        """Return nothing."""
        return {}

    def pack(
        self,
        backbone: LoadedBackbone,  # noqa: ARG002
        spec: AdapterSpec,  # noqa: ARG002
        state: Mapping[str, Tensor],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:  # noqa: ARG002
        """Hook nothing."""
        return []
