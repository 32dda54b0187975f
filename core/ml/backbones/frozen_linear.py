"""Faster fp32 matrix products with frozen weights on a CPU.

torch sends fp32 linear layers to MKL, which on processors of other makers runs at 60 to 90 % of
what oneDNN reaches on the same shapes; oneDNN is in torch as well, behind an operator without a
gradient. A frozen weight needs the gradient of its input alone, which is one more product of the
same kind.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from core.ml.backbones.load import LoadedBackbone

_TOLERANCE = 1e-4


class FastFrozenLinears(TorchFunctionMode):
    """Within this context, `functional.linear` with a frozen fp32 weight on a CPU runs in oneDNN.

    Everything else is as it was. It holds for the thread that enters it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever func returns
        """Replace one function and pass on all others."""
        if func is functional.linear and not kwargs and _is_frozen_fp32(args):
            x, weight, bias = args if len(args) == 3 else (*args, None)  # noqa: PLR2004
            return _FrozenLinear.apply(x, weight, bias)
        return func(*args, **(kwargs or {}))


def fast_frozen_linears(backbone: LoadedBackbone) -> AbstractContextManager[object]:
    """Return the context in which `backbone` runs fastest, which may be an empty one."""
    helps = backbone.device.type == "cpu" and backbone.dtype == torch.float32 and _works()
    return FastFrozenLinears() if helps else nullcontext()


def _is_frozen_fp32(args: tuple[Any, ...]) -> bool:
    weight = args[1]
    bias = args[2] if len(args) > 2 else None  # noqa: PLR2004
    if bias is not None and bias.requires_grad:
        return False  # a kind that learns biases needs their gradient
    return (
        args[0].dtype == weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and not weight.requires_grad
        and not torch.is_autocast_enabled("cpu")
    )


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b, differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        return _product(grad, weight.t(), None), None, None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
    return product


@cache
def _works() -> bool:
    """Say whether the operator is in this torch and computes what it should."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(*shape, generator=generator)
        for shape in ((5, 7, 32), (48, 32), (48,), (5, 7, 48))
    )
    try:
        pairs = (
            (_product(x, weight, bias), x @ weight.t() + bias),
            (_product(grad, weight.t(), None), grad @ weight),
        )
    except (AttributeError, RuntimeError):
        return False
    return all(torch.allclose(a, b, atol=_TOLERANCE, rtol=_TOLERANCE) for a, b in pairs)
