"""Find the residual blocks of an unmodified timm network and the points where adapters attach.

A supported block has the children `norm1`, `attn`, `drop_path1`, `norm2`, `mlp` and `drop_path2`
and two residual branches, whatever its class: ViT, DeiT, DINOv2, CLIP, SigLIP, BEiT, EVA-02, Swin,
Swin-V2 and more. timm keeps the two drop-path modules as Identity when the rate is 0, so their
outputs are always there to hook.

This module does not know what an adapter computes.
"""

from dataclasses import dataclass

from torch import nn

from core.errors import InvalidError

_CHILDREN = ("norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2")

#: Children that scale a branch and leave its place alone (LayerScale).
_HARMLESS = frozenset({"ls1", "ls2"})


class UnsupportedBackboneError(InvalidError):
    """The network has no blocks that the injection rule fits."""

    code = "unsupported_backbone"


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """One transformer block: y = x + drop_path1(attention branch), z = y + drop_path2(MLP branch).

    Attributes:
        name: its dotted name in the network, for example `layers.0.blocks.1`.
        module: the block itself; its first input is x, its output z.
        width: channels d of the residual stream in this block.
    """

    name: str
    module: nn.Module
    width: int

    @property
    def norm2(self) -> nn.Module:
        """The second norm: reads y in pre-norm blocks, the MLP's output in post-norm ones."""
        return self.module.get_submodule("norm2")

    @property
    def mlp(self) -> nn.Module:
        """The MLP: reads y in post-norm blocks."""
        return self.module.get_submodule("mlp")

    @property
    def drop_path1(self) -> nn.Module:
        """Last module of the attention branch."""
        return self.module.get_submodule("drop_path1")

    @property
    def drop_path2(self) -> nn.Module:
        """Last module of the MLP branch."""
        return self.module.get_submodule("drop_path2")


def find_blocks(backbone: nn.Module) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks of `backbone`, first to last.

    Raises:
        UnsupportedBackboneError: no block of the known shape, or a block that changes its width or
            has a branch besides attention and MLP.
    """
    family = type(backbone).__name__
    blocks = []
    for name, module in backbone.named_modules():
        children = dict(module.named_children())
        if not all(child in children for child in _CHILDREN):
            continue
        others = {
            child
            for child, part in children.items()
            if child not in _CHILDREN
            and child not in _HARMLESS
            and any(True for _ in part.parameters())
        }
        if others:
            raise UnsupportedBackboneError(
                f"{family}: block {name} has parts besides attention and MLP "
                f"({', '.join(sorted(others))}), so an adapter's place in it is not defined"
            )
        before, after = _norm_width(children["norm1"]), _norm_width(children["norm2"])
        if before is None or before != after:
            raise UnsupportedBackboneError(
                f"{family}: block {name} changes its width from {before} to {after}"
            )
        blocks.append(ResidualBlock(name, module, before))
    if not blocks:
        raise UnsupportedBackboneError(
            f"{family} has no transformer block with {', '.join(_CHILDREN)}; "
            "adapters go into ViT and Swin style networks"
        )
    return tuple(blocks)


def _norm_width(norm: nn.Module) -> int | None:
    weight = getattr(norm, "weight", None)
    return int(weight.shape[0]) if weight is not None else None
