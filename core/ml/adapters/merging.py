"""Write linear changes of activations into the layers around them.

Everything is computed in float64 and rounded once, so that a merged network differs from an adapted
one by rounding alone.
"""

from collections.abc import Mapping
from operator import mod

import torch
from torch import Tensor, nn

from core.catalog.methods import AdapterKind
from core.ml.adapters.base import UnsupportedAdapterError
from core.ml.backbones.blocks import ResidualBlock


def add_to_weight(layer: nn.Linear, change: Tensor) -> None:
    """Set W to W + change."""
    with torch.no_grad():
        layer.weight.copy_(layer.weight.double() + change)


def fold_into_input(
    layer: nn.Linear, matrix: Tensor, shift: Tensor, *, kind: AdapterKind, name: str
) -> None:
    """Make `layer` do what it did to `matrix` z + `shift` when it is given z.

    W (M z + t) + b = (W M) z + (b + W t).

    Args:
        layer: reads the changed activations, (out, in).
        matrix: M, (in, in), applied to column vectors.
        shift: t, (in,).
        kind: of adapter, for the error.
        name: of the layer in the network, likewise.

    Raises:
        UnsupportedAdapterError: the layer has no bias to put the shift into.
    """
    bias = _bias_of(layer, kind, name)
    weight = layer.weight.double()
    with torch.no_grad():
        bias.copy_(bias.double() + weight @ shift.double())
        layer.weight.copy_(weight @ matrix.double())


def fold_into_output(
    layer: nn.Module, scale: Tensor, shift: Tensor, *, kind: AdapterKind, name: str
) -> None:
    """Make a linear layer, convolution or norm give `scale` * y + `shift` where it gave y.

    Args:
        layer: has a `weight` whose first dimension is the output's channels, and a `bias`.
        scale: (channels,).
        shift: (channels,).
        kind: of adapter, for the error.
        name: of the layer in the network, likewise.

    Raises:
        UnsupportedAdapterError: the layer has no bias to put the shift into.
    """
    bias = _bias_of(layer, kind, name)
    weight = layer.weight
    assert isinstance(weight, nn.Parameter), "layers without a weight have no place for adapters"
    with torch.no_grad():
        bias.copy_(scale.double() * bias.double() + shift.double())
        column = scale.double().view(-1, *[1] * (weight.ndim - 1))
        weight.copy_(column * weight.double())


def write_overrides(backbone: nn.Module, overrides: Mapping[str, Tensor]) -> None:
    """Copy the tensors that stand in for parameters of the network into them."""
    with torch.no_grad():
        for name, tensor in overrides.items():
            backbone.get_parameter(name).copy_(tensor)


def refuse_padding(kind: AdapterKind, block: ResidualBlock) -> None:
    """Refuse to merge a change of attention's input where attention pads that input with zeros.

    The adapter changes tokens before they are padded; a merged layer would change the padding too.

    Raises:
        UnsupportedAdapterError: saying so.
    """
    window = getattr(block.module, "window_size", None)
    if window is None:
        return
    if block.grid is None or any(map(mod, block.grid, window)):
        raise not_mergeable(kind, f"{block.name} pads its tokens to whole windows of {window}")


def not_mergeable(kind: AdapterKind, reason: str) -> UnsupportedAdapterError:
    """Return the error of a kind that cannot be merged into a certain network."""
    return UnsupportedAdapterError(
        f"this {kind.value} cannot be merged into the backbone: {reason}; export adapter and head "
        "instead",
        code="not_mergeable",
    )


def _bias_of(layer: nn.Module, kind: AdapterKind, name: str) -> nn.Parameter:
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, nn.Parameter):
        raise not_mergeable(kind, f"{name} has no bias that could take its shift")
    return bias
