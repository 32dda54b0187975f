"""Attach adapters and drop-path to a network for the length of a forward, and take them off again.

The network is neither edited nor copied: everything hangs on forward hooks, so any number of
adapted models can take turns on one network. Two threads cannot: whoever shares a network between
threads holds a lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.load import LoadedBackbone


@contextmanager
def attached(
    backbone: LoadedBackbone,
    adapters: nn.Module,
    spec: AdapterSpec,
    *,
    keep: Tensor | None = None,
    draws: torch.Generator | None = None,
) -> Iterator[None]:
    """Run the body with `adapters` in place.

    Args:
        backbone: the network.
        adapters: what the kind's `build` returned for it.
        spec: their kind, size and scale.
        keep: factors of stochastic depth, (2 * blocks, batch), from `sample_drop_path`; None drops
            nothing.
        draws: as in `AdapterMethod.attach`; None in evaluation.
    """
    handles: list[RemovableHandle] = []
    try:
        # Hooks run in the order of registration: stochastic depth acts on the bare branch, and the
        # adapter's part is added outside of it.
        if keep is not None:
            for index, block in enumerate(backbone.blocks):
                for branch, part in enumerate((block.drop_path1, block.drop_path2)):
                    if part is not None:  # blocks with one branch have no first
                        handles.append(_drop(part, keep[2 * index + branch]))
        method = ADAPTER_METHODS[spec.kind]
        handles.extend(
            method.attach(backbone.blocks, adapters, spec, backbone=backbone.module, draws=draws)
        )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(module: nn.Module, keep: Tensor) -> RemovableHandle:
    def scale(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * keep.to(output.dtype).view(-1, *[1] * (output.ndim - 1))

    return module.register_forward_hook(scale)
