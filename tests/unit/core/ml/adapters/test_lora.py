"""LoRA against its formula, its dropout and its initial values."""

import math

import pytest
import timm
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.backbones.load import wrap_backbone
from tests.unit.core.ml.adapters.written_out import assert_written_out

KIND = AdapterKind.LORA


def change_qkv(model, drop=lambda x: x):
    """qkv(x) + s B A drop(x)."""
    names = [f"{block.name}.attn.qkv" for block in model.backbone.blocks]

    def change(name, x, y):
        if name not in names:
            return y
        part = model.adapters[names.index(name)]
        update = part.up.weight.double() @ part.down.weight.double()
        return y + model.spec.scale * drop(x) @ update.T

    return change


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_the_formula(build_strong, read_images, family):
    model = build_strong(KIND, family, hidden_dim=3, scale=0.6)
    assert_written_out(model, read_images().double(), change_qkv(model))


def test_drops_a_tenth_of_the_input_in_training(build_strong, read_images):
    model = build_strong(KIND, hidden_dim=3)
    draws, kept = torch.Generator().manual_seed(4), []

    def drop(x):
        kept.append(torch.rand(x.shape, generator=draws) >= 0.1)
        return torch.where(kept[-1], x / 0.9, 0)

    change, fresh = change_qkv(model, drop), torch.Generator().manual_seed(4)
    assert_written_out(model, read_images().double(), change, draws=fresh)
    assert torch.cat([k.flatten() for k in kept]).double().mean() == pytest.approx(0.9, abs=0.02)


def test_starts_like_a_linear_layer_of_torch_with_nothing_behind_it(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 400), 3, seed=0)
    bound = 1 / math.sqrt(24)
    for part in model.adapters:
        weight = part.down.weight.detach()
        assert weight.abs().max() <= bound
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not part.up.weight.any()


def test_has_two_matrices_in_every_block_and_no_bias(tiny_backbone):
    model = AdaptedModel(tiny_backbone("swin"), AdapterSpec(KIND, 5), 3, seed=0)
    shapes = [[tuple(p.shape) for p in part.parameters()] for part in model.adapters]
    assert shapes == [[(5, 12), (36, 5)]] * 2 + [[(5, 24), (72, 5)]] * 2


def test_refuses_layers_that_are_not_called(tiny_backbone):
    """BEiT multiplies with the weight of `qkv` by hand: a hook on it would be silent."""
    network = timm.create_model(
        "beit_base_patch16_224", num_classes=0, embed_dim=24, depth=2, num_heads=3
    )
    backbone = wrap_backbone(network, "tiny_beit")
    with pytest.raises(UnsupportedAdapterError, match=r"lora .* Beit .*queries, keys and values"):
        AdaptedModel(backbone, AdapterSpec(KIND, 4), 3, seed=0)
