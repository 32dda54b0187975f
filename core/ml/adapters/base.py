"""The seam behind which every adapter kind lives: its settings, what it builds, where it attaches.

A kind is a class in a file of its own, listed in `registry`. Most kinds have one module in every
block and are `BlockMethod`s; `AdapterMethod` is the whole protocol.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.catalog.adapters import ADAPTERS
from core.catalog.methods import AdapterKind
from core.errors import InvalidError
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone

MAX_HIDDEN_DIM = 4096
#: Standard deviation of weights at the start, head included (the released code's timm
#: initialisation).
INITIAL_STD = 0.02


class UnsupportedAdapterError(InvalidError):
    """This kind of adapter has no place in that family of networks."""

    code = "unsupported_adapter"


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter a model has.

    Attributes:
        kind: what it is.
        hidden_dim: its size: bottleneck width, rank or number of prompt tokens, as the kind
            defines; 0 for kinds that have none.
        scale: factor s of the kinds that have a fixed one; the others ignore it.
    """

    kind: AdapterKind
    hidden_dim: int
    scale: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", AdapterKind(self.kind))
        if ADAPTERS[self.kind].hidden_dim_means is None:
            object.__setattr__(self, "hidden_dim", 0)
        elif not 1 <= self.hidden_dim <= MAX_HIDDEN_DIM:
            raise InvalidError(
                f"hidden_dim is {self.hidden_dim}; it must lie between 1 and {MAX_HIDDEN_DIM}"
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InvalidError(f"scale is {self.scale}; it must be a positive number")


class AdapterMethod(ABC):
    """One kind of adapter.

    Attributes:
        allows_trimming: whether it treats every token by itself and outside of attention, so that
            the last block of a ViT may be run for the class token alone.
        is_random: whether training draws random numbers inside of it (dropout, experts).
        consistency_weight: factor of the symmetric KL divergence between two draws of the same
            batch that this kind adds to its model's loss; 0 for nearly all.
    """

    allows_trimming: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    consistency_weight: ClassVar[float] = 0.0

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:  # noqa: B027 - most kinds fit anywhere
        """Refuse a network that this kind has no place in.

        Raises:
            UnsupportedAdapterError: naming kind, family and reason.
        """

    @abstractmethod
    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:
        """Return everything trainable but the head, not yet initialised."""

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - some kinds start from its weights
        generator: torch.Generator,
    ) -> None:
        """Set the initial weights in place; by default N(0, 0.02²), biases 0 (method of iDAT)."""
        initialise_linears(adapters, generator)

    @abstractmethod
    def attach(
        self,
        blocks: Sequence[ResidualBlock],
        adapters: nn.Module,
        spec: AdapterSpec,
        *,
        backbone: nn.Module,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook `adapters` into a network; removing the handles leaves it as it was.

        Args:
            blocks: the network's residual blocks.
            adapters: what `build` returned.
            spec: kind, size and scale.
            backbone: the whole network, for kinds that also attach outside of the blocks.
            draws: where dropout and the like draw from, on the network's device; None in
                evaluation, where nothing is drawn.
        """

    def overrides(
        self,
        backbone: nn.Module,  # noqa: ARG002 - used by kinds that have any
        adapters: nn.Module,  # noqa: ARG002
    ) -> Mapping[str, Tensor]:
        """Return tensors that stand in for parameters of the network, by their names in it."""
        return {}

    def merge(
        self,
        backbone: nn.Module,
        adapters: nn.Module,
        spec: AdapterSpec,
    ) -> None:
        """Write the adapters into a private copy of the network, in place.

        Raises:
            UnsupportedAdapterError: this kind is not a linear change of the network's weights.
        """
        del backbone, adapters
        raise UnsupportedAdapterError(
            f"{spec.kind.value} cannot be merged into the backbone: it is not a linear change of "
            "its weights; export adapter and head instead",
            code="not_mergeable",
        )


class WidthMethod(AdapterMethod):
    """A kind whose tensors have shapes that follow from the widths of the blocks."""

    @abstractmethod
    def build_from_widths(self, widths: Sequence[int], spec: AdapterSpec) -> nn.Module:
        """Return everything trainable but the head, for blocks of these widths."""

    def build(self, backbone: LoadedBackbone, spec: AdapterSpec) -> nn.Module:
        """Return everything trainable but the head."""
        return self.build_from_widths(backbone.block_widths, spec)


class BlockMethod(WidthMethod):
    """A kind with one module in every block, named `adapters.N`."""

    @abstractmethod
    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the trainable module of one block whose residual stream is `width` wide."""

    @abstractmethod
    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook one block's module into it."""

    def build_from_widths(self, widths: Sequence[int], spec: AdapterSpec) -> nn.Module:
        """Return one module a block."""
        return nn.ModuleList(self.build_block(width, spec) for width in widths)

    def attach(
        self,
        blocks: Sequence[ResidualBlock],
        adapters: nn.Module,
        spec: AdapterSpec,
        *,
        backbone: nn.Module,  # noqa: ARG002 - nothing outside of the blocks
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook every block."""
        pairs = zip(blocks, cast(nn.ModuleList, adapters), strict=True)
        return [
            handle
            for block, adapter in pairs
            for handle in self.attach_block(block, adapter, spec, draws)
        ]


def initialise_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of every linear layer in `module` from N(0, 0.02²); set biases to 0."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(0.0, INITIAL_STD, generator=generator)
                if part.bias is not None:
                    part.bias.zero_()


def refuse_unless(fits: bool, kind: AdapterKind, backbone: LoadedBackbone, reason: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Refuse a network that a kind has no place in.

    Raises:
        UnsupportedAdapterError: naming kind, family and reason, as the catalog does without torch.
    """
    if not fits:
        family = type(backbone.module).__name__
        raise UnsupportedAdapterError(
            f"{kind.value} cannot be put into {family} ({backbone.name}): {reason}"
        )
