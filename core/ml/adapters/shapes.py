"""Names and shapes of adapters and head without building them on real memory."""

from collections.abc import Sequence

import torch
from torch import nn

from core.ml.adapters.base import AdapterSpec, WidthMethod
from core.ml.adapters.registry import ADAPTER_METHODS


def adapter_shapes(
    spec: AdapterSpec, block_widths: Sequence[int], num_features: int, num_classes: int
) -> dict[str, torch.Size] | None:
    """Return the shape of every tensor in an adapted model's state, by name.

    None where they do not follow from the widths: those kinds are checked against the network when
    they are loaded into it.

    Args:
        spec: the adapter.
        block_widths: width of the residual stream in every block.
        num_features: inputs of the head.
        num_classes: outputs of the head.
    """
    method = ADAPTER_METHODS[spec.kind]
    if not isinstance(method, WidthMethod):
        return None
    with torch.device("meta"):
        adapters = method.build_from_widths(block_widths, spec)
        head = nn.Linear(num_features, num_classes)
    parts = nn.ModuleDict({"adapters": adapters, "head": head})
    return {name: parameter.shape for name, parameter in parts.named_parameters()}
