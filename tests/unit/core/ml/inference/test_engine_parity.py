"""A batch of many models gives each image what its own model gives it."""

import numpy as np
import pytest

from core.catalog.methods import AdapterKind, Precision
from core.ml.inference.banked_kinds import BANKED_METHODS

K = AdapterKind
FAMILIES = ("vit", "vit_avg", "swin", "swinv2")
REFUSED = {
    (K.VPT_DEEP, "swin"),
    (K.VPT_DEEP, "swinv2"),
    (K.LORA, "swinv2"),
    (K.SSF, "swinv2"),
    (K.ARC, "swinv2"),
    (K.REPADAPTER, "swinv2"),
}
PAIRS = [(kind, family) for kind in K for family in FAMILIES if (kind, family) not in REFUSED]
every_pair = pytest.mark.parametrize(
    ("kind", "family"), PAIRS, ids=[f"{kind.value}-{family}" for kind, family in PAIRS]
)
SIZES = ((2, 0.1, 3), (4, 0.7, 20), (8, 1.5, 3))


@pytest.fixture
def made(make_model, kind, family):
    """Three models of different sizes, factors and class counts."""
    return [
        make_model(family, kind, hidden_dim=hidden_dim, scale=scale, classes=classes)
        for hidden_dim, scale, classes in SIZES
    ]


def compare(engine, made, pixels, tolerance):
    residents = [engine.admit(each.bundle) for each in made]
    groups = {}
    for index in range(len(pixels)):
        resident = residents[index % len(made)]
        groups.setdefault(resident.batch_key, []).append(index)
    for indices in groups.values():
        chosen = [residents[index % len(made)] for index in indices]
        outputs = engine.forward(chosen, [pixels[index] for index in indices])
        for index, output in zip(indices, outputs, strict=True):
            logits, features = made[index % len(made)].answer(pixels[index])
            assert output.logits.dtype == output.features.dtype == np.float32
            assert output.logits.shape == logits.shape
            assert np.abs(output.logits - logits).max() <= tolerance * max(1, np.abs(logits).max())
            assert np.abs(output.features - features).max() <= tolerance * max(
                1, np.abs(features).max()
            )
            if tolerance < 1e-3:
                assert output.logits.argmax() == logits.argmax()
    return groups


@every_pair
def test_fp32(build_engine, made, draw_pixels, kind, family):
    groups = compare(build_engine(), made, draw_pixels(7), 1e-4)
    banked = kind in BANKED_METHODS and (kind, family) != (K.BITFIT, "swinv2")
    assert len(groups) == (1 if banked else len(made))


@every_pair
def test_bf16(build_engine, made, draw_pixels, kind, family):
    engine = build_engine(precision=Precision.BF16)
    compare(engine, made, draw_pixels(6), 5e-2)
