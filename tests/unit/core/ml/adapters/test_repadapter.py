"""RepAdapter against a grouped convolution, its dropout and its initial values."""

import math

import pytest
import torch
from torch.nn import functional

from core.catalog.methods import AdapterKind
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.adapters.registry import ADAPTER_METHODS
from tests.unit.core.ml.adapters.written_out import assert_written_out

KIND = AdapterKind.REPADAPTER


def change_norms(model, drop=lambda h: h):
    """Z + s Conv_B(drop(Conv_A(z))), the second convolution in two groups, behind both norms."""
    blocks = [block.name for block in model.backbone.blocks]

    def change(name, _, z):
        block, _, norm = name.rpartition(".")
        if block not in blocks or norm not in ("norm1", "norm2"):
            return z
        parts = model.adapters[blocks.index(block)]
        part = parts.attention if norm == "norm1" else parts.mlp
        a, a_bias, b, b_bias = (
            t.double() for t in (part.down.weight, part.down.bias, part.up.weight, part.up.bias)
        )
        hidden = functional.conv1d(z.transpose(1, 2), a[..., None], a_bias)
        hidden = drop(hidden.transpose(1, 2)).transpose(1, 2)
        added = functional.conv1d(hidden, b[..., None], b_bias, groups=2)
        return z + model.spec.scale * added.transpose(1, 2)

    return change


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_the_formula(build_strong, read_images, family):
    model = build_strong(KIND, family, hidden_dim=6)
    assert_written_out(model, read_images().double(), change_norms(model))


def test_drops_a_tenth_between_the_projections_in_training(build_strong, read_images):
    model = build_strong(KIND, "vit_avg", hidden_dim=6)
    draws, kept = torch.Generator().manual_seed(4), []

    def drop(h):
        kept.append(torch.rand(h.shape, generator=draws) >= 0.1)
        return torch.where(kept[-1], h / 0.9, 0)

    change = change_norms(model, drop)
    fresh = torch.Generator().manual_seed(4)
    assert_written_out(model, read_images().double(), change, draws=fresh)
    assert torch.cat([k.flatten() for k in kept]).double().mean() == pytest.approx(0.9, abs=0.03)


def test_starts_with_nothing_behind_the_first_projection(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 400), 3, seed=0)
    bound = math.sqrt(6 / (24 + 400))
    for parts in model.adapters:
        for part in (parts.attention, parts.mlp):
            weight = part.down.weight.detach()
            assert weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
            assert not any(t.any() for t in (part.down.bias, part.up.weight, part.up.bias))


def test_odd_sizes_cannot_be_split(tiny_backbone):
    with pytest.raises(InvalidError, match=r"hidden_dim is 5; .* must be even"):
        AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 5), 3, seed=0)
    with pytest.raises(UnsupportedAdapterError, match=r"repadapter .* VisionTransformer .* odd"):
        AdaptedModel(tiny_backbone(width=27), AdapterSpec(KIND, 4), 3, seed=0)
    method = ADAPTER_METHODS[KIND]
    with pytest.raises(InvalidError, match=r"the width of a block is 27; .* must be even"):
        method.build_from_widths([24, 27], AdapterSpec(KIND, 4))
