"""Frozen weights in the layout that a CPU multiplies fastest, for inference.

oneDNN multiplies blocks of a weight, and brings a weight that lies in rows into blocks in every
call: of a small batch that is a tenth of the time. Inference does it once.
"""

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def pack_linears(module: nn.Module) -> None:
    """Let every linear layer within `module` multiply by a packed copy of its weight.

    A copy takes as much memory as the weight, which stays: whoever calls a layer with gradients, or
    with another weight in its place (`torch.func.functional_call`), gets what torch gives. Where
    torch cannot pack, on a GPU for one, nothing happens.

    Args:
        module: a frozen network, where it will stay and in its number format.
    """
    for part in module.modules():
        if (
            type(part) is nn.Linear
            and part.weight.device.type == "cpu"
            and _works(part.weight.dtype)
        ):
            weight = part.weight
            # On the instance: calling it still runs its hooks around this forward.
            part.__dict__["forward"] = partial(_forward, part, weight, _pack(weight.detach()))


def _forward(layer: nn.Linear, weight: Tensor, packed: Tensor, x: Tensor) -> Tensor:
    if layer.weight is not weight or torch.is_grad_enabled() or x.dtype != weight.dtype:
        return functional.linear(x, layer.weight, layer.bias)
    return _multiply(x, packed, layer.bias)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)  # noqa: SLF001
    return packed


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # noqa: SLF001
    return product


@cache
def _works(dtype: torch.dtype) -> bool:
    """Say whether this torch can pack weights of that format here, and multiplies by them right."""
    if dtype not in _TOLERANCES:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((5, 7, 32), (48, 32), (48,))
    )
    try:
        product = _multiply(x, _pack(weight), bias).float()
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return False
    wanted = x.float() @ weight.float().t() + bias.float()
    tolerance = _TOLERANCES[dtype]
    return torch.allclose(product, wanted, atol=tolerance, rtol=tolerance)
