"""The adapted model: a frozen backbone, adapters in its blocks and a linear head on top."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.errors import InvalidError
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.inject import attached
from core.ml.adapters.last_block import find_trimmable_block, trimmed
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.frozen_linear import fast_frozen_linears
from core.ml.backbones.load import LoadedBackbone

#: Standard deviation of every weight at the start, head included (the released code's timm
#: initialisation).
INITIAL_STD = 0.02


class AdapterStateError(InvalidError):
    """Stored tensors do not fit the adapters and head that they are loaded into."""

    code = "adapter_state_mismatch"


class AdaptedModel(nn.Module):
    """Logits of a frozen network with adapters.

    The backbone is held by reference and is not a submodule: `parameters()` and `state_dict()` are
    those of the adapters and the head, `adapters.N.…` and `head.…`, and `.to()` moves nothing else.
    Any number of adapted models may share one backbone, from one thread at a time.

    Args:
        backbone: the frozen network.
        spec: the adapter.
        num_classes: outputs C of the head.
        seed: of the initial weights: N(0, 0.02²), biases 0.
    """

    def __init__(
        self, backbone: LoadedBackbone, spec: AdapterSpec, num_classes: int, *, seed: int
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InvalidError(f"a head of {num_classes} classes cannot be built")
        self.backbone = backbone
        self.spec = spec
        method = ADAPTER_METHODS[spec.kind]
        self._last_block = [
            find_trimmable_block(backbone.module) if method.allows_trimming else None
        ]  # in a list, or it would become a submodule
        self.adapters = nn.ModuleList(method.build(width, spec) for width in backbone.block_widths)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self._initialise(torch.Generator().manual_seed(seed))
        self.to(backbone.device)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return fp32 logits.

        Args:
            images: (batch, 3, image_px, image_px), normalised, in the backbone's number format.
            keep: factors of stochastic depth (2 * blocks, batch); None in evaluation.

        Returns:
            (batch, classes).
        """
        with (
            fast_frozen_linears(self.backbone),
            trimmed(self._last_block[0]),
            attached(self.backbone.blocks, list(self.adapters), self.spec, keep=keep),
        ):
            features: Tensor = self.backbone.module(images)
        logits: Tensor = self.head(features.float())
        return logits

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return adapters and head by name: everything that training changes."""
        return dict(self.named_parameters())

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy stored adapters and head into this model.

        Raises:
            AdapterStateError: a name is missing or unknown, a shape differs, or a value is not
                finite.
        """
        check_adapter_state(state, {name: p.shape for name, p in self.named_parameters()})
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(state[name])

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.Linear):
                    part.weight.normal_(0.0, INITIAL_STD, generator=generator)
                    part.bias.zero_()


def check_adapter_state(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Check stored tensors against the names and shapes that a model has.

    Raises:
        AdapterStateError: saying the first difference.
    """
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    if missing or unknown:
        first = f"no {missing[0]}" if missing else f"an unknown {unknown[0]}"
        raise AdapterStateError(
            f"the adapter file has {first} ({len(missing)} missing, {len(unknown)} unknown tensors)"
        )
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise AdapterStateError(
                f"{name} is {tuple(state[name].shape)}, this model needs {tuple(shape)}"
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise AdapterStateError(f"{name} holds values that are not finite numbers")
