"""What every adapter kind has in common: its settings, its bottleneck, the seam for a new one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from core.catalog.methods import AdapterKind
from core.errors import InvalidError
from core.ml.backbones.blocks import ResidualBlock

MAX_HIDDEN_DIM = 4096
_TOKENS_NDIM = 3


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter a model has.

    Attributes:
        kind: where it sits.
        hidden_dim: bottleneck width h.
        scale: factor s of the parallel kinds; the sequential one has none and ignores it.
    """

    kind: AdapterKind
    hidden_dim: int
    scale: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", AdapterKind(self.kind))
        if not 1 <= self.hidden_dim <= MAX_HIDDEN_DIM:
            raise InvalidError(
                f"hidden_dim is {self.hidden_dim}; it must lie between 1 and {MAX_HIDDEN_DIM}"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InvalidError(f"scale is {self.scale}; it must be a positive number")


class Bottleneck(nn.Module):
    """A(x) = W_up GELU(W_down x + b_down) + b_up, with the exact (erf) GELU.

    The parameters are fp32 whatever the backbone is; they are rounded to the input's format for the
    arithmetic, so that small updates are not lost.
    """

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden_dim)
        self.up = nn.Linear(hidden_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        return _linear(functional.gelu(_linear(x, self.down)), self.up)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class AdapterMethod(Protocol):
    """One kind of adapter: what is built for a block, and where it attaches.

    Attributes:
        allows_trimming: whether it treats every token by itself and outside of attention, so that
            the last block of a ViT may be run for the class token alone.
    """

    allows_trimming: bool

    def build(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the trainable module of one block whose residual stream is `width` wide."""
        ...

    def attach(
        self, block: ResidualBlock, adapter: nn.Module, spec: AdapterSpec
    ) -> list[RemovableHandle]:
        """Hook `adapter` into `block`; removing the handles leaves the block as it was."""
        ...


class BranchInputs:
    """Remembers, within one pass through a block, the residual stream that a branch reads.

    y, the input of the MLP branch, is what enters `norm2` in pre-norm blocks and `mlp` in post-norm
    ones: in both, what enters whichever of the two runs first.
    """

    def __init__(self) -> None:
        self._attention: Tensor | None = None
        self._mlp: Tensor | None = None

    def watch_attention(self, block: ResidualBlock) -> list[RemovableHandle]:
        """Remember x, the block's input."""

        def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._attention = inputs[0]

        return [block.module.register_forward_pre_hook(remember)]

    def watch_mlp(self, block: ResidualBlock) -> list[RemovableHandle]:
        """Remember y, the stream after the attention branch was added."""

        def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self._mlp is None:
                self._mlp = inputs[0]

        return [part.register_forward_pre_hook(remember) for part in (block.norm2, block.mlp)]

    def take_attention(self) -> Tensor:
        """Return x and forget it."""
        assert self._attention is not None, "drop_path1 ran outside its block"
        taken, self._attention = self._attention, None
        return taken

    def take_mlp(self) -> Tensor:
        """Return y and forget it."""
        assert self._mlp is not None, "drop_path2 ran before norm2 and mlp"
        taken, self._mlp = self._mlp, None
        return taken


def add_to_output(
    module: nn.Module, adapter: nn.Module, scale: float, take_input: Callable[[], Tensor]
) -> RemovableHandle:
    """Hook `module` to return its output plus `scale` times the adapter of `take_input()`."""

    def add(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        stream = take_input()
        if stream.ndim == output.ndim == _TOKENS_NDIM:
            stream = stream[:, : output.shape[1]]  # a trimmed block answers for its first token
        added: Tensor = adapter(stream)
        return output + scale * added.reshape(output.shape)

    return module.register_forward_hook(add)
