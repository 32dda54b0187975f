"""Layers with fp32 weights, applied in the number format of what they are given."""

from torch import Tensor, nn
from torch.nn import functional


def rounded_norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """Apply an fp32 layer norm to `x`, (..., width), in the format of `x`."""
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
