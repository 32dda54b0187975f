"""The residual stream of a block as adapters read it and add to it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.backbones.blocks import ResidualBlock

_TOKENS_NDIM = 3


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
    module: nn.Module,
    adapter: nn.Module,
    scale: float,
    take_input: Callable[[], Tensor],
    draws: torch.Generator | None = None,
) -> RemovableHandle:
    """Hook `module` to return its output plus `scale` times the adapter of `take_input()`."""

    def add(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        stream = take_input()
        if stream.ndim == output.ndim == _TOKENS_NDIM:
            stream = stream[:, : output.shape[1]]  # a trimmed block answers for its first token
        added: Tensor = adapter(stream, draws)
        return output + scale * added.reshape(output.shape)

    return module.register_forward_hook(add)
