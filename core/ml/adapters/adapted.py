"""The adapted model: a frozen backbone, adapters in its blocks and a linear head on top."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.errors import InvalidError
from core.ml.adapters.base import AdapterSpec, initialise_linears
from core.ml.adapters.inject import attached
from core.ml.adapters.last_block import find_trimmable_block, trimmed
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.frozen_linear import fast_frozen_linears
from core.ml.backbones.load import LoadedBackbone


class AdapterStateError(InvalidError):
    """Stored tensors do not fit the adapters and head that they are loaded into."""

    code = "adapter_state_mismatch"


@dataclass(frozen=True, eq=False)
class Forward:
    """What a pass through an adapted model gives.

    Attributes:
        logits: fp32 (batch, classes).
        features: fp32 (batch, num_features), what the head reads.
        hidden: outputs of the blocks that were asked for, in that order, in the network's layout
            and number format.
    """

    logits: Tensor
    features: Tensor
    hidden: tuple[Tensor, ...] = ()


class AdaptedModel(nn.Module):
    """Logits of a frozen network with adapters.

    The backbone is held by reference and is not a submodule: `parameters()` and `state_dict()` are
    those of the adapters and the head, `adapters.…` and `head.…`, and `.to()` moves nothing else.
    Any number of adapted models may share one backbone, from one thread at a time.

    Args:
        backbone: the frozen network.
        spec: the adapter.
        num_classes: outputs C of the head.
        seed: of the initial weights; the head's are N(0, 0.02²) with bias 0, the adapters' as
            their kind defines.

    Raises:
        UnsupportedAdapterError: the kind has no place in this network.
    """

    def __init__(
        self, backbone: LoadedBackbone, spec: AdapterSpec, num_classes: int, *, seed: int
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InvalidError(f"a head of {num_classes} classes cannot be built")
        method = ADAPTER_METHODS[spec.kind]
        method.check(backbone, spec)
        self.backbone = backbone
        self.spec = spec
        self._last_block = [
            find_trimmable_block(backbone.module) if method.allows_trimming else None
        ]  # in a list, or it would become a submodule
        self.adapters = method.build(backbone, spec)
        self.head = nn.Linear(backbone.num_features, num_classes)
        generator = torch.Generator().manual_seed(seed)
        method.initialise(self.adapters, backbone, generator)
        initialise_linears(self.head, generator)
        self.to(backbone.device)

    def forward(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        draws: torch.Generator | None = None,
    ) -> Tensor:
        """Return fp32 logits.

        Args:
            images: (batch, 3, image_px, image_px), normalised, in the backbone's number format.
            keep: factors of stochastic depth (2 * blocks, batch); None in evaluation.
            draws: of dropout and the like, on the images' device; None in evaluation.

        Returns:
            (batch, classes).
        """
        logits: Tensor = self.head(self.features(images, keep, draws))
        return logits

    def features(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        draws: torch.Generator | None = None,
    ) -> Tensor:
        """Return the pooled features that the head reads: fp32 (batch, num_features)."""
        return self._run(images, keep, draws, trim=True)

    def forward_with_hidden(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        draws: torch.Generator | None = None,
        *,
        layers: Sequence[int] = (),
        all_tokens: bool = False,
    ) -> Forward:
        """Return logits, features and the outputs of some blocks, adapters included.

        Args:
            images: as in `forward`.
            keep: likewise.
            draws: likewise.
            layers: indices of blocks, from 0.
            all_tokens: whether every token is wanted; otherwise the last block of a ViT that is
                pooled by its class token gives that token alone, (batch, 1, width).
        """
        hidden: dict[int, Tensor] = {}

        def remember(layer: int, _: nn.Module, __: Any, output: Any) -> None:  # noqa: ANN401
            hidden[layer] = output[0] if isinstance(output, tuple) else output

        def watch(stack: ExitStack) -> None:
            for layer in layers:
                module = self.backbone.blocks[layer].module
                handle = module.register_forward_hook(partial(remember, layer))
                stack.callback(handle.remove)

        features = self._run(images, keep, draws, trim=not all_tokens, watch=watch)
        return Forward(
            logits=self.head(features),
            features=features,
            hidden=tuple(hidden[layer] for layer in layers),
        )

    def _run(
        self,
        images: Tensor,
        keep: Tensor | None,
        draws: torch.Generator | None,
        *,
        trim: bool,
        watch: Callable[[ExitStack], None] | None = None,
    ) -> Tensor:
        module = self.backbone.module
        method = ADAPTER_METHODS[self.spec.kind]
        with ExitStack() as stack:
            stack.enter_context(fast_frozen_linears(self.backbone))
            stack.enter_context(trimmed(self._last_block[0] if trim else None))
            stack.enter_context(
                attached(self.backbone, self.adapters, self.spec, keep=keep, draws=draws)
            )
            if watch is not None:
                watch(stack)  # after the adapters, so that their part is seen
            overrides = method.overrides(module, self.adapters)
            if overrides:
                features = functional_call(module, dict(overrides), (images,))
            else:
                features = module(images)
        return cast(Tensor, features).float()

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
        check_finite(name, state[name])


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a stored tensor that holds values that are not finite numbers.

    Raises:
        AdapterStateError: naming it.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterStateError(f"{name} holds values that are not finite numbers")
