import math

import pytest
import torch

from core.catalog.methods import AdapterKind
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel, AdapterStateError
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.shapes import adapter_shapes

SPEC = AdapterSpec(AdapterKind.PARALLEL, 4, 0.1)


@pytest.fixture
def model(tiny_backbone):
    return AdaptedModel(tiny_backbone(width=24, depth=3), SPEC, 5, seed=0)


class TestTrainableParameters:
    def test_adapters_and_head_and_nothing_else(self, model):
        block = {"down.weight", "down.bias", "up.weight", "up.bias"}
        expected = {f"adapters.{i}.{name}" for i in range(3) for name in block}
        assert set(model.trainable_parameters()) == expected | {"head.weight", "head.bias"}
        assert all(p.requires_grad for p in model.trainable_parameters().values())
        assert not any(p.requires_grad for p in model.backbone.module.parameters())

    def test_count_is_the_formula(self, model):
        count = sum(p.numel() for p in model.trainable_parameters().values())
        assert count == 3 * (2 * 24 * 4 + 4 + 24) + 5 * (24 + 1)

    def test_state_has_their_names(self, model):
        assert set(model.state_dict()) == set(model.trainable_parameters())

    def test_shapes_are_known_without_building(self, model):
        shapes = adapter_shapes(SPEC, [24, 24, 24], 24, 5)
        assert shapes == {n: p.shape for n, p in model.trainable_parameters().items()}

    def test_moving_leaves_the_backbone(self, model):
        model.double()
        assert next(model.backbone.module.parameters()).dtype == torch.float32


class TestInitialisation:
    def test_normal_002_and_biases_zero(self, tiny_backbone):
        big = AdapterSpec(AdapterKind.SEQUENTIAL, 512)
        model = AdaptedModel(tiny_backbone(), big, 400, seed=3)
        for name, parameter in model.trainable_parameters().items():
            if name.endswith("bias"):
                assert not parameter.any()
            else:
                flat = parameter.detach().flatten()
                error = 4 * 0.02 / math.sqrt(flat.numel())
                assert abs(float(flat.mean())) < error
                assert float(flat.std()) == pytest.approx(0.02, abs=error)

    def test_seed_decides(self, tiny_backbone):
        backbone = tiny_backbone()
        models = [AdaptedModel(backbone, SPEC, 5, seed=seed) for seed in (1, 1, 2)]
        weights = [m.head.weight for m in models]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_global_generator_plays_no_part(self, tiny_backbone):
        backbone = tiny_backbone()
        torch.manual_seed(0)
        first = AdaptedModel(backbone, SPEC, 5, seed=1).head.weight
        torch.manual_seed(1)
        assert torch.equal(AdaptedModel(backbone, SPEC, 5, seed=1).head.weight, first)


class TestLoadState:
    def test_round_trip(self, model, tiny_backbone):
        other = AdaptedModel(model.backbone, SPEC, 5, seed=9)
        other.load_adapter_state(model.state_dict())
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(other(images), model(images))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("head.bias"), r"no head\.bias"),
            (lambda s: s.update(extra=torch.zeros(1)), "unknown extra"),
            (lambda s: s.update({"head.weight": torch.zeros(4, 24)}), r"head\.weight is \(4, 24\)"),
            (
                lambda s: s.update({"head.bias": torch.tensor([0, 1, math.nan, 0, 0])}),
                r"head\.bias holds values that are not finite",
            ),
        ],
    )
    def test_says_what_does_not_fit(self, model, change, message):
        state = dict(model.state_dict())
        change(state)
        before = model.head.weight.clone()
        with pytest.raises(AdapterStateError, match=message):
            model.load_adapter_state(state)
        assert torch.equal(model.head.weight, before)


class TestSpec:
    @pytest.mark.parametrize("hidden_dim", [0, -1, 5000])
    def test_hidden_dim_out_of_range(self, hidden_dim):
        with pytest.raises(InvalidError, match="hidden_dim"):
            AdapterSpec(AdapterKind.PARALLEL, hidden_dim)

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
    def test_scale_out_of_range(self, scale):
        with pytest.raises(InvalidError, match="scale"):
            AdapterSpec(AdapterKind.PARALLEL, 4, scale)

    def test_head_without_classes(self, tiny_backbone):
        with pytest.raises(InvalidError, match="0 classes"):
            AdaptedModel(tiny_backbone(), SPEC, 0, seed=0)
