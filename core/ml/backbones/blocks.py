"""Find the residual blocks of an unmodified timm network and the points where adapters attach.

timm keeps drop-path modules as Identity when the rate is 0, so the ends of the branches are always
there to hook. What differs between families is said by the fields of `ResidualBlock`; which
families are known is in `families`. Nothing here knows what an adapter computes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from core.catalog.backbones import StreamLayout
from core.errors import InvalidError
from core.ml.backbones.families import (
    FAMILIES,
    REFUSED_BLOCKS,
    REFUSED_NETWORKS,
    BlockShape,
    key_of,
)


class UnsupportedBackboneError(InvalidError):
    """The network has no blocks that the injection rule fits."""

    code = "unsupported_backbone"


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """One block: y = x + drop_path1(attention branch), z = y + drop_path2(MLP branch).

    A ConvNeXt block has the second branch alone: z = y + drop_path2(branch), y the block's input.

    A part that is None is not there, or is not called as a module (BEiT applies the weight of `qkv`
    by hand), so that a hook on it would do nothing.

    Attributes:
        name: its dotted name in the network, for example `layers.0.blocks.1`.
        module: the block itself; its output is z.
        width: channels d of y and z, and of what both branches add.
        input_width: channels of the tensor that enters the block; differs from `width` where a
            stage of Hiera or MViTv2 begins.
        layout: of the tensors that enter and leave the block.
        branches_channels_first: whether y, and what comes out of the drop-path modules, are
            (B, d, H, W) rather than channels-last. Swin's MLP branch is (B, H * W, d) although the
            stream is (B, H, W, d): reshape to the output's shape.
        returns_tuple: whether the block's output is (z, something else).
        prefix_tokens: class, distillation and register tokens in front of the patches; 0 in grids.
        grid: rows and columns that the patch tokens of the block's output form, row by row, for
            images of the network's own size; None where they lie in another order (Hiera).
        is_post_norm: whether norms close the branches instead of opening them.
        takes_prompts: whether further tokens may be put behind the prefix tokens.
        heads: attention heads, 0 without attention.
        attention_input: module whose first input is x, shaped like the output of `drop_path1`;
            None without an attention branch, and where x is pooled or widened before the branch
            is added.
        mlp_input: module whose first input is y.
        norm1: norm of the attention branch, None without one.
        attn: attention, None without one.
        drop_path1: last module of the attention branch, None without one.
        norm2: norm of the MLP branch, None in ConvNeXt, where it reads a convolution of y.
        mlp: the MLP.
        drop_path2: last module of the MLP branch.
        qkv: linear layer of queries, keys and values in one.
        attn_proj: linear layer that ends the attention.
        fc1: first linear layer of the MLP; in gated MLPs value and gate in one.
        fc2: last linear layer of the MLP.
    """

    name: str
    module: nn.Module
    width: int
    input_width: int
    layout: StreamLayout
    branches_channels_first: bool
    returns_tuple: bool
    prefix_tokens: int
    grid: tuple[int, int] | None
    is_post_norm: bool
    takes_prompts: bool
    heads: int
    attention_input: nn.Module | None
    mlp_input: nn.Module
    norm1: nn.Module | None
    attn: nn.Module | None
    drop_path1: nn.Module | None
    norm2: nn.Module | None
    mlp: nn.Module
    drop_path2: nn.Module
    qkv: nn.Linear | None
    attn_proj: nn.Linear | None
    fc1: nn.Linear | None
    fc2: nn.Linear | None

    @property
    def channels_first(self) -> bool:
        """Whether the tensors that enter and leave the block are (B, d, H, W)."""
        return self.layout is StreamLayout.CHANNELS_FIRST


def find_blocks(backbone: nn.Module, image_px: int | None = None) -> tuple[ResidualBlock, ...]:
    """Return the residual blocks of `backbone`, in the order in which they run.

    Args:
        backbone: a timm network.
        image_px: side of its square input; None reads it from the network.

    Raises:
        UnsupportedBackboneError: the family is not known here, or its blocks do not fit.
    """
    family = type(backbone).__name__
    shapes = FAMILIES.get(family)
    if shapes is None:
        reason = REFUSED_NETWORKS.get(family) or (
            f"adapters have places in {', '.join(FAMILIES)} networks of timm"
        )
        raise UnsupportedBackboneError(f"{family} is not supported: {reason}")
    side = read_image_px(backbone) if image_px is None else image_px
    blocks = []
    for name, module in backbone.named_modules():
        key = key_of(module)
        if key in REFUSED_BLOCKS:
            raise UnsupportedBackboneError(f"this {family} is not supported: {REFUSED_BLOCKS[key]}")
        if key in shapes:
            blocks.append(_describe(backbone, name, module, shapes[key], side))
    if not blocks:
        raise UnsupportedBackboneError(
            f"this {family} is not supported: its blocks are none of {', '.join(shapes)}"
        )
    return tuple(blocks)


def read_image_px(backbone: nn.Module) -> int:
    """Return the side of the images that a timm network was made for, 224 where it says nothing."""
    config: Mapping[str, object] = dict(getattr(backbone, "pretrained_cfg", None) or {})
    size = config.get("input_size", (3, 224, 224))
    assert isinstance(size, tuple), "timm keeps channels, height and width here"
    return int(size[-1])


def _describe(
    backbone: nn.Module, name: str, module: nn.Module, shape: BlockShape, image_px: int
) -> ResidualBlock:
    family = type(backbone).__name__
    parts = {child: part for child, part in module.named_children() if part is not None}
    for shortcut in ("shortcut", "shortcut_proj_mlp"):
        if not isinstance(parts.get(shortcut, nn.Identity()), nn.Identity):
            raise UnsupportedBackboneError(
                f"this {family} is not supported: the MLP branch of block {name} changes the width "
                "of the stream"
            )
    if shape.is_single:
        attn = norm1 = norm2 = drop_path1 = attention_input = None
        drop_path2, mlp_input = parts["drop_path"], module
        width = input_width = _norm_width(parts["norm"])
    else:
        attn, norm1, norm2 = parts["attn"], parts["norm1"], parts["norm2"]
        drop_path1, drop_path2 = parts["drop_path1"], parts["drop_path2"]
        width, input_width = _norm_width(norm2), _norm_width(norm1)
        attention_input = module if shape.reads_block_input else norm1
        if _pools_or_widens(module, attn):
            attention_input = None
        mlp_input = parts["mlp"] if shape.is_post_norm else norm2
    mlp = parts["mlp"]
    return ResidualBlock(
        name=name,
        module=module,
        width=width,
        input_width=input_width,
        layout=shape.layout,
        branches_channels_first=shape.branches_channels_first,
        returns_tuple=shape.returns_tuple,
        prefix_tokens=_prefix_tokens(backbone) if shape.layout is StreamLayout.TOKENS else 0,
        grid=_grid(backbone, name, image_px) if shape.is_ordered else None,
        is_post_norm=shape.is_post_norm,
        takes_prompts=shape.takes_prompts and getattr(backbone, "rope", None) is None,
        heads=_heads(attn),
        attention_input=attention_input,
        mlp_input=mlp_input,
        norm1=norm1,
        attn=attn,
        drop_path1=drop_path1,
        norm2=norm2,
        mlp=mlp,
        drop_path2=drop_path2,
        qkv=_qkv(attn),
        attn_proj=_linear(attn, "proj"),
        fc1=_linear(mlp, "fc1"),
        fc2=_linear(mlp, "fc2"),
    )


def _norm_width(norm: nn.Module) -> int:
    weight = norm.weight
    assert isinstance(weight, nn.Parameter), "the norms of the known families have weights"
    return int(weight.shape[0])


def _pools_or_widens(block: nn.Module, attn: nn.Module) -> bool:
    """Say whether the attention branch is added to something other than the block's input."""
    shortcuts = (
        getattr(block, name, None) for name in ("shortcut_proj_attn", "shortcut_pool_attn")
    )
    q_stride = getattr(attn, "q_stride", 1)  # Hiera pools by a number, MViTv2 by a module
    return any(part is not None for part in shortcuts) or bool(
        getattr(block, "do_expand", False) or q_stride != 1
    )


def _prefix_tokens(backbone: nn.Module) -> int:
    return int(getattr(backbone, "num_prefix_tokens", 0))


def _heads(attn: nn.Module | None) -> int:
    for name in ("num_heads", "heads", "groups"):  # Hiera and DaViT have names of their own
        heads = getattr(attn, name, None)
        if heads is not None:
            return int(heads)
    return 0


def _grid(backbone: nn.Module, name: str, image_px: int) -> tuple[int, int] | None:
    """Return rows and columns from timm's own list of strides, by block or by stage.

    Where patches do not fill the image, a ViT leaves a margin out. Pyramids round up or down, each
    in its own way, so there the answer is None.
    """
    number = re.search(r"\d+", name)
    assert number is not None, "blocks are numbered, and in pyramids their stages come first"
    stages = getattr(backbone, "feature_info")  # noqa: B009 - nn.Module types every attribute
    is_pyramid = len({stage["reduction"] for stage in stages}) > 1
    for stage in stages:
        if stage["module"].rpartition(".")[2] == number[0]:
            side, rest = divmod(image_px, int(stage["reduction"]))
            return None if rest and is_pyramid else (side, side)
    return None


def _linear(parent: nn.Module | None, name: str) -> nn.Linear | None:
    part = getattr(parent, name, None)
    return part if isinstance(part, nn.Linear) else None


def _qkv(attn: nn.Module | None) -> nn.Linear | None:
    """Return the fused layer if `forward` calls it and nothing else in the attention reads x."""
    if getattr(attn, "gate", None) is not None:
        return None
    by_hand = getattr(attn, "q_bias", None) is not None
    if by_hand and not getattr(attn, "qkv_bias_separate", False):
        return None  # functional.linear on its weight, with the biases of q and v
    return _linear(attn, "qkv")
