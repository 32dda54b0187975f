import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.analysis.attention import NoAttentionMapError, read_attention
from core.ml.backbones.load import wrap_backbone
from core.ml.backbones.normalise import normalise_images
from tests.unit.core.ml.conftest import build_tiny

PX, PATCH = 32, 8
SHAPE = {"img_size": PX, "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_classes": 0}

BUILDERS = {
    "vit": lambda: VisionTransformer(**SHAPE, num_heads=3),
    "vit with norms of queries and keys": lambda: VisionTransformer(
        **SHAPE, num_heads=3, qk_norm=True
    ),
    "vit with registers": lambda: VisionTransformer(**SHAPE, num_heads=3, reg_tokens=4),
    "eva with rotary positions": lambda: Eva(
        **SHAPE, num_heads=3, use_rot_pos_emb=True, global_pool="token"
    ),
    "beit with relative positions": lambda: Beit(
        **SHAPE, num_heads=3, use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token"
    ),
}


def make_model(build, kind=AdapterKind.PARALLEL):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    module.pretrained_cfg = {"input_size": (3, PX, PX), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = AdaptedModel(wrap_backbone(module, "tiny"), AdapterSpec(kind, 4, 1.0), 3, seed=1)
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=_generator()))
    return model


def _generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def image():
    return torch.randint(0, 256, (PX, PX, 3), generator=_generator()).to(torch.uint8)


def attend_fused(model, image, monkeypatch):
    """Softmax of what the last call of the fused kernel was given, of an untrimmed forward."""
    given = []
    fused = functional.scaled_dot_product_attention

    def watch(q, k, v, attn_mask=None, **options):
        given.append((q, k, attn_mask))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    for block in model.backbone.blocks:
        block.module.attn.fused_attn = True
    with torch.no_grad():
        passed = model.forward_with_hidden(
            normalise_images(image[None], model.backbone), all_tokens=True
        )
    monkeypatch.undo()
    q, k, mask = given[-1]
    scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    patches = (PX // PATCH) ** 2
    grid = weights[0, :, 0, -patches:].reshape(-1, PX // PATCH, PX // PATCH)
    return grid.numpy(), passed.logits.softmax(dim=-1)[0].numpy()


@pytest.mark.parametrize("name", BUILDERS)
def test_is_what_the_fused_kernel_computes(name, image, monkeypatch):
    model = make_model(BUILDERS[name])
    grid, probabilities = attend_fused(model, image, monkeypatch)
    found = read_attention(model, image)
    assert found.heads.shape == (3, 4, 4)
    assert found.heads == pytest.approx(grid, abs=1e-5)
    assert found.probabilities == pytest.approx(probabilities, abs=1e-5)
    assert found.mean == pytest.approx(found.heads.mean(axis=0))
    assert (found.heads.sum(axis=(1, 2)) < 1).all()


@pytest.mark.parametrize("kind", sorted(ADAPTER_METHODS))
def test_every_kind_of_adapter_is_in_it(kind, image, monkeypatch):
    """Kinds that change queries and keys, or add tokens, among them."""
    model = make_model(BUILDERS["vit"], kind)
    grid, _ = attend_fused(model, image, monkeypatch)
    assert read_attention(model, image).heads == pytest.approx(grid, abs=1e-5)


def test_leaves_the_network_as_it_was(image):
    for name in ("vit", "eva with rotary positions"):
        model = make_model(BUILDERS[name])
        attention = model.backbone.blocks[-1].module.attn
        before = attention.fused_attn
        read_attention(model, image)
        assert attention.fused_attn is before
        hooks = [
            hook
            for module in model.backbone.module.modules()
            for hook in (*module._forward_hooks, *module._forward_pre_hooks)
        ]
        assert hooks == []


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("vit_avg", "does not pool by its class token"),
        ("swin", "has no class token"),
        ("swinv2", "has no class token"),
    ],
)
def test_a_network_without_a_deciding_class_token_says_why(family, reason, image):
    backbone = wrap_backbone(build_tiny(family), family)
    model = AdaptedModel(backbone, AdapterSpec(AdapterKind.SEQUENTIAL, 2), 3, seed=0)
    with pytest.raises(NoAttentionMapError, match=reason):
        read_attention(model, image)


def test_looks_where_the_keys_fit(image):
    """A query and keys made by hand: all the attention on one patch."""
    model = make_model(BUILDERS["vit"])
    attention = model.backbone.blocks[-1].module.attn
    keys = torch.zeros(1, 3, 17, 8)
    keys[:, :, 1 + 6] = 30.0  # patch 6: row 1, column 2
    attention.q_norm.register_forward_hook(lambda _, __, output: torch.ones_like(output))
    attention.k_norm.register_forward_hook(lambda *_: keys)
    mean = read_attention(model, image).mean
    assert np.unravel_index(mean.argmax(), mean.shape) == (1, 2)
    assert mean.max() == pytest.approx(1)
