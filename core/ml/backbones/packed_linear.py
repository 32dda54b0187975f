"""Frozen weights in the layout that a CPU multiplies fastest, for inference.

oneDNN multiplies blocks of a weight, and brings a weight that lies in rows into blocks in every
call: of a small batch that is a tenth of the time. Inference does it once.
"""

from collections.abc import Callable
from functools import cache
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def pack_linears(module: nn.Module) -> None:
    """Let every linear layer within `module` multiply by a packed copy of its weight.

    Whoever calls a layer with gradients, with another weight in its place
    (`torch.func.functional_call`), or after the weight has been written to, gets what torch gives.
    Where torch cannot pack, on a GPU for one, nothing happens.

    Args:
        module: a frozen network, where it will stay and in its number format.
    """
    for part in module.modules():
        if type(part) is not nn.Linear or part.weight.device.type != "cpu":
            continue
        if _works(part.weight.dtype):
            # On the instance: calling it still runs its hooks around this forward.
            part.__dict__["forward"] = _PackedForward(part)


def release_unread_weights(module: nn.Module, run: Callable[[], object]) -> None:
    """Free the weights within `module` whose layers are called when it runs.

    Their packed copies take as much, and are all that is needed. Shape and format of a weight stay;
    whoever reads one reads NaN, so that nothing can be computed from it unnoticed. Layers that are
    not called are those whose weight is multiplied by elsewhere, as some families do with that of
    queries, keys and values: theirs stays, and it is the copy that goes.

    Args:
        module: the network.
        run: runs it as it will be run.
    """
    layers = {part: part.__dict__.get("forward") for part in module.modules()}
    packed = {part: own for part, own in layers.items() if isinstance(own, _PackedForward)}
    if not packed:
        return
    for forward in packed.values():
        forward.is_called = False
    run()
    for layer, forward in packed.items():
        if forward.is_called:
            forward.release()
        else:
            del layer.__dict__["forward"]


class _PackedForward:
    """What a layer's `forward` is once its weight is packed."""

    __slots__ = ("_layer", "_packed", "_version", "_weight", "is_called")

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._weight = layer.weight
        self._version = layer.weight._version  # noqa: SLF001 - what writing to it changes
        self._packed = _pack(layer.weight.detach())
        self.is_called = False

    def release(self) -> None:
        """Free the weight."""
        weight = self._weight
        weight.data = weight.data.new_full((1,), torch.nan).expand(weight.shape)
        self._version = weight._version  # noqa: SLF001

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b, (..., in) to (..., out)."""
        self.is_called = True
        layer = self._layer
        own = layer._parameters  # noqa: SLF001 - asking the layer itself takes longer
        weight, bias = own.get("weight"), own.get("bias")
        if weight is not self._weight or weight._version != self._version:  # noqa: SLF001
            return functional.linear(x, layer.weight, layer.bias)
        if torch.is_grad_enabled() or x.dtype != weight.dtype:
            return functional.linear(x, self._packed.to_dense(), bias)
        return _multiply(x, self._packed, bias)

    def __deepcopy__(self, _memo: object) -> NoReturn:
        raise TypeError("a network with packed weights cannot be copied: load it again")


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
        packed = _pack(weight)
        product, dense = _multiply(x, packed, bias).float(), packed.to_dense()
    except (AttributeError, RuntimeError):  # NotImplementedError is one
        return False
    wanted = x.float() @ weight.float().t() + bias.float()
    tolerance = _TOLERANCES[dtype]
    is_close = torch.allclose(product, wanted, atol=tolerance, rtol=tolerance)
    return is_close and torch.equal(dense, weight)
