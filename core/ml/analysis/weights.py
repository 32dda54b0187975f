"""The down and up matrices of a model's adapters, layer by layer, trained and as they began."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from core.ml.adapters.adapted import AdaptedModel
from core.ml.training.seeds import derive_seed

Part = Literal["down", "up"]
PARTS: tuple[Part, Part] = ("down", "up")

#: `adapters.3.down.weight`, `adapters.3.mlp.up.weight`: a matrix of layer 3.
_MATRIX = re.compile(r"adapters\.(?P<layer>\d+)\.(?:.+\.)?(?P<part>down|up)(?:\.weight)?")
_MATRIX_NDIM = 2


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The entries of one layer's down or up matrices, all in a row; biases are left out.

    Attributes:
        layer: index of the block, from 0.
        part: which side of the bottleneck.
        width: channels on the wide side of the matrix: those of the residual stream, d, but for
            the up side of a kind that feeds a wider layer.
        hidden_dim: dimensions on its narrow side.
        matrices: how many matrices there are; more than one where a block has several bottlenecks.
        trained: (n,).
        initial: the same entries before training, (n,).
    """

    layer: int
    part: Part
    width: int
    hidden_dim: int
    matrices: int
    trained: NDArray[np.float64]
    initial: NDArray[np.float64]


def rebuild_initial(model: AdaptedModel, *, seed: int, role: str) -> AdaptedModel:
    """Return the model as it was before training.

    Args:
        model: trained; shares its backbone with the result.
        seed: of the run.
        role: `student` or `teacher`, which names the draw of the initial weights.
    """
    return AdaptedModel(
        model.backbone,
        model.spec,
        model.head.out_features,
        seed=derive_seed(seed, f"init/{role}"),
    )


def find_layer_weights(model: AdaptedModel, initial: AdaptedModel) -> list[LayerWeights]:
    """Return the weights of every layer and side, in the order of layers.

    Empty for kinds of adapters that have no down and up matrices.

    Args:
        model: trained.
        initial: the same model before training.
    """
    return read_layer_weights(model.trainable_parameters(), initial.trainable_parameters())


def read_layer_weights(
    trained: Mapping[str, nn.Parameter], initial: Mapping[str, nn.Parameter]
) -> list[LayerWeights]:
    """Return what `find_layer_weights` does, of parameters by name."""
    groups: dict[tuple[int, Part], list[str]] = {}
    for name, parameter in trained.items():
        match = _MATRIX.fullmatch(name)
        if match is not None and _as_matrix(parameter) is not None:
            part: Part = "down" if match["part"] == "down" else "up"
            groups.setdefault((int(match["layer"]), part), []).append(name)
    layers = []
    for (layer, part), names in sorted(groups.items()):
        first = _as_matrix(trained[names[0]])
        assert first is not None, "only matrices are grouped"
        hidden_dim, width = first.shape if part == "down" else reversed(first.shape)
        layers.append(
            LayerWeights(
                layer=layer,
                part=part,
                width=width,
                hidden_dim=hidden_dim,
                matrices=len(names),
                trained=_flatten(trained, names),
                initial=_flatten(initial, names),
            )
        )
    return layers


def _as_matrix(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return a matrix, or a 1x1 convolution as one; None for anything else."""
    if parameter.ndim < _MATRIX_NDIM or any(size != 1 for size in parameter.shape[_MATRIX_NDIM:]):
        return None
    return parameter.detach().flatten(start_dim=1)


def _flatten(parameters: Mapping[str, nn.Parameter], names: list[str]) -> NDArray[np.float64]:
    parts = [parameters[name].detach().cpu().double().flatten() for name in names]
    return torch.cat(parts).numpy()
