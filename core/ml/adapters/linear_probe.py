"""Linear probing: nothing inside of the network, only the head on its pooled features learns."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, WidthMethod
from core.ml.backbones.blocks import ResidualBlock


class LinearProbe(WidthMethod):
    """logits = W f(x) + b with f frozen.

    Nothing in the network asks for a gradient, so torch records no graph through it, and a step
    costs one forward of it and no backward.
    """

    allows_trimming = True

    def build_from_widths(self, widths: Sequence[int], spec: AdapterSpec) -> nn.Module:  # noqa: ARG002
        """Return a module without parameters."""
        return nn.ModuleList()

    def attach(
        self,
        blocks: Sequence[ResidualBlock],  # noqa: ARG002
        adapters: nn.Module,  # noqa: ARG002
        spec: AdapterSpec,  # noqa: ARG002
        *,
        backbone: nn.Module,  # noqa: ARG002
        draws: torch.Generator | None,  # noqa: ARG002
    ) -> list[RemovableHandle]:
        """Hook nothing."""
        return []

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:
        """Leave the network as it is: the head is all there is."""
