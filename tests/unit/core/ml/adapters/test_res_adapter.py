"""Res-Tuning's adapter against its formula."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec

KIND = AdapterKind.RES_ADAPTER


def tune(part, x):
    """The public module: a bottleneck and a skip connection of its own."""
    h = x @ part.down.weight.T + part.down.bias
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x + h @ part.up.weight.T + part.up.bias


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_takes_the_place_of_the_skip_connection_beside_the_mlp(
    build_strong, assert_formula, family
):
    model = build_strong(KIND, family, scale=0.3)  # which this kind ignores

    def join(index, x, attention, mlp):
        y = x + attention(x)
        return mlp(y) + tune(model.adapters[index].double(), y)

    assert_formula(model, join)


def test_starts_at_xavier_with_tiny_biases(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 500), 3, seed=0)
    bound = math.sqrt(6 / 524)
    for adapter in model.adapters:
        for layer in (adapter.down, adapter.up):
            weight = layer.weight.detach()
            assert weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
            assert 0 < layer.bias.abs().max() < 6e-6
        assert adapter.down.bias.detach().std() == pytest.approx(1e-6, rel=0.2)
