"""BitFit: every bias of the network.

Ben Zaken, Ravfogel and Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning" (2022).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterMethod, AdapterSpec
from core.ml.adapters.merging import write_overrides
from core.ml.adapters.named_tensors import NamedTensors
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.parts import find_biases


class BitFit(AdapterMethod):
    """b + delta for each bias b that the network has, delta 0 at the start.

    Which tensors are biases says `find_biases`: those of linear layers, convolutions and norms, and
    vectors such as BEiT's q_bias and v_bias. Layers without a bias get none.

    Differences are what is stored: they are small, they name nothing of the pretrained weights, and
    biases do not decay, so it makes no difference to AdamW.
    """

    allows_trimming = True

    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:  # noqa: ARG002
        """Return a difference for every bias, under its name in the network."""
        biases = find_biases(backbone.module)
        return NamedTensors({name: torch.zeros(bias.shape) for name, bias in biases.items()})

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> None:
        """Set every difference to 0: at first the network is the pretrained one."""
        for delta in adapters.parameters():
            nn.init.zeros_(delta)

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
        """Return b + delta, added in fp32 and rounded to the network's number format."""
        biases = ((n, backbone.get_parameter(n), delta) for n, delta in adapters.named_parameters())
        return {name: (bias + delta).to(bias.dtype) for name, bias, delta in biases}

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:  # noqa: ARG002
        """Write b + delta into the network."""
        write_overrides(backbone, self.overrides(backbone, adapters))
