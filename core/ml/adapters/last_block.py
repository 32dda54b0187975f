"""Run the last block of a plain ViT for its class token alone.

A ViT that is pooled by its class token throws away every other output of its last block. There the
queries, the projection, the MLP and the adapter of the other tokens need not be computed at all;
keys and values still are. The result is the same up to rounding, for about 7 % less work at depth
12 and 13 % at depth 6.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

_BLOCK_PARTS = frozenset(
    {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
)
_ATTENTION_PARTS = frozenset({"qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"})


def find_trimmable_block(backbone: nn.Module) -> nn.Module | None:
    """Return the last block of `backbone` if only its class token is ever read, or None."""
    if type(backbone) is not VisionTransformer or backbone.global_pool != "token":
        return None
    if getattr(backbone, "attn_pool", None) is not None or not backbone.has_class_token:
        return None
    block = list(backbone.get_submodule("blocks").children())[-1]
    if type(block) is not Block or type(block.attn) is not Attention:
        return None
    parts = {name for name, _ in block.named_children()} - _BLOCK_PARTS
    parts |= {name for name, _ in block.attn.named_children()} - _ATTENTION_PARTS
    return None if parts else block


@contextmanager
def trimmed(block: nn.Module | None) -> Iterator[None]:
    """Make `block` return its class token's output alone, (batch, 1, width), within this context.

    Its hooks and those of its parts run as ever, on one token. None changes nothing.
    """
    if block is None:
        yield
        return
    # On the instance, for now: calling it still runs its hooks around this forward.
    block.__dict__["forward"] = partial(_forward, block)
    try:
        yield
    finally:
        del block.__dict__["forward"]


def _forward(block: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - timm declares no parts
    attended = block.ls1(_attend(block.attn, block.norm1(x)))
    y = x[:, :1] + block.drop_path1(attended)
    z: Tensor = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
    return z


def _attend(attention: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Attend from the class token to all tokens: (batch, tokens, width) to (batch, 1, width)."""
    batch, tokens, _ = x.shape
    heads, head_dim, width = attention.num_heads, attention.head_dim, attention.attn_dim
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q_bias, kv_bias = (bias[:width], bias[width:]) if bias is not None else (None, None)
    q = functional.linear(x[:, :1], weight[:width], q_bias)
    kv = functional.linear(x, weight[width:], kv_bias)
    q = q.reshape(batch, 1, heads, head_dim).transpose(1, 2)
    k, v = kv.reshape(batch, tokens, 2, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, 1, width)
    projected: Tensor = attention.proj_drop(attention.proj(attention.norm(mixed)))
    return projected
