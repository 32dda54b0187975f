"""Full fine-tuning: every parameter of the network."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterMethod, AdapterSpec
from core.ml.adapters.merging import write_overrides
from core.ml.adapters.named_tensors import NamedTensors
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone


class Full(AdapterMethod):
    """Trains a copy of the network's parameters, in fp32, and runs the network with them.

    The copies are whole values, not differences from the pretrained ones, so that weight decay
    pulls towards 0 as it does wherever a network is fine-tuned. The network itself stays as it is
    and goes on serving others, a teacher on the same backbone among them. The exported file is as
    large as the network.
    """

    allows_trimming = True

    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:  # noqa: ARG002
        """Return room for every parameter, under its name in the network."""
        parameters = backbone.module.named_parameters()
        return NamedTensors({name: torch.zeros(p.shape) for name, p in parameters})

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,
        generator: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> None:
        """Copy the network's parameters."""
        with torch.no_grad():
            for name, tensor in adapters.named_parameters():
                tensor.copy_(backbone.module.get_parameter(name))

    def attach(
        self,
        blocks: Sequence[ResidualBlock],  # noqa: ARG002
        adapters: nn.Module,  # noqa: ARG002
        spec: AdapterSpec,  # noqa: ARG002
        *,
        backbone: nn.Module,  # noqa: ARG002
        draws: torch.Generator | None,  # noqa: ARG002
    ) -> list[RemovableHandle]:
        """Hook nothing; see `overrides`."""
        return []

    def overrides(self, backbone: nn.Module, adapters: nn.Module) -> Mapping[str, Tensor]:
        """Return the copies, rounded to the network's number format."""
        return {
            name: tensor.to(backbone.get_parameter(name).dtype)
            for name, tensor in adapters.named_parameters()
        }

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:  # noqa: ARG002
        """Write the copies into the network."""
        write_overrides(backbone, self.overrides(backbone, adapters))
