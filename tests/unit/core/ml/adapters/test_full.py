"""Full fine-tuning: own weights, a network that stays as it is, decay towards zero."""

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.training.optim import build_optimizer, set_learning_rate
from tests.unit.core.ml.adapters.written_out import assert_written_out, double_state

KIND = AdapterKind.FULL


def build(backbone, seed=0):
    return AdaptedModel(backbone, AdapterSpec(KIND, 1), 3, seed=seed)


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin"])
def test_equals_a_network_with_these_weights(build_strong, read_images, family):
    model = build_strong(KIND, family)
    own = {name: tensor.double() for name, tensor in model.adapters.named_parameters()}
    state = double_state(model.backbone.module)
    assert own.keys() <= state.keys()
    assert_written_out(model, read_images().double(), state=state | own)


def test_is_a_copy_with_the_names_of_the_network(tiny_backbone):
    backbone = tiny_backbone("swin")
    own, network = dict(build(backbone).adapters.named_parameters()), backbone.module
    assert own.keys() == dict(network.named_parameters()).keys()
    assert "layers.1.blocks.0.attn.qkv.weight" in own
    for name, parameter in network.named_parameters():
        assert torch.equal(own[name], parameter)
        assert own[name].data_ptr() != parameter.data_ptr()


def test_teacher_and_student_on_one_network_learn_apart(tiny_backbone, read_images):
    backbone, images = tiny_backbone(), read_images()
    before = compute_tensors_sha256(backbone.module.state_dict())
    student, teacher = build(backbone, seed=1), build(backbone, seed=2)
    optimizer = build_optimizer(
        [student.trainable_parameters(), teacher.trainable_parameters()], weight_decay=0.0
    )
    set_learning_rate(optimizer, 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(student(images).sum() - teacher(images).sum())
        optimizer.step()
    assert compute_tensors_sha256(backbone.module.state_dict()) == before
    assert backbone.weights_sha256 == before
    for (name, one), two in zip(
        student.adapters.named_parameters(), teacher.adapters.parameters(), strict=True
    ):
        assert not torch.equal(one, two), name
        assert not torch.equal(one, backbone.module.get_parameter(name)), name


def test_weights_decay_towards_zero(tiny_backbone):
    model = build(tiny_backbone())
    optimizer = build_optimizer([model.trainable_parameters()], weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    own, network = model.adapters, model.backbone.module
    name = "blocks.1.mlp.fc1.weight"
    assert torch.allclose(own.get_parameter(name), 0.95 * network.get_parameter(name))
    assert torch.equal(own.get_parameter("norm.bias"), network.get_parameter("norm.bias"))


def test_bf16_network_runs_with_rounded_copies(tiny_backbone, read_images):
    backbone = tiny_backbone()
    backbone.module.bfloat16()
    model = build(backbone)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        plain = backbone.module(read_images().bfloat16())
        features = model.features(read_images().bfloat16())
    assert torch.allclose(features, plain.float(), rtol=0.05, atol=0.05)
