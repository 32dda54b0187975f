"""Parts of a timm network outside of its blocks, and its biases, wherever a family keeps them."""

from collections.abc import Sequence

from torch import nn

from core.ml.backbones.blocks import ResidualBlock

_PROJECTIONS = ("patch_embed.proj", "embeds.proj")
_FINAL_NORMS = ("norm", "fc_norm", "head.norm")


def find_patch_projection(backbone: nn.Module) -> nn.Conv2d | nn.Linear | None:
    """Return the layer that turns patches into tokens, or None where a stem of several does."""
    for name in _PROJECTIONS:
        part = _find(backbone, name)
        if isinstance(part, nn.Conv2d | nn.Linear):
            return part
    return None


def find_final_norm(backbone: nn.Module) -> nn.Module | None:
    """Return the last norm in front of the pooled features, or None."""
    for name in _FINAL_NORMS:
        part = _find(backbone, name)
        if part is not None and isinstance(getattr(part, "weight", None), nn.Parameter):
            return part
    return None


def find_biases(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Return every bias by name: `….bias`, and vectors such as BEiT's `q_bias` and `v_bias`.

    Tables of relative positions are biases of attention scores, not of an operation's output, and
    are left out.
    """
    return {
        name: parameter
        for name, parameter in backbone.named_parameters()
        if name.rpartition(".")[2] == "bias" or (name.endswith("_bias") and parameter.ndim == 1)
    }


def find_operations(
    backbone: nn.Module, blocks: Sequence[ResidualBlock]
) -> dict[str, nn.Module] | None:
    """Return the operations whose output SSF changes, by name, or None if one cannot be hooked.

    They are the patch projection; norm1, qkv, attention's projection, norm2, fc1 and fc2 of every
    block; and the final norm.
    """
    operations: list[nn.Module | None] = [find_patch_projection(backbone)]
    for block in blocks:
        operations += [block.norm1, block.qkv, block.attn_proj, block.norm2, block.fc1, block.fc2]
    operations.append(find_final_norm(backbone))
    names = {module: name for name, module in backbone.named_modules()}
    found = [operation for operation in operations if operation is not None]
    if len(found) < len(operations):
        return None
    return {names[operation]: operation for operation in found}


def _find(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None
