"""The feature loss: bridges, layers and tokens, values and gradients against explicit formulas."""

import pytest
import torch

from core.catalog.layers import match_layer
from core.catalog.methods import AdapterKind, DistillationLoss, FeatureTokens
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.inject import attached
from core.ml.losses.distillation import Distillation
from core.ml.losses.spec import DistillationSpec
from core.ml.training.loop import train

SPEC = AdapterSpec(AdapterKind.PARALLEL, 4)
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(student, teacher, **settings):
    spec = DistillationSpec(loss=DistillationLoss.FEATURE, **settings)
    tie = Distillation(spec, student, teacher, seed=5)
    models = [AdaptedModel(b, SPEC, 3, seed=s) for s, b in enumerate((student, teacher))]
    return tie, models


def run(tie, models):
    layers = (tie.student_layers, tie.teacher_layers)
    return [
        model.forward_with_hidden(IMAGES, layers=own, all_tokens=tie.all_tokens)
        for model, own in zip(models, layers, strict=True)
    ]


def block_outputs(model):
    """What leaves every block, adapters included, seen by hooks of the test's own."""
    seen = []
    model._last_block[0] = None  # run the whole last block
    with attached(model.backbone, model.adapters, model.spec):
        handles = [
            block.module.register_forward_hook(lambda _, __, output: seen.append(output))
            for block in model.backbone.blocks
        ]
        model.backbone.module(IMAGES)
        for handle in handles:
            handle.remove()
    return seen


class TestLayers:
    def test_same_depth_maps_one_to_one(self):
        assert [match_layer(k, 12, 12) for k in range(12)] == list(range(12))

    def test_half_the_depth_maps_to_every_second(self):
        assert [match_layer(k, 12, 24) for k in range(12)] == [2 * k + 1 for k in range(12)]

    def test_the_last_meets_the_last(self):
        assert all(match_layer(a - 1, a, b) == b - 1 for a in (3, 6, 24) for b in (4, 6, 12))

    def test_layer_beyond_the_depth(self, pair):
        with pytest.raises(InvalidError, match="blocks 0 to 2, not 3") as caught:
            build(*pair, layers=(1, 3))
        assert caught.value.fields[0].pointer == "/method/distillation/layers"


class TestValue:
    def test_class_token_of_the_last_block_by_default(self, pair):
        tie, models = build(*pair)
        student, teacher = run(tie, models)
        assert student.hidden[0].shape == (2, 1, 24)  # trimmed: the class token alone
        bridge = tie.bridge.bridges[0]
        own, other = (block_outputs(model)[-1][:, 0] for model in models)
        wanted = ((own @ bridge.weight.T + bridge.bias - other) ** 2).mean()
        assert tie(student, teacher).item() == pytest.approx(wanted.item(), rel=1e-4)

    def test_every_token_of_two_layers(self, pair):
        tie, models = build(*pair, layers=(0, 2), tokens=FeatureTokens.ALL)
        student, teacher = run(tie, models)
        assert student.hidden[1].shape == (2, 17, 24)
        wanted = []
        for bridge, layer in zip(tie.bridge.bridges, (0, 2), strict=True):
            own, other = (block_outputs(model)[layer] for model in models)
            wanted.append(((own @ bridge.weight.T + bridge.bias - other) ** 2).mean())
        assert tie(student, teacher).item() == pytest.approx(
            torch.stack(wanted).mean().item(), rel=1e-5
        )

    def test_grids_are_averaged(self, tiny_backbone):
        student, teacher = tiny_backbone("swin", seed=0), tiny_backbone("vit", seed=1)
        tie, models = build(student, teacher)
        out = run(tie, models)
        grid = block_outputs(models[0])[-1]
        assert grid.shape == (2, 8, 8, 24)
        bridge = tie.bridge.bridges[0]
        other = block_outputs(models[1])[-1][:, 0]
        own = grid.mean(dim=(1, 2))
        wanted = ((own @ bridge.weight.T + bridge.bias - other) ** 2).mean()
        assert tie(*out).item() == pytest.approx(wanted.item(), rel=1e-4)

    def test_different_numbers_of_tokens_cannot_be_compared_one_by_one(self, tiny_backbone):
        student, teacher = tiny_backbone("swin", seed=0), tiny_backbone("vit", seed=1)
        tie, models = build(student, teacher, tokens=FeatureTokens.ALL)
        with pytest.raises(InvalidError, match=r"64 tokens .* and the teacher 17.*'cls'"):
            tie(*run(tie, models))


class TestGradient:
    def test_count_is_one_linear_map_a_layer(self, pair):
        tie, _ = build(*pair, layers=(0, 1))
        assert sum(p.numel() for p in tie.parameters()) == 2 * (24 * 12 + 12)

    @pytest.mark.parametrize("detach", [False, True])
    def test_reaches_bridge_and_student_and_the_teacher_unless_detached(self, pair, detach):
        tie, models = build(*pair, detach_teacher=detach)
        torch.autograd.backward(tie(*run(tie, models)))
        assert all(p.grad.abs().sum() > 0 for p in tie.parameters())
        first = [model.adapters[0].down.weight.grad for model in models]
        assert first[0].abs().sum() > 0
        assert (first[1] is None) == detach
        assert all(model.head.weight.grad is None for model in models)  # logits play no part

    def test_is_trained_and_kept_but_not_exported(self, pair, tiny_plan, tiny_data):
        spec = DistillationSpec(loss=DistillationLoss.FEATURE)
        student, teacher = pair
        result = train(
            tiny_plan(distillation=spec),
            tiny_data(),
            student=student,
            teacher=teacher,
            device=torch.device("cpu"),
        )
        assert result.history[-1].distillation < result.history[0].distillation
        assert not any("bridge" in name for name in result.student.state_dict())
