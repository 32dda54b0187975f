"""SSF: a scale and a shift for each channel after every operation.

Lian et al., "Scaling & Shifting Your Features" (2022), as in dongzelian/SSF.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import INITIAL_STD, AdapterMethod, AdapterSpec, refuse_unless
from core.ml.adapters.merging import fold_into_output
from core.ml.adapters.named_tensors import NamedTensors
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.parts import find_operations

_SCALE, _SHIFT = "scale", "shift"


class Ssf(AdapterMethod):
    """gamma * y + beta after each of the operations of `find_operations`.

    These are the patch projection, norm1, qkv, attention's projection, norm2, fc1 and fc2 of every
    block, and the final norm: what the paper lists for a ViT. In pyramids the layers between the
    stages keep their outputs, so that the definition is the same for every family; the public code
    for Swin changes those too.

    gamma and beta lie under the operation's name in the network, `blocks.0.attn.qkv.scale` and
    `….shift`. Both are vectors, so they do not decay.
    """

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks of which an operation cannot be hooked."""
        refuse_unless(
            find_operations(backbone.module, backbone.blocks) is not None,
            spec.kind,
            backbone,
            "its operations cannot all be hooked one by one",
        )

    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:  # noqa: ARG002
        """Return two vectors for each operation."""
        operations = find_operations(backbone.module, backbone.blocks)
        assert operations is not None, "checked just before"
        tensors = {}
        for name, operation in operations.items():
            weight = operation.weight
            assert isinstance(weight, nn.Parameter), "operations have weights"
            for vector in (_SCALE, _SHIFT):
                tensors[f"{name}.{vector}"] = torch.zeros(weight.shape[0])
        return NamedTensors(tensors)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Draw gamma from N(1, 0.02²) and beta from N(0, 0.02²)."""
        for name, vector in adapters.named_parameters():
            mean = 1.0 if name.endswith(f".{_SCALE}") else 0.0
            nn.init.normal_(vector, mean, INITIAL_STD, generator=generator)

    def attach(
        self,
        blocks: Sequence[ResidualBlock],  # noqa: ARG002 - names say where
        adapters: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no settings
        *,
        backbone: nn.Module,
        draws: torch.Generator | None,  # noqa: ARG002 - nothing is drawn
    ) -> list[RemovableHandle]:
        """Hook the output of every operation."""
        return [
            _change(backbone.get_submodule(name), scale, shift)
            for name, (scale, shift) in _pairs(adapters).items()
        ]

    def merge(self, backbone: nn.Module, adapters: nn.Module, spec: AdapterSpec) -> None:
        """Put every scale and shift into its operation: W to diag(gamma) W, b to gamma b + beta."""
        for name, (scale, shift) in _pairs(adapters).items():
            layer = backbone.get_submodule(name)
            fold_into_output(layer, scale, shift, kind=spec.kind, name=name)


def _pairs(adapters: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return gamma and beta by the name of their operation."""
    tensors = dict(adapters.named_parameters())
    names = (name.removesuffix(f".{_SCALE}") for name in tensors if name.endswith(f".{_SCALE}"))
    return {name: (tensors[f"{name}.{_SCALE}"], tensors[f"{name}.{_SHIFT}"]) for name in names}


def _change(operation: nn.Module, scale: Tensor, shift: Tensor) -> RemovableHandle:
    # A convolution's channels come before rows and columns, everything else's come last.
    shape = (-1, 1, 1) if isinstance(operation, nn.Conv2d) else (-1,)

    def change(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        gamma, beta = (vector.to(output.dtype).view(shape) for vector in (scale, shift))
        return output * gamma + beta

    return operation.register_forward_hook(change)
