"""SSF against its formula, its places and its initial values."""

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.training.optim import build_optimizer
from tests.unit.core.ml.adapters.written_out import assert_written_out

KIND = AdapterKind.SSF
IN_A_BLOCK = {"norm1": 1, "attn.qkv": 3, "attn.proj": 1, "norm2": 1, "mlp.fc1": 4, "mlp.fc2": 1}
FAMILIES = {  # blocks with their widths, and what is around them
    "vit": ([f"blocks.{i}" for i in range(3)], [24] * 3, {"patch_embed.proj": 24, "norm": 24}),
    "vit_avg": (
        [f"blocks.{i}" for i in range(3)],
        [24] * 3,
        {"patch_embed.proj": 24, "fc_norm": 24},
    ),
    "swin": (
        [f"layers.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)],
        [12, 12, 24, 24],
        {"patch_embed.proj": 12, "norm": 24},
    ),
}


def places(family):
    """Channels of every operation that is scaled and shifted, by name."""
    blocks, widths, around = FAMILIES[family]
    inside = {
        f"{block}.{name}": factor * width
        for block, width in zip(blocks, widths, strict=True)
        for name, factor in IN_A_BLOCK.items()
    }
    return inside | around


@pytest.mark.parametrize("family", FAMILIES)
def test_has_two_vectors_for_every_operation(tiny_backbone, family):
    model = AdaptedModel(tiny_backbone(family), AdapterSpec(KIND, 1), 3, seed=0)
    shapes = {name: tuple(p.shape) for name, p in model.adapters.named_parameters()}
    assert shapes == {
        f"{name}.{vector}": (channels,)
        for name, channels in places(family).items()
        for vector in ("scale", "shift")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_formula(build_strong, read_images, family):
    model = build_strong(KIND, family)
    vectors = dict(model.adapters.named_parameters())
    with torch.no_grad():
        for name, vector in vectors.items():
            vector.add_(name.endswith("scale"))  # away from 0, or little would come through
    changed = set(places(family))

    def change(name, _, y):
        if name not in changed:
            return y
        return vectors[f"{name}.scale"].double() * y + vectors[f"{name}.shift"].double()

    assert_written_out(model, read_images().double(), change)


def test_starts_around_one_and_zero(tiny_backbone):
    model = AdaptedModel(tiny_backbone(width=192), AdapterSpec(KIND, 1), 3, seed=0)
    named = list(model.adapters.named_parameters())
    for ending, mean in (("scale", 1.0), ("shift", 0.0)):
        values = torch.cat([p.detach() for name, p in named if name.endswith(ending)])
        assert values.mean() == pytest.approx(mean, abs=0.002)
        assert values.std() == pytest.approx(0.02, rel=0.05)


def test_does_not_decay(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 1), 3, seed=0)
    optimizer = build_optimizer([model.trainable_parameters()], weight_decay=0.5)
    decayed = [
        p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    ]
    assert [p.data_ptr() for p in decayed] == [model.head.weight.data_ptr()]
