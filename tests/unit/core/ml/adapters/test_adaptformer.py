"""AdaptFormer against its formula, and its dropout."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS

KIND = AdapterKind.ADAPTFORMER


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_equals_the_formula(build_strong, assert_formula, family):
    model = build_strong(KIND, family)

    def join(index, x, attention, mlp):
        part = model.adapters[index].double()
        y = x + attention(x)
        hidden = (y @ part.down.weight.T + part.down.bias).clamp(min=0)
        return y + mlp(y) + 0.7 * (hidden @ part.up.weight.T + part.up.bias)

    assert_formula(model, join)


def test_drops_a_tenth_of_the_hidden_values_and_keeps_their_mean():
    module = ADAPTER_METHODS[KIND].build_block(8, AdapterSpec(KIND, 400))
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(module.up.weight, generator=generator)
    torch.nn.init.ones_(module.down.weight)
    x = torch.rand(6, 8, generator=generator)  # positive, so that no hidden value is 0 before
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        outputs = torch.stack([module(x, draws) for _ in range(400)])
        evaluated = module(x)
    assert not torch.equal(outputs[0], outputs[1])
    # A sum of 400 terms of which each is 0 or 10/9 of itself has this variance:
    terms = (x @ module.down.weight.T + module.down.bias).unsqueeze(1) * module.up.weight
    spread = (terms.square().sum(-1) / 9).sqrt()
    assert ((outputs.mean(0) - evaluated).abs() < 5 * spread / math.sqrt(400)).all()
    assert outputs.std(0) == pytest.approx(spread.detach(), rel=0.2)


def test_starts_like_a_linear_layer_of_torch_with_nothing_behind_it(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 500), 3, seed=0)
    for adapter in model.adapters:
        bound = 1 / math.sqrt(24)
        weight = adapter.down.weight.detach()
        assert weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not any(t.any() for t in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
