"""ARC against its formula, what its blocks share, and its initial values."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.shapes import adapter_shapes
from tests.unit.core.ml.adapters.written_out import assert_written_out

KIND = AdapterKind.ARC


def change_norms(model, drop=lambda h: h):
    """Z + drop(z (W_d diag(c))) W_d^T + b behind norm1 and norm2 of every block."""
    blocks = [block.name for block in model.backbone.blocks]

    def change(name, _, z):
        block, _, norm = name.rpartition(".")
        if block not in blocks or norm not in ("norm1", "norm2"):
            return z
        part = model.adapters.attention if norm == "norm1" else model.adapters.mlp
        index = blocks.index(block)
        down = part.down[str(z.shape[-1])].double()
        narrow = down @ torch.diag(part.scales[index].double())
        return z + drop(z @ narrow) @ down.T + part.shifts[index].double()

    return change


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_the_formula(build_strong, read_images, family):
    model = build_strong(KIND, family)
    assert_written_out(model, read_images().double(), change_norms(model))


def test_drops_a_tenth_between_the_projections_in_training(build_strong, read_images):
    model = build_strong(KIND, "vit_avg", hidden_dim=7)
    draws, kept = torch.Generator().manual_seed(4), []

    def drop(h):
        kept.append(torch.rand(h.shape, generator=draws) >= 0.1)
        return torch.where(kept[-1], h / 0.9, 0)

    change = change_norms(model, drop)
    fresh = torch.Generator().manual_seed(4)
    assert_written_out(model, read_images().double(), change, draws=fresh)
    assert torch.cat([k.flatten() for k in kept]).double().mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("family", "widths"), [("vit", [24] * 3), ("swin", [12, 12, 24, 24])])
def test_shares_its_projections_between_blocks_of_one_width(tiny_backbone, family, widths):
    model = AdaptedModel(tiny_backbone(family), AdapterSpec(KIND, 5), 3, seed=0)
    shapes = {name: tuple(p.shape) for name, p in model.adapters.named_parameters()}
    expected = {}
    for branch in ("attention", "mlp"):
        expected |= {f"{branch}.down.{d}": (d, 5) for d in set(widths)}
        expected |= {f"{branch}.scales.{i}": (5,) for i in range(len(widths))}
        expected |= {f"{branch}.shifts.{i}": (d,) for i, d in enumerate(widths)}
    assert shapes == expected
    known = adapter_shapes(AdapterSpec(KIND, 5), widths, 24, 3)
    assert known == {name: p.shape for name, p in model.named_parameters()}


def test_starts_as_the_public_code_does(tiny_backbone):
    model = AdaptedModel(tiny_backbone(depth=200), AdapterSpec(KIND, 50), 3, seed=0)
    attention, mlp = model.adapters.attention, model.adapters.mlp
    for part in (attention, mlp):
        bound = math.sqrt(6 / (24 + 50))
        down = part.down["24"].detach()
        assert down.abs().max() <= bound
        assert down.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not any(shift.any() for shift in part.shifts)
    assert not any(scale.any() for scale in attention.scales)
    scales = torch.cat([scale.detach() for scale in mlp.scales])
    bound = math.sqrt(6 / (1 + 50))
    assert scales.abs().max() <= bound
    assert scales.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not torch.equal(attention.down["24"], mlp.down["24"])
