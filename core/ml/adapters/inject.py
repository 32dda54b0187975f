"""Attach adapters and drop-path to a network for the length of a forward, and take them off again.

The network is neither edited nor copied: everything hangs on forward hooks, so any number of
adapted models can take turns on one network. Two threads cannot: whoever shares a network between
threads holds a lock.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.blocks import ResidualBlock


@contextmanager
def attached(
    blocks: Sequence[ResidualBlock],
    adapters: Sequence[nn.Module],
    spec: AdapterSpec,
    *,
    keep: Tensor | None = None,
) -> Iterator[None]:
    """Run the body with `adapters` in place.

    Args:
        blocks: where, from `find_blocks`.
        adapters: one module a block.
        spec: their kind and scale.
        keep: factors of stochastic depth, (2 * blocks, batch), from `sample_drop_path`; None drops
            nothing.
    """
    handles: list[RemovableHandle] = []
    method = ADAPTER_METHODS[spec.kind]
    try:
        for index, (block, adapter) in enumerate(zip(blocks, adapters, strict=True)):
            # Hooks run in the order of registration: stochastic depth acts on the bare branch, and
            # the adapter's part is added outside of it.
            if keep is not None:
                handles.append(_drop(block.drop_path1, keep[2 * index]))
                handles.append(_drop(block.drop_path2, keep[2 * index + 1]))
            handles.extend(method.attach(block, adapter, spec))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(module: nn.Module, keep: Tensor) -> RemovableHandle:
    def scale(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * keep.to(output.dtype).view(-1, *[1] * (output.ndim - 1))

    return module.register_forward_hook(scale)
