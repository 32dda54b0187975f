"""Where the class token looks in the last block of a ViT.

A_cls = softmax(q_cls K^T / sqrt(d_head)), one row for each head, of the model with its adapters.
timm's fused attention never forms it. Queries and keys are taken where every change of them, an
adapter's as well, is behind them: at the norms that attention passes them through (which are
identities in most networks). Attention of other classes is asked to run unfused instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.attention import Attention
from torch import Tensor, nn

from core.ml.adapters.adapted import AdaptedModel
from core.ml.analysis.predictions import Predictions
from core.ml.backbones.normalise import normalise_images


class NoAttentionMapError(Exception):
    """The network has no class token whose attention would be a map; the message says why."""


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What the class token attends to.

    Attributes:
        heads: (heads, rows, columns), the weights on the patches; a head's sum to 1 less what it
            gives to the class token itself and to other tokens that are no patches.
        probabilities: of the classes, (classes,).
    """

    heads: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the heads, (rows, columns)."""
        mean: NDArray[np.float64] = self.heads.mean(axis=0)
        return mean


def read_attention(model: AdaptedModel, image: Tensor) -> AttentionMap:
    """Return the attention of the last block's class token.

    Args:
        model: in its backbone's precision.
        image: uint8 (px, px, 3), on the backbone's device.

    Raises:
        NoAttentionMapError: the network has no class token, pools otherwise, or attends within
            windows.
    """
    network = model.backbone.module
    rows, columns = _find_grid(network)
    attention = model.backbone.blocks[-1].module.get_submodule("attn")
    seen: dict[str, Tensor] = {}
    watch = _watch_queries_and_keys if type(attention) is Attention else _watch_unfused
    with torch.no_grad(), watch(attention, seen):
        logits = model(normalise_images(image[None], model.backbone))
    row = seen["row"] if "row" in seen else _attend(seen, attention)
    patches = row[0, :, -rows * columns :].double().cpu().numpy()
    predictions = Predictions(logits.double().cpu().numpy(), np.zeros(1, dtype=np.int64))
    return AttentionMap(patches.reshape(-1, rows, columns), predictions.probabilities[0])


def _find_grid(network: nn.Module) -> tuple[int, int]:
    """Return height and width of the grid of patches.

    Raises:
        NoAttentionMapError: see `read_attention`.
    """
    family = type(network).__name__
    if getattr(network, "cls_token", None) is None:
        raise NoAttentionMapError(
            f"{family} has no class token, so there is no attention from it to the patches"
        )
    if (
        getattr(network, "attn_pool", None) is not None
        or getattr(network, "global_pool", "") != "token"
    ):
        raise NoAttentionMapError(
            f"this {family} does not pool by its class token, so where that looks decides nothing"
        )
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None:
        raise NoAttentionMapError(f"{family} does not say how its patches are laid out")
    return int(grid[0]), int(grid[1])


@contextmanager
def _watch_queries_and_keys(attention: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Remember queries (1, heads, tokens, d_head) and keys; also of a trimmed block."""

    def remember(name: str) -> Any:  # noqa: ANN401 - a hook
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [
        attention.get_submodule(f"{name}_norm").register_forward_hook(remember(name))
        for name in ("q", "k")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watch_unfused(attention: nn.Module, seen: dict[str, Tensor]) -> Iterator[None]:
    """Make attention form its weights, for now, and remember the class token's."""
    if not hasattr(attention, "fused_attn") or not hasattr(attention, "attn_drop"):
        raise NoAttentionMapError(
            f"the attention of this network, {type(attention).__name__}, cannot be read"
        )

    def remember(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen["row"] = inputs[0][:, :, 0].float()

    fused = attention.fused_attn
    handle = attention.get_submodule("attn_drop").register_forward_pre_hook(remember)
    attention.__dict__["fused_attn"] = False
    try:
        yield
    finally:
        attention.__dict__["fused_attn"] = fused
        handle.remove()


def _attend(seen: dict[str, Tensor], attention: nn.Module) -> Tensor:
    """Return the class token's weights, (1, heads, tokens)."""
    query, keys = seen["q"][:, :, 0].float(), seen["k"].float()
    scores = torch.einsum("bhd,bhnd->bhn", query, keys) * cast(float, attention.scale)
    return scores.softmax(dim=-1)
