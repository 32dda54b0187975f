"""The sequential adapter: after the block, with a residual of its own (paper, Sec. 3.2)."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, Bottleneck
from core.ml.backbones.blocks import ResidualBlock


class Sequential:
    """z -> z + A(z), with z the block's output: un-normalised, no scale, outside drop-path."""

    allows_trimming = True

    def build(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the bottleneck of one block."""
        return Bottleneck(width, spec.hidden_dim)

    def attach(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no scale
    ) -> list[RemovableHandle]:
        """Hook the block's output."""

        def extend(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            extended: Tensor = output + adapter(output)
            return extended

        return [block.module.register_forward_hook(extend)]
