"""Adapter+ against its formula."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec

KIND = AdapterKind.ADAPTER_PLUS


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_equals_the_formula(build_strong, assert_formula, family):
    model = build_strong(KIND, family, scale=0.3)  # which this kind ignores

    def join(index, x, attention, mlp):
        part = model.adapters[index].double()
        y = x + attention(x)
        z = y + mlp(y)
        h = z @ part.down.weight.T + part.down.bias
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        return z + part.scale * (h @ part.up.weight.T + part.up.bias)

    assert_formula(model, join)


def test_starts_at_a_normal_distribution_cut_off_at_two_deviations(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 400), 3, seed=0)
    # Standard deviation of a normal distribution cut off at +-2: sqrt(1 - 4 pdf(2) / mass).
    density, mass = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    shrunk = math.sqrt(1 - 4 * density / mass)
    for adapter in model.adapters:
        for layer in (adapter.down, adapter.up):
            weight = layer.weight.detach()
            assert weight.abs().max() <= 0.02
            assert weight.std() == pytest.approx(0.01 * shrunk, rel=0.03)
            assert not layer.bias.any()
        assert (adapter.scale == 1).all()
