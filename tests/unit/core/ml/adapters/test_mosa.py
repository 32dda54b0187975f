"""MoSA against the released code's way to say it: a whole layer for every expert."""

import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.normalise import normalise_images
from core.ml.training.seeds import derive_seed
from core.ml.training.step import Trainee

KIND = AdapterKind.MOSA


def list_experts(part):
    """Weights of four whole layers, each 0 outside of its own entries."""
    return [part.up.weight * (part.expert_of == expert) for expert in range(4)]


def read_hidden(part, y):
    centred = y - y.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    h = (normed * part.norm.weight + part.norm.bias) @ part.down.weight.T + part.down.bias
    return 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))


def build_module(width=12, hidden_dim=8):
    spec = AdapterSpec(KIND, hidden_dim)
    (module,) = ADAPTER_METHODS[KIND].build_from_widths([width], spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "swinv2"])
def test_evaluates_the_mean_of_the_experts_beside_the_mlp(build_strong, assert_formula, family):
    model = build_strong(KIND, family, scale=2.5)

    def join(index, x, attention, mlp):
        part = model.adapters[index].double()
        y = x + attention(x)
        hidden = read_hidden(part, y)
        experts = [hidden @ weight.T + part.up.bias for weight in list_experts(part)]
        return y + mlp(y) + 2.5 * sum(experts) / 4

    assert_formula(model, join)


class TestExperts:
    def test_share_the_entries_equally_and_differently_in_every_block(self):
        spec = AdapterSpec(KIND, 16)
        blocks = ADAPTER_METHODS[KIND].build_from_widths([24, 24, 32], spec)
        for block in blocks:
            counts = torch.bincount(block.expert_of.flatten().long(), minlength=4)
            assert counts.tolist() == [block.up.weight.numel() // 4] * 4
            assert block.expert_of.shape == block.up.weight.shape
        assert not torch.equal(blocks[0].expert_of, blocks[1].expert_of)
        again = ADAPTER_METHODS[KIND].build_from_widths([24, 24, 32], spec)
        for first, second in zip(blocks, again, strict=True):
            assert torch.equal(first.expert_of, second.expert_of)

    def test_are_no_part_of_what_is_stored(self, tiny_backbone):
        model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 4), 3, seed=0)
        assert set(model.state_dict()) == set(model.trainable_parameters())

    def test_uneven_shapes_differ_by_one_entry(self):
        (module,) = ADAPTER_METHODS[KIND].build_from_widths([7], AdapterSpec(KIND, 3))
        counts = torch.bincount(module.expert_of.flatten().long(), minlength=4)
        assert sorted(counts.tolist()) == [5, 5, 5, 6]

    def test_one_of_them_is_drawn_in_training(self):
        """Without the dropout, which acts before them, an output is that of one expert."""
        module = build_module()
        x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
        draws = torch.Generator().manual_seed(2)
        seen = set()
        for _ in range(60):
            module.zero_grad()
            module(x, draws).square().sum().backward()
            touched = module.up.weight.grad != 0
            experts = module.expert_of[touched].unique().tolist()
            assert len(experts) == 1
            seen.update(experts)
        assert seen == {0, 1, 2, 3}

    def test_an_expert_is_not_scaled_and_the_bias_is_shared(self, monkeypatch):
        monkeypatch.setattr("core.ml.adapters.mosa.DROPOUT", 0.0)
        module = build_module()
        x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            hidden = read_hidden(module, x)
            expected = [hidden @ w.T + module.up.bias for w in list_experts(module)]
            draws = torch.Generator().manual_seed(2)
            for _ in range(20):
                output = module(x, draws)
                errors = [float((output - wanted).abs().max()) for wanted in expected]
                assert min(errors) < 1e-5


class TestTraining:
    def test_adds_the_symmetric_divergence_of_two_draws(self, tiny_backbone, tiny_plan, strengthen):
        plan = tiny_plan(kind=KIND, scale=5.0, drop_path=0.0)
        model = strengthen(AdaptedModel(tiny_backbone(), plan.adapter, 3, seed=0))
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator)
        trainee = Trainee("student", model)
        first, extra = trainee.forward(images, plan, epoch=1, step=4)
        again, same = trainee.forward(images, plan, epoch=1, step=4)
        assert torch.equal(first.logits, again.logits)
        assert torch.equal(extra, same)
        draws = torch.Generator().manual_seed(derive_seed(7, "draws/student", epoch=1, step=4))
        normalised = normalise_images(images, model.backbone)
        with torch.no_grad():
            two = [model(normalised, None, draws).double() for _ in range(2)]
        p, q = (logits.exp() / logits.exp().sum(-1, keepdim=True) for logits in two)
        divergence = ((p - q) * (p.log() - q.log())).sum(-1).mean() / 2
        assert divergence > 0.01  # the draws differ
        assert float(extra.detach()) == pytest.approx(float(divergence), rel=1e-4)
        assert torch.allclose(first.logits.double(), two[0], atol=1e-5)


def test_starts_with_a_fresh_norm_and_nothing_behind_the_experts(tiny_backbone):
    model = AdaptedModel(tiny_backbone(), AdapterSpec(KIND, 500), 3, seed=0)
    for adapter in model.adapters:
        bound = 1 / math.sqrt(24)
        assert adapter.down.weight.abs().max() <= bound
        assert adapter.down.weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not any(t.any() for t in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
        assert (adapter.norm.weight == 1).all()
        assert not adapter.norm.bias.any()
        assert adapter.norm.eps == 1e-6
