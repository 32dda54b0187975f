"""BitFit against the network with other biases."""

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from tests.unit.core.ml.adapters.written_out import (
    assert_written_out,
    double_state,
    written_out_logits,
)

KIND = AdapterKind.BITFIT


def state_of(model):
    """The network's tensors with every difference added to its bias."""
    deltas = dict(model.adapters.named_parameters())
    state = double_state(model.backbone.module)
    assert all(name in state and name.endswith("bias") for name in deltas)
    return state | {name: state[name] + delta.double() for name, delta in deltas.items()}


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_a_network_with_other_biases(build_strong, read_images, family):
    model = build_strong(KIND, family)
    assert_written_out(model, read_images().double(), state=state_of(model))


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_gradient_survives_the_fast_kernels_of_fp32(tiny_backbone, strengthen, read_images, family):
    """Frozen weights run in oneDNN, which knows no gradient of a bias."""
    model = strengthen(AdaptedModel(tiny_backbone(family), AdapterSpec(KIND, 1), 3, seed=0))
    own = list(model.adapters.parameters())
    images, weights = read_images(), torch.tensor([1.0, -2.0, 0.5])
    got = torch.autograd.grad((model(images) * weights).sum(), own)
    logits = written_out_logits(model, state_of(model), images.double())
    wanted = torch.autograd.grad((logits * weights.double()).sum(), own)
    for first, second in zip(got, wanted, strict=True):
        assert torch.allclose(first, second, rtol=1e-3, atol=1e-4 * float(second.abs().max()))


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_has_every_bias_and_nothing_else(tiny_backbone, family):
    backbone = tiny_backbone(family)
    model = AdaptedModel(backbone, AdapterSpec(KIND, 1), 3, seed=0)
    names = {name for name, _ in model.adapters.named_parameters()}
    biases = {name for name, _ in backbone.module.named_parameters() if name.endswith("bias")}
    assert names == biases
    vectors = {name.rpartition(".")[2] for name in names}
    assert vectors == ({"bias", "q_bias", "v_bias"} if family == "swinv2" else {"bias"})


def test_starts_as_the_pretrained_network(tiny_backbone, read_images):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 1), 3, seed=0)
    assert not any(delta.any() for delta in model.adapters.parameters())
    with torch.no_grad():
        features, plain = model.features(read_images()), model.backbone.module(read_images())
    assert torch.allclose(features, plain, rtol=0, atol=1e-6)


def test_small_steps_are_not_lost_in_bf16(tiny_backbone):
    """Differences are kept in fp32, where a thousand small steps add up."""
    backbone = tiny_backbone()
    backbone.module.bfloat16()
    model = AdaptedModel(backbone, AdapterSpec(KIND, 1), 3, seed=0)
    delta = model.adapters.get_parameter("norm.bias")
    with torch.no_grad():
        for _ in range(1000):
            delta += 1e-3
    assert delta.detach().numpy() == pytest.approx(1.0, rel=1e-3)
    assert torch.tensor(0.5).bfloat16() + 1e-3 == 0.5  # the backbone's format loses each of them
