"""Linear probing: only the head learns, and nothing of the network is differentiated."""

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.shapes import adapter_shapes
from tests.unit.core.ml.adapters.written_out import double_state, written_out_logits

KIND = AdapterKind.LINEAR_PROBE


@pytest.fixture(params=["vit", "vit_avg", "swin"])
def model(request, tiny_backbone):
    return AdaptedModel(tiny_backbone(request.param), AdapterSpec(KIND, 1), 3, seed=1)


def test_only_the_head_learns(model, read_images):
    assert {n: tuple(p.shape) for n, p in model.trainable_parameters().items()} == {
        "head.weight": (3, 24),
        "head.bias": (3,),
    }
    features = model.features(read_images())
    logits = model(read_images())
    assert features.grad_fn is None  # no graph through the network is recorded
    assert not features.requires_grad
    torch.autograd.backward(logits.sum())
    assert torch.allclose(model.head.weight.grad, features.sum(0).expand(3, -1), rtol=1e-5)
    assert all(p.grad is None for p in model.backbone.module.parameters())


def test_equals_the_network_and_a_linear_layer(model, read_images):
    model.backbone.module.double()
    images = read_images().double()
    with torch.no_grad():
        wanted = written_out_logits(model, double_state(model.backbone.module), images)
        assert torch.allclose(model(images).double(), wanted, rtol=1e-5, atol=1e-6)


def test_its_file_can_be_checked_without_the_network():
    shapes = adapter_shapes(AdapterSpec(KIND, 1), [24, 24], 24, 5)
    assert shapes == {"head.weight": (5, 24), "head.bias": (5,)}
