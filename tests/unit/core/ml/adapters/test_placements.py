"""Each placement against the formula of the paper, written out block by block in float64."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.drop_path import drop_path_rates, sample_drop_path
from core.ml.adapters.inject import attached
from core.ml.adapters.last_block import find_trimmable_block

KINDS = [AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED]
FAMILIES = ["vit", "vit_avg", "swin", "swinv2"]


def bottleneck(model, index, x):
    part = model.adapters[index]
    h = x @ part.down.weight.double().T + part.down.bias.double()
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return h @ part.up.weight.double().T + part.up.bias.double()


def join_branches(model, index, x, attention, mlp, *, keep):
    """The three placements, from the two bare branches of a block."""
    spec, s = model.spec, model.spec.scale
    k1, k2 = torch.ones(2, x.shape[0]) if keep is None else keep[2 * index : 2 * index + 2]
    k1 = k1.double().view(-1, *[1] * (x.ndim - 1))
    k2 = k2.double().view(-1, 1, 1)
    y = x + k1 * attention(x)
    if spec.kind is AdapterKind.PARALLEL_SHARED:
        y = y + s * bottleneck(model, index, x)
    if y.ndim == 4:
        y = y.reshape(y.shape[0], -1, y.shape[-1])
    z = y + k2 * mlp(y)
    if spec.kind is not AdapterKind.SEQUENTIAL:
        z = z + s * bottleneck(model, index, y)
    z = z.reshape(x.shape)
    if spec.kind is AdapterKind.SEQUENTIAL:
        z = z + bottleneck(model, index, z)
    return z


def explicit_features(model, images, keep=None):
    net = model.backbone.module
    x = net.patch_embed(images)
    if isinstance(net, VisionTransformer):
        x = net.norm_pre(net._pos_embed(x))
        for i, b in enumerate(net.blocks):
            x = join_branches(
                model,
                i,
                x,
                lambda v, b=b: b.ls1(b.attn(b.norm1(v))),
                lambda v, b=b: b.ls2(b.mlp(b.norm2(v))),
                keep=keep,
            )
        x = net.norm(x)
        return x[:, 0] if net.global_pool == "token" else net.fc_norm(x[:, 1:].mean(dim=1))
    post_norm = type(net).__name__ == "SwinTransformerV2"
    i = 0
    for layer in net.layers:
        x = layer.downsample(x)
        for b in layer.blocks:
            if post_norm:
                attention = lambda v, b=b: b.norm1(b._attn(v))  # noqa: E731
                mlp = lambda v, b=b: b.norm2(b.mlp(v))  # noqa: E731
            else:
                attention = lambda v, b=b: b._attn(b.norm1(v))  # noqa: E731
                mlp = lambda v, b=b: b.mlp(b.norm2(v))  # noqa: E731
            x = join_branches(model, i, x, attention, mlp, keep=keep)
            i += 1
    return net.norm(x).mean(dim=(1, 2))


def build_strong(backbone, kind):
    """An adapted model whose adapters are far from their small initial values."""
    model = AdaptedModel(backbone, AdapterSpec(kind, 5, 0.7), 3, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def read_images(batch=2):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class TestPlacement:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_equals_the_formula(self, tiny_backbone, family, kind):
        backbone = tiny_backbone(family)
        model = build_strong(backbone, kind)
        backbone.module.double()
        images = read_images().double()
        with torch.no_grad():
            expected = explicit_features(model, images)
            plain = backbone.module(images)
            logits = model(images)
        head = model.head
        wanted = expected @ head.weight.double().T + head.bias.double()
        assert (expected - plain).abs().max() > 0.1  # the adapters do something
        assert torch.allclose(logits.double(), wanted, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_fp32_agrees_with_float64(self, tiny_backbone, family):
        backbone = tiny_backbone(family)
        model = AdaptedModel(backbone, AdapterSpec(AdapterKind.PARALLEL_SHARED, 4), 3, seed=1)
        with torch.no_grad():
            single = model(read_images())
            backbone.module.double()
            double = model(read_images().double())
        assert torch.allclose(single, double, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_drop_path_scales_the_bare_branches_only(self, tiny_backbone, family, kind):
        backbone = tiny_backbone(family)
        model = build_strong(backbone, kind)
        backbone.module.double()
        images = read_images(batch=4).double()
        generator = torch.Generator().manual_seed(11)
        keep = sample_drop_path(0.6, len(backbone.blocks), 4, generator)
        assert (keep == 0).any()
        with torch.no_grad():
            expected = explicit_features(model, images, keep)
            logits = model(images, keep)
        wanted = expected @ model.head.weight.double().T + model.head.bias.double()
        assert torch.allclose(logits.double(), wanted, rtol=1e-6, atol=1e-6)


class TestDropPath:
    def test_rates_are_those_of_timm(self):
        timm_model = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, drop_path_rate=0.3
        )
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in timm_model.blocks]
        assert drop_path_rates(0.3, 4).tolist() == pytest.approx(rates)

    def test_factors_keep_the_mean(self):
        keep = sample_drop_path(0.5, 3, 20_000, torch.Generator().manual_seed(0))
        assert keep.shape == (6, 20_000)
        assert keep.mean(dim=1).tolist() == pytest.approx([1.0] * 6, abs=0.03)
        assert keep[:2].unique().tolist() == [1.0]  # the first block is never dropped
        assert keep[4:].unique().tolist() == [0.0, 2.0]

    def test_rate_zero_draws_nothing(self):
        assert sample_drop_path(0.0, 3, 4, torch.Generator()) is None


class TestInjection:
    def test_leaves_no_trace(self, tiny_backbone):
        backbone = tiny_backbone()
        images = read_images()
        before = backbone.module(images)
        model = build_strong(backbone, AdapterKind.PARALLEL_SHARED)
        model(images)
        for module in backbone.module.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert "forward" not in module.__dict__
        assert torch.equal(backbone.module(images), before)

    def test_leaves_no_trace_after_an_error(self, tiny_backbone):
        backbone = tiny_backbone()
        model = build_strong(backbone, AdapterKind.PARALLEL)
        with pytest.raises(AssertionError):
            model(torch.zeros(1, 3, 40, 40))  # timm checks the size
        assert all(
            not m._forward_hooks and "forward" not in m.__dict__ for m in backbone.module.modules()
        )

    def test_models_take_turns_on_one_backbone(self, tiny_backbone):
        backbone, images = tiny_backbone(), read_images()
        first = build_strong(backbone, AdapterKind.SEQUENTIAL)
        second = AdaptedModel(backbone, AdapterSpec(AdapterKind.PARALLEL, 2), 4, seed=5)
        alone = first(images)
        second(images)
        assert torch.equal(first(images), alone)

    def test_gradients_of_two_models_on_one_backbone(self, tiny_backbone):
        backbone, images = tiny_backbone(), read_images()
        first = build_strong(backbone, AdapterKind.PARALLEL)
        second = build_strong(backbone, AdapterKind.SEQUENTIAL)
        torch.autograd.backward(first(images).square().mean() + second(images).square().mean())
        together = first.adapters[0].down.weight.grad.clone()
        first.zero_grad()
        torch.autograd.backward(first(images).square().mean())
        assert torch.equal(first.adapters[0].down.weight.grad, together)

    def test_wrong_number_of_adapters(self, tiny_backbone):
        backbone = tiny_backbone()
        model = build_strong(backbone, AdapterKind.PARALLEL)
        with (
            pytest.raises(ValueError, match="shorter"),
            attached(backbone, model.adapters[:1], model.spec),
        ):
            pass


class TestTrimming:
    def test_last_block_sees_the_class_token_alone(self, tiny_backbone):
        backbone = tiny_backbone("vit")
        model = build_strong(backbone, AdapterKind.PARALLEL)
        seen = []
        for block in backbone.module.blocks:
            block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
        model(read_images())
        assert seen == [17, 17, 1]

    @pytest.mark.parametrize("family", ["vit_avg", "swin", "swinv2"])
    def test_only_where_the_class_token_is_all_that_counts(self, tiny_backbone, family):
        assert find_trimmable_block(tiny_backbone(family).module) is None
