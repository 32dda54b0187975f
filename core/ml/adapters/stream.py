"""Change the residual stream of a block at its three points: both branches' ends and its output.

Kinds of adapters see channels-last tensors here, whatever the family: (B, N, d) or (B, H, W, d).
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.backbones.blocks import ResidualBlock

#: From the stream that a branch reads and what the branch would add to it, to what it shall add.
BranchChange = Callable[[Tensor, Tensor], Tensor]

_TOKENS_NDIM = 3


def change_attention_branch(block: ResidualBlock, change: BranchChange) -> list[RemovableHandle]:
    """Replace what the attention branch adds by `change(x, branch)`, x the stream before it.

    Both come after stochastic depth, and in the same shape.
    """
    assert block.attention_input is not None, "kinds that need this branch refuse such networks"
    assert block.drop_path1 is not None, "it ends the branch"
    return _change_branch(block, block.attention_input, block.drop_path1, change)


def change_mlp_branch(block: ResidualBlock, change: BranchChange) -> list[RemovableHandle]:
    """Replace what the MLP branch adds by `change(y, branch)`, y the stream before it.

    Both come after stochastic depth, and in the same shape.
    """
    return _change_branch(block, block.mlp_input, block.drop_path2, change)


def change_output(block: ResidualBlock, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Replace the block's output z by `change(z)`."""

    def replace(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        stream, rest = (output[0], output[1:]) if block.returns_tuple else (output, ())
        changed = _back(change(_channels_last(stream, block.channels_first)), block.channels_first)
        return (changed, *rest) if block.returns_tuple else changed

    return block.module.register_forward_hook(replace)


def _change_branch(
    block: ResidualBlock, reader: nn.Module, end: nn.Module, change: BranchChange
) -> list[RemovableHandle]:
    channels_first = block.branches_channels_first
    within = _Pass()

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        within.read.append(inputs[0])

    def replace(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        stream = _channels_last(within.read.pop(), channels_first)
        branch = _channels_last(output, channels_first)
        if stream.ndim == branch.ndim == _TOKENS_NDIM:
            stream = stream[:, : branch.shape[1]]  # a trimmed block answers for its first token
        return _back(change(stream.reshape(branch.shape), branch), channels_first)

    return [
        reader.register_forward_pre_hook(remember),
        end.register_forward_hook(replace),
    ]


class _Pass(threading.local):
    """What one pass through a block has read; passes in other threads have their own."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []


def _channels_last(x: Tensor, channels_first: bool) -> Tensor:  # noqa: FBT001
    return x.permute(0, 2, 3, 1) if channels_first else x


def _back(x: Tensor, channels_first: bool) -> Tensor:  # noqa: FBT001
    return x.permute(0, 3, 1, 2) if channels_first else x
